"""`rcg pipeline`: all stages of an experiment, each an ordinary `rcg` command, run when it is out of date.

A pipeline file lists steps; ``run`` is what one would type after `rcg`, without the folder to write to and the seeds:
those are added. ``{name}`` stands for the folder of step ``name``, which makes that one an upstream; ``{seed}`` for a
number drawn from the pipeline's seed and the step's name, ``{run}`` for the pipeline's seed itself. A step is up to
date when its command, the configs it names and all its upstreams are what they were when it finished, and its files
are still there.

Nothing here imports torch: finding out that everything is done takes a moment.
"""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rcg_lightning import cli
from rcg_lightning.commands.parsing import CONFIG_FLAGS, call, find_config, say
from rcg_lightning.errors import UserError

RECORD = ".step.json"
TABLE = "table"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_OWN = {"seed", "run"}  # placeholders that are no steps


@dataclass(frozen=True)
class Step:
    """One command of a pipeline.

    Attributes:
        name: of the step and of its folder.
        run: the command, with placeholders.
        shared: run once for all seeds.
        devices: processes to run on; more than one run apart from this process.
        launcher: words in front of the command where a job launcher starts it, such as srun.
    """

    name: str
    run: str
    shared: bool = False
    devices: int = 1
    launcher: tuple[str, ...] = ()

    @property
    def upstream(self) -> list[str]:
        """Names of the steps whose folders this one reads."""
        return [name for name in dict.fromkeys(_PLACEHOLDER.findall(self.run)) if name not in _OWN]


@dataclass(frozen=True)
class Pipeline:
    """A parsed pipeline file.

    Attributes:
        name: its results go to ``<root>/<name>``.
        steps: by name, in an order in which every step comes after its upstreams.
        table: the command that compares the rows, without ``--rows`` and ``--out``; None for no table.
        rows: condition to the step that made its samples.
    """

    name: str
    steps: dict[str, Step]
    table: str | None
    rows: dict[str, str]


def read_pipeline(path: Path) -> Pipeline:
    """Parse a pipeline file; raise UserError where it cannot work."""
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    _known_keys(path, content, {"steps"}, {"name", "table"})
    steps: dict[str, Step] = {}
    for name, entry in content["steps"].items():
        _known_keys(f"{path}, step {name}", entry, {"run"}, {"shared", "devices", "launcher"})
        entry = {**entry, "launcher": tuple(shlex.split(entry.get("launcher", "")))}
        steps[name] = step = Step(name, **entry)
        missing = [other for other in step.upstream if other not in steps]
        if missing:
            raise UserError(f"{path}: step {name} reads {{{missing[0]}}}, which is no step before it")
        if step.shared and any(not steps[other].shared for other in step.upstream):
            raise UserError(f"{path}: step {name} is shared by all seeds, so it can only read shared steps")
    table = content.get("table") or {}
    _known_keys(f"{path}, table", table, set(), {"run", "rows"})
    rows = table.get("rows", {})
    unknown = [step for step in rows.values() if step not in steps]
    if unknown:
        raise UserError(f"{path}: the table reads {unknown[0]}, which is no step")
    return Pipeline(content.get("name", path.stem), steps, table.get("run"), rows)


def _known_keys(where: object, entry: Any, required: set[str], optional: set[str]) -> None:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} should hold {', '.join(sorted(required | optional))}")
    missing, unknown = required - entry.keys(), entry.keys() - required - optional
    if missing or unknown:
        wrong = f"lacks {sorted(missing)[0]}" if missing else f"has the unknown key {sorted(unknown)[0]}"
        raise UserError(f"{where} {wrong}: keys are {', '.join(sorted(required | optional))}")


