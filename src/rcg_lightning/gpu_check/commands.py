"""Real commands on the device: train, sample with compiled networks, and evaluate from a store."""

import logging
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rcg_lightning.gpu_check.parts import Trial
from rcg_lightning.gpu_check.results import Finding
from rcg_lightning.gpu_check.target import Target
from rcg_lightning.pipeline.runner import Command, clean_process

log = logging.getLogger(__name__)

NUMBER = 128


@dataclass(frozen=True)
class Commands:
    """Runs `rcg` commands in this process.

    Args:
        command: runs one by its name.
    """

    command: Command

    def __call__(self, *words: object) -> None:
        """Run one command, given its words."""
        name, *rest = map(str, words)
        log.warning("$ rcg %s", shlex.join([name, *rest]))
        with clean_process():
            self.command(name, rest)


@dataclass(frozen=True)
class CommandCheck:
    """Trains small networks, samples and evaluates.

    Args:
        target: the device.
        folder: for the runs.
        run: runs commands.
    """

    target: Target
    folder: Path
    run: Commands

    def trials(self) -> Iterable[Trial]:
        """Return the checks, each of which needs those before it."""
        return [
            Trial("rcg fit", self.fit),
            Trial("rcg sample", self.sample),
            Trial("rcg evaluate", self.evaluate),
            Trial("rcg sample --compile", self.sample_compiled),
        ]

    @property
    def number(self) -> int:
        """Samples of each command."""
        return 8 if self.target.rehearsal else NUMBER

    def fit(self) -> list[Finding]:
        """Train a generator and a classifier."""
        steps = 4 if self.target.rehearsal else 200
        for config in ("generator", "classifier"):
            self.run(*fit(self.target, f"digits/{config}", self.folder / config), "--trainer.max_steps", steps)
        return [Finding("rcg fit, generator and classifier of the digits", f"{steps} steps each", passed=True)]

    def sample(self) -> list[Finding]:
        """Sample without compilation."""
        self.run(*self.sampling("samples"))
        return [Finding("rcg sample", f"{self.number} images", passed=True)]

    def evaluate(self) -> list[Finding]:
        """Score the store of samples."""
        words = [
            "--data.source",
            "Digits",
            "--extractor",
            "ClassifierExtractor",
            "--accelerator",
            self.target.accelerator,
        ]
        classifier, out = self.folder / "classifier" / "classifier", self.folder / "metrics.json"
        samples = self.folder / "samples"
        self.run("evaluate", "--samples", samples, *words, "--extractor.folder", classifier, "--out", out)
        return [Finding("rcg evaluate, from a store", "metrics written", passed=out.is_file())]

    def sample_compiled(self) -> list[Finding]:
        """Sample with CUDA graphs, and compare; a rehearsal generates no code, which takes a compiler of C++."""
        mode = "false" if self.target.rehearsal else "reduce-overhead"
        self.run(*self.sampling("compiled"), "--compile", mode)
        plain, compiled = (np.load(self.folder / name / "samples.npz")["arr_0"] for name in ("samples", "compiled"))
        worst = int(np.abs(plain.astype(int) - compiled).mean(axis=(1, 2, 3)).max())
        return [Finding("rcg sample --compile reduce-overhead", f"an image differs by {worst}", "8 of 255", worst <= 8)]

    def sampling(self, name: str) -> list[object]:
        """Return the command that samples into a folder."""
        words = ["sample", "--checkpoint", self.folder / "generator" / "last.ckpt", "--out", self.folder / name]
        return [
            *words,
            "--number",
            self.number,
            "--npz",
            "true",
            "--png",
            "false",
            "--accelerator",
            self.target.accelerator,
        ]


def fit(target: Target, config: str, folder: Path) -> list[object]:
    """Return the words of a training without validation and progress bar."""
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.logger", "false", "--trainer.limit_val_batches", 0]
    where = ["--trainer.default_root_dir", folder, "--trainer.accelerator", target.accelerator]
    small = ["--data.source.limit", 64, "--data.batch_size", 16] if target.rehearsal else []
    return ["fit", "--config", config, *where, *quiet, *small]
