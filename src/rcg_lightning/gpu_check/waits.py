"""No step of a training and no sampling makes the host wait for the device."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch

from rcg_lightning.core.transfers import to_device
from rcg_lightning.gpu_check.agreement import conditions, samplers
from rcg_lightning.gpu_check.cases import CASES, Case, SmallData
from rcg_lightning.gpu_check.parts import Trial
from rcg_lightning.gpu_check.results import Finding
from rcg_lightning.gpu_check.target import Target
from rcg_lightning.stages.generator import Generator

FIRST, LAST, STEPS = 2, 9, 10


class WithoutWaits(pl.Callback):
    """Lets a wait raise from the second to the ninth step of a training, loading of batches included."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == FIRST:
            self.target.forbid_waits(True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == LAST:
            self.target.forbid_waits(False)


@dataclass
class Waits:
    """Trains and samples every case while a wait is an error.

    Args:
        target: the device.
        folder: for the data and the runs.
    """

    target: Target
    folder: Path

    def trials(self) -> Iterable[Trial]:
        """Return the checks: trainings, then samplings."""
        self.data = SmallData(self.folder / "data")
        rehearsed = ("RDM", "tokenizer")
        cases = [case for case in CASES if case.name in rehearsed or not self.target.rehearsal]
        yield from (Trial(f"{case.name}, training", partial(self.training, case)) for case in cases)
        yield from (Trial(f"{case.name}, sampling", partial(self.sampling, case)) for case in cases)

    def training(self, case: Case) -> list[Finding]:
        """Train ten steps as a user does."""
        data = self.data.module(case, self.target.batch_size)
        stage = case.stage(data.spec, self.data.encoder)
        try:
            with TemporaryDirectory(dir=self.folder) as run:
                self.target.fit(stage, data, Path(run), STEPS, callbacks=[WithoutWaits(self.target)])
        finally:
            self.target.forbid_waits(False)
        return [Finding(f"{case.name}, steps {FIRST} to {LAST} of a training", "no wait", "no wait", True)]

    def sampling(self, case: Case) -> list[Finding]:
        """Sample twice, the second time without waits, from seeds and conditions on the host, as commands have them."""
        stage = case.stage(self.data.module(case).spec, self.data.encoder)
        if not isinstance(stage, Generator):
            return []
        stage.to(self.target.device).eval()
        batch, sampler = conditions(16), samplers(case, stage)[0]

        def sample() -> None:
            raw, seeds = stage.sampled_conditions(batch), to_device(batch["seed"], stage.device)
            stage.sample_z(seeds, raw, stage.guidance, sampler)

        with torch.no_grad(), self.target.forward(self.target.precision):
            sample()
            with self.target.no_waits():
                sample()
        return [Finding(f"{case.name}, sampling", "no wait", "no wait", True)]