class Run:
    """One pipeline with its folder and seeds.

    Args:
        pipeline: what to run.
        root: folder of the pipeline's runs.
        seeds: pipeline seeds; every step draws its own from the seed and its name.
    """

    def __init__(self, pipeline: Pipeline, root: Path, seeds: list[int]) -> None:
        self.pipeline, self.root, self.seeds = pipeline, root, seeds

    def folder(self, step: Step, seed: int) -> Path:
        """Return where a step writes; the table goes to the root."""
        if step.name == TABLE:
            return self.root
        return self.root / step.name if step.shared else self.root / f"seed{seed}" / step.name

    def words(self, step: Step, seed: int) -> list[str]:
        """Return the command of a step with its placeholders filled in."""
        own = hashlib.sha256(f"{0 if step.shared else seed} {step.name}".encode()).digest()
        folder = str(self.folder(step, seed))
        values: dict[str, Any] = {"seed": int.from_bytes(own[:4], "big") >> 1, "run": seed}
        values |= {name: self.folder(self.pipeline.steps[name], seed) for name in step.upstream}
        words = shlex.split(_PLACEHOLDER.sub(lambda found: str(values[found[1]]), step.run))
        if words[0] == "fit":
            words += ["--trainer.default_root_dir", folder, "--seed_everything", str(values["seed"])]
            words += [f"--{part}.seed={values['seed']}" for part in ("trainer", "model", "data")]
        else:
            words += ["--out", folder]
        if step.devices > 1:
            words += ["--trainer.devices" if words[0] == "fit" else "--devices", str(step.devices)]
        return words

    def key(self, step: Step, seed: int) -> str:
        """Return a hash of everything that decides what the step makes: its command, configs and upstreams."""
        upstream = [self.key(self.pipeline.steps[name], seed) for name in step.upstream]
        content = [step.run, 0 if step.shared else seed, _config_contents(self.words(step, seed)), upstream]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def todo(self) -> list[tuple[Step, int]]:
        """Return every (step, seed) of the run, in order; a shared step comes once."""
        steps = self.pipeline.steps.values()
        shared = [(step, self.seeds[0]) for step in steps if step.shared]
        return shared + [(step, seed) for seed in self.seeds for step in steps if not step.shared]

    def record(self, step: Step, seed: int) -> dict[str, Any]:
        """Return what is known of a step's last run; empty where it never began."""
        try:
            return json.loads((self.folder(step, seed) / RECORD).read_text())
        except (OSError, ValueError):
            return {}

    def is_done(self, step: Step, seed: int) -> bool:
        record = self.record(step, seed)
        folder = self.folder(step, seed)
        return (
            record.get("key") == self.key(step, seed)
            and record.get("seconds") is not None
            and all((folder / name).is_file() for name in record["files"])
        )

    def execute(self, step: Step, seed: int) -> None:
        """Run a step, continuing where a killed run of the same command stopped."""
        folder, key = self.folder(step, seed), self.key(step, seed)
        record = self.record(step, seed)
        if folder.exists() and record.get("key") != key:
            _put_aside(folder, str(record.get("key", "unknown")))
            record = {}
        folder.mkdir(parents=True, exist_ok=True)
        words = self.words(step, seed)
        spent = record.get("spent", 0.0)
        _write(folder / RECORD, {"key": key, "command": words, "spent": spent, "seconds": None})
        if words[0] == "fit" and (folder / "last.ckpt").is_file():
            words += ["--ckpt_path", str(folder / "last.ckpt")]
        began = time.perf_counter()
        run_command(words, step)
        seconds = spent + time.perf_counter() - began
        files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
        kept = [name for name in files if name != RECORD and "tfevents" not in name]
        _write(folder / RECORD, {"key": key, "command": words, "spent": seconds, "seconds": seconds, "files": kept})

    def rows(self) -> list[dict[str, Any]]:
        """Return the table's rows: where the samples are, and what they cost with all that they came from."""
        rows = []
        for seed in self.seeds:
            for condition, name in self.pipeline.rows.items():
                chain = self._chain(name)
                seconds = sum(self.record(step, seed).get("seconds") or 0.0 for step in chain if not step.shared)
                folder = self.folder(self.pipeline.steps[name], seed)
                rows.append(
                    {"condition": condition, "seed": seed, "samples": str(folder), "seconds": round(seconds, 1)}
                )
        return rows

    def _chain(self, name: str) -> list[Step]:
        """A step and everything upstream of it, each once."""
        steps = {name: self.pipeline.steps[name]}
        for upstream in self.pipeline.steps[name].upstream:
            steps |= {step.name: step for step in self._chain(upstream)}
        return list(steps.values())

    def make_table(self) -> None:
        """Compare the rows, unless the same ones have been compared already, and print the table."""
        if self.pipeline.table is None:
            return
        step = Step(TABLE, self.pipeline.table, shared=True)
        rows = self.rows()
        keys = [
            self.key(self.pipeline.steps[name], seed) for seed in self.seeds for name in self.pipeline.rows.values()
        ]
        key = hashlib.sha256(json.dumps([self.key(step, self.seeds[0]), keys]).encode()).hexdigest()
        stamp = self.root / "table.json"
        fresh = stamp.is_file() and json.loads(stamp.read_text()).get("key") == key
        if not (fresh and (self.root / "results.md").is_file() and (self.root / "results.json").is_file()):
            _write(self.root / "rows.json", rows)
            words = [*self.words(step, self.seeds[0]), "--rows", str(self.root / "rows.json")]
            run_command(words, step)
            _write(stamp, {"key": key})
        say((self.root / "results.md").read_text())
        say(f"results: {self.root / 'results.json'}   pictures: {self.root / 'grid.png'}")


