"""Run all steps of an experiment that are out of date, each an ordinary `rcg` command.

A pipeline file lists steps. ``run`` holds the words after `rcg`, without output folder and seeds, which are added.
``{name}`` stands for the folder of step ``name``, which becomes an upstream; ``{seed}`` for a hash of the pipeline's
seed and the step's name; ``{run}`` for the pipeline's seed itself. A step is up to date when its command, its configs
and all its upstreams have not changed since it finished, and its files still exist.

Nothing here imports torch, so checking a finished pipeline takes a moment.
"""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rcg_lightning import interruption
from rcg_lightning.artifacts import fingerprint, set_aside
from rcg_lightning.config_files import find_config, named_configs, read_config
from rcg_lightning.errors import UserError
from rcg_lightning.pipeline.records import (
    files_of,
    is_whole,
    read_record,
    sizes_of,
    unrecorded_seconds,
    write_record,
)
from rcg_lightning.pipeline.spec import Pipeline, Step
from rcg_lightning.run_folder import LAST, begin_extension, newest_checkpoint

TABLE = "table"
TABLE_FILES = ("results.json", "results.md", "grid.png", "protocol.json")
Command = Callable[[str, Sequence[str]], None]  # runs an `rcg` command by name, with its arguments, in this process
Report = Callable[[str], None]  # shows a line to the user


class Run:
    """One pipeline with its folder and seeds.

    Args:
        pipeline: what to run.
        root: folder of the pipeline's results.
        seeds: pipeline seeds; every step has its own seed, a hash of pipeline seed and step name.
    """

    def __init__(self, pipeline: Pipeline, root: Path, seeds: list[int]) -> None:
        self.pipeline, self.root, self.seeds = pipeline, root, seeds
        self._keys: dict[tuple[str, int], str] = {}

    def folder(self, step: Step, seed: int) -> Path:
        """Return the folder that a step writes; the table's is the root."""
        if step.name == TABLE:
            return self.root
        return self.root / step.name if step.shared else self.root / f"seed{seed}" / step.name

    def words(self, step: Step, seed: int) -> list[str]:
        """Return the command of a step with its placeholders filled in."""
        own = hashlib.sha256(f"{0 if step.shared else seed} {step.name}".encode()).digest()
        folder = str(self.folder(step, seed))
        values: dict[str, Any] = {"seed": int.from_bytes(own[:4], "big") >> 1, "run": seed}
        values |= {name: self.folder(self.pipeline.steps[name], seed) for name in step.upstream}
        words = step.words(values)
        if words[0] == "fit":
            words += ["--trainer.default_root_dir", folder, "--seed_everything", str(values["seed"])]
            words += [f"--{part}.seed={values['seed']}" for part in ("trainer", "model", "data")]
            words += [] if step.steps is None else ["--trainer.max_steps", str(step.steps)]
        else:
            words += ["--out", folder]
        if step.devices > 1:
            words += ["--trainer.devices" if words[0] == "fit" else "--devices", str(step.devices)]
        return words

    def key(self, step: Step, seed: int) -> str:
        """Return a hash of all that determines a step's result: its command, configs and upstreams.

        ``Step.steps`` is no part of a step's own key, since a longer training continues, but of those that read it.
        """
        name = (step.name, seed)
        if name not in self._keys:
            upstreams = [self.pipeline.steps[name] for name in step.upstream]
            upstream = [
                [self.key(other, seed), other.steps] if other.steps else self.key(other, seed) for other in upstreams
            ]
            configs = [read_config(find_config(config)) for _, config in named_configs(self.words(step, seed))]
            if step.steps is not None:
                configs = [without_steps(config) for config in configs]
            plain = json.dumps(configs, sort_keys=True, default=str)  # YAML has dates, JSON has none
            version = [] if step.version is None else [step.version]
            self._keys[name] = fingerprint([step.text, 0 if step.shared else seed, plain, upstream, *version])
        return self._keys[name]

    def todo(self) -> list[tuple[Step, int]]:
        """Return every (step, seed) in order; a shared step appears once."""
        steps = self.pipeline.steps.values()
        shared = [(step, self.seeds[0]) for step in steps if step.shared]
        return shared + [(step, seed) for seed in self.seeds for step in steps if not step.shared]

    def record_path(self, step: Step, seed: int) -> Path:
        """Return the path of a step's record: next to its folder, whose content belongs to the command."""
        return self.folder(step, seed).with_name(f".{step.name}.json")

    def record(self, step: Step, seed: int) -> dict[str, Any]:
        """Read the record of a step's last run; empty if it never started."""
        return read_record(self.record_path(step, seed))

    def is_done(self, step: Step, seed: int) -> bool:
        """Whether a step finished with its current settings, and none of its files is missing or truncated."""
        record = self.record(step, seed)
        finished = record.get("key") == self.key(step, seed) and record.get("seconds") is not None
        long_enough = record.get("steps", 0) >= (step.steps or 0)
        return finished and long_enough and is_whole(self.folder(step, seed), record)

    def execute(self, step: Step, seed: int, command: Command, report: Report) -> None:
        """Run a step; continue a killed run of the same command."""
        folder, path, key = self.folder(step, seed), self.record_path(step, seed), self.key(step, seed)
        record = self.record(step, seed)
        changed = record.get("key") != key
        extended = not changed and 0 < record.get("steps", 0) < (step.steps or 0) and (folder / LAST).is_file()
        if extended:
            begin_extension(folder)
            report(f"{folder}: trained for {record['steps']} steps, continues to {step.steps}")
        elif changed or record.get("seconds") is not None:  # a finished step gets here only if files are missing
            why = "its settings have changed" if changed else "files are missing or truncated"
            why = why if record else "its record is missing or damaged"
            if folder.exists():  # a changed config deletes no days of training
                aside = set_aside(folder, f"{folder.name}.until-{record.get('key', 'unknown')[:8]}")
                report(f"{folder}: {why}; the old folder is now {aside.name}")
            record = {}
        folder.mkdir(parents=True, exist_ok=True)
        words = self.words(step, seed)
        spent = record.get("spent", 0.0) + unrecorded_seconds(folder, path, record)
        begun = {"key": key, "command": words} | ({} if step.steps is None else {"steps": step.steps})
        write_record(path, {**begun, "spent": spent, "seconds": None})
        checkpoint = newest_checkpoint(folder) if words[0] == "fit" else None
        words += ["--ckpt_path", str(checkpoint)] if checkpoint else []
        start = time.perf_counter()
        run_command(words, step, command)
        seconds = spent + time.perf_counter() - start
        files = sizes_of(folder, files_of(folder))
        write_record(path, {**begun, "command": words, "spent": seconds, "seconds": seconds, "files": files})

    def rows(self) -> list[dict[str, Any]]:
        """Return the table's rows: the path of the samples, and the time of their step and all its upstreams.

        Steps that seeds or rows share count in full in each: the time is what the row alone would take.
        """
        rows = []
        for seed in self.seeds:
            for condition, name in self.pipeline.rows.items():
                chain = self._chain(name)
                seconds = sum(self.record(step, seed).get("seconds") or 0.0 for step in chain)
                folder = self.folder(self.pipeline.steps[name], seed)
                rows.append(
                    {"condition": condition, "seed": seed, "samples": str(folder), "seconds": round(seconds, 1)}
                )
        return rows

    def _chain(self, name: str) -> list[Step]:
        """Return a step and all its upstreams, each once."""
        steps = {name: self.pipeline.steps[name]}
        for upstream in self.pipeline.steps[name].upstream:
            steps |= {step.name: step for step in self._chain(upstream)}
        return list(steps.values())

    def make_table(self, command: Command, report: Report) -> None:
        """Compare the rows, unless the table is up to date, and report it."""
        if self.pipeline.table is None:
            return
        step = Step(TABLE, self.pipeline.table, shared=True, arguments=self.pipeline.arguments)
        rows = self.rows()
        keys = [
            self.key(self.pipeline.steps[name], seed) for seed in self.seeds for name in self.pipeline.rows.values()
        ]
        key = fingerprint([self.key(step, self.seeds[0]), keys])
        stamp = self.root / "table.json"
        record = read_record(stamp)
        if record.get("key") != key or not is_whole(self.root, record):
            write_record(self.root / "rows.json", rows)
            words = [*self.words(step, self.seeds[0]), "--rows", str(self.root / "rows.json")]
            run_command(words, step, command)
            made = (path for path in map(self.root.joinpath, TABLE_FILES) if path.is_file())
            write_record(stamp, {"key": key, "files": sizes_of(self.root, made)})
        report((self.root / "results.md").read_text())
        report(f"results: {self.root / 'results.json'}   images: {self.root / 'grid.png'}")

    def work(self, command: Command, report: Report, dry_run: bool = False) -> None:
        """Run all steps that are out of date, in order; with ``dry_run`` only report them."""
        todo = self.todo()
        for number, (step, seed) in enumerate(todo, 1):
            where = f"[{number}/{len(todo)}] {step.name}" + ("" if step.shared else f", seed {seed}")
            if self.is_done(step, seed):
                report(f"{where}: up to date")
                continue
            report(f"{where}: {shlex.join([*step.launcher, 'rcg', *self.words(step, seed)])}")
            if not dry_run:
                self.execute(step, seed, command, report)


