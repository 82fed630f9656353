"""A run that stops and continues ends as one that does not: six steps against three and three."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from rcg_lightning.gpu_check.agreement import error, vector
from rcg_lightning.gpu_check.cases import CASES, Case, SmallData
from rcg_lightning.gpu_check.parts import Trial
from rcg_lightning.gpu_check.results import Finding
from rcg_lightning.gpu_check.target import Target

STEPS, HALF = 6, 3
RESUMED = ("RDM", "DiT", "U-Net", "MAGE", "tokenizer", "MoCo v3", "BigGAN", "StyleGAN2")


class SaveHalf(pl.Callback):
    """Saves a checkpoint after half of the steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == HALF:
            trainer.save_checkpoint(self.path)


@dataclass
class Resumption:
    """Compares resumed runs with unbroken ones, with deterministic algorithms and without.

    Args:
        target: the device.
        folder: for the data and the runs.
    """

    target: Target
    folder: Path

    def trials(self) -> Iterable[Trial]:
        """Return the checks: equal to the bit with deterministic algorithms; only measured without."""
        self.data = SmallData(self.folder / "data")
        rehearsed = ("RDM", "BigGAN")
        for deterministic in (True, False):
            for case in CASES:
                if case.name in (rehearsed if self.target.rehearsal else RESUMED):
                    name = f"{case.name}, {'' if deterministic else 'not '}deterministic"
                    yield Trial(name, partial(self.resumed, case, deterministic, name), required=deterministic)

    def resumed(self, case: Case, deterministic: bool, name: str) -> list[Finding]:
        """Train six steps, continue from the third in another run, and compare all tensors of the stages."""
        with TemporaryDirectory(dir=self.folder) as scratch:
            half = Path(scratch) / "half.ckpt"
            try:
                unbroken = self.trained(case, Path(scratch) / "unbroken", deterministic, SaveHalf(half))
                continued = self.trained(case, Path(scratch) / "continued", deterministic, start=half)
            finally:
                torch.use_deterministic_algorithms(False)
        same = all(torch.equal(tensor, continued[key]) for key, tensor in unbroken.items())
        worst = error(vector(continued.values()), vector(unbroken.values()))
        value = "equal" if same else f"differ, {worst:.1e} of the norm"
        note = "" if deterministic else "without deterministic algorithms nothing is promised"
        return [Finding(f"6 steps against 3 + 3: {name}", value, "bit-equal", same if deterministic else None, note)]

    def trained(
        self, case: Case, folder: Path, deterministic: bool, *callbacks: pl.Callback, start: Path | None = None
    ) -> dict[str, Tensor]:
        """Return the tensors of a stage after its last step."""
        data = self.data.module(case, self.target.batch_size)
        stage = case.stage(data.spec, self.data.encoder)
        self.target.fit(stage, data, folder, STEPS, start=start, callbacks=list(callbacks), deterministic=deterministic)
        return {name: tensor.detach().cpu() for name, tensor in stage.state_dict().items()}