def run_command(words: list[str], step: Step) -> None:
    """Run one `rcg` command: here, where importing Lightning again would cost more than a small step, or apart."""
    if step.devices == 1 and not step.launcher:
        with _clean_process():
            cli.run(words[0], words[1:])
        return
    command = [*step.launcher, sys.executable, "-m", "rcg_lightning.cli", *words]
    result = subprocess.run(command, check=False)
    if result.returncode:
        raise UserError(f"step {step.name} failed with exit code {result.returncode}: {shlex.join(command)}")


@contextmanager
def _clean_process() -> Iterator[None]:
    """Leave environment and torch's global settings as a step found them, and its memory free."""
    environment = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        if "torch" in sys.modules:
            from rcg_lightning.trainer import forget_run

            forget_run()


def _config_contents(words: list[str]) -> list[Any]:
    """Return the parsed configs that a command names, each with the fragments that it includes."""
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word in CONFIG_FLAGS]
    named += [word.partition("=")[2] for word in words if word.startswith(tuple(f"{flag}=" for flag in CONFIG_FLAGS))]
    return [_with_fragments(find_config(name)) for name in named]


def _with_fragments(path: Path) -> Any:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error

    def expand(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): expand(item) for key, item in value.items()}
        if isinstance(value, list):
            return [expand(item) for item in value]
        if isinstance(value, str) and value.endswith((".yaml", ".yml")) and (path.parent / value).is_file():
            return _with_fragments(path.parent / value)
        return value

    return expand(content)


def _put_aside(folder: Path, key: str) -> None:
    """Rename the folder of an outdated step: a training of days is never deleted by a changed config."""
    aside = folder.with_name(f"{folder.name}.until-{key[:8]}")
    number = 1
    while aside.exists():
        aside = folder.with_name(f"{folder.name}.until-{key[:8]}-{number}")
        number += 1
    folder.rename(aside)
    say(f"{folder}: its settings have changed, the old one is kept as {aside.name}")


def _write(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_text(json.dumps(content, indent=1))
        os.replace(draft, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; make room and run it again") from error


def pipeline(config: Path, seeds: int = 1, root: Path = Path("runs"), dry_run: bool = False) -> None:
    """Run every step of a pipeline that is not up to date, then print the table of its results.

    Args:
        config: a pipeline file, or the name of a shipped one: digits, mnist, cifar10.
        seeds: repeat everything for so many seeds; the table then has error bars.
        root: folder under which the pipeline's folder lies.
        dry_run: only say what would be run.
    """
    parsed = read_pipeline(find_config(str(config), "pipeline"))
    if seeds < 1:
        raise UserError(f"a pipeline runs for at least one seed, not {seeds}")
    run = Run(parsed, root / parsed.name, list(range(seeds)))
    todo = run.todo()
    for number, (step, seed) in enumerate(todo, 1):
        where = f"[{number}/{len(todo)}] {step.name}" + ("" if step.shared else f", seed {seed}")
        if run.is_done(step, seed):
            say(f"{where}: up to date")
        elif dry_run:
            say(f"{where}: rcg {shlex.join(run.words(step, seed))}")
        else:
            say(f"{where}: rcg {shlex.join(run.words(step, seed))}")
            run.execute(step, seed)
    if not dry_run:
        run.make_table()


def main(name: str, argv: list[str]) -> None:
    """Parse the command line of `rcg pipeline`; the pipeline may be given without --config."""
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    examples = ["rcg pipeline digits", "rcg pipeline digits --seeds 3", "rcg pipeline my_pipeline.yaml --root runs"]
    call(pipeline, name, argv, examples, names=False, config_file=False)