def without_steps(config: Any) -> Any:
    """Return a training's config without its number of steps, and what follows from it and changes rounding at most."""
    follows = ("max_steps", "val_check_interval", "checkpoint_every", "log_every_n_steps", "compile")
    trainer = {name: value for name, value in (config.get("trainer") or {}).items() if name not in follows}
    return {**config, "trainer": trainer}


def run_command(words: list[str], step: Step, command: Command) -> None:
    """Run one `rcg` command in this process, which saves importing Lightning, or in new ones if it needs several."""
    if step.devices == 1 and not step.launcher:
        try:
            with clean_process():
                command(words[0], words[1:])
                interruption.check()  # before the step counts as finished
        except UserError as error:
            raise UserError(f"step {step.name}: {error}") from error
        return
    process = [*step.launcher, sys.executable, "-P", "-m", "rcg_lightning.cli", *words]
    code = _returncode(process)
    if code:
        raise UserError(f"step {step.name} failed with exit code {code}: {shlex.join(process)}")


def _returncode(words: list[str], grace: float = 25) -> int:
    """Run a command in a new process and return its exit code; if this process is interrupted, that one ends first."""
    with subprocess.Popen(words) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
            process.kill()
            raise


@contextmanager
def clean_process() -> Iterator[None]:
    """Restore the environment and torch's global settings after a step, and free its memory."""
    environment = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        if "torch" in sys.modules:
            from rcg_lightning.trainer import reset_torch

            reset_torch()
