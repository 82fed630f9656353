"""The device that `rcg check-gpu` checks, or the CPU in its place for a rehearsal."""

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rcg_lightning.bench.execution import Execution, Precision
from rcg_lightning.bench.measure import wait
from rcg_lightning.bench.report import size
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.stages.base import Stage
from rcg_lightning.trainer import Trainer, pick_device

PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16")


@dataclass(frozen=True)
class Target:
    """A device with what only an NVIDIA GPU has; on the CPU the same calls do nothing.

    Attributes:
        device: the device.
        rehearsal: whether every check runs at a tiny size.
    """

    device: torch.device
    rehearsal: bool = False

    @classmethod
    def choose(cls, rehearsal: bool) -> "Target":
        """Return the GPU, or for a rehearsal the CPU; UserError if there is no GPU."""
        return cls(pick_device("cpu" if rehearsal else "cuda"), rehearsal)

    @property
    def on_gpu(self) -> bool:
        """Whether it is an NVIDIA GPU."""
        return self.device.type == "cuda"

    @property
    def accelerator(self) -> str:
        """Lightning's name of it."""
        return "cuda" if self.on_gpu else "cpu"

    @property
    def precision(self) -> Precision:
        """The trainer's default."""
        return Execution.usual(self.device).precision

    @property
    def batch_size(self) -> int:
        """Images of a training step."""
        return 8 if self.rehearsal else 32

    @property
    def name(self) -> str:
        """The card's name, by which peaks and goals are found."""
        return torch.cuda.get_device_name(self.device) if self.on_gpu else platform.processor() or platform.machine()

    @property
    def card(self) -> str:
        """Name, memory and compute capability."""
        if not self.on_gpu:
            return self.name
        found = torch.cuda.get_device_properties(self.device)
        return f"{self.name}, {size(found.total_memory)}, compute capability {found.major}.{found.minor}"

    @property
    def driver(self) -> str:
        """Name, driver version and limits of the first card; nvidia-smi needs no memory of it."""
        if not self.on_gpu:
            return self.name
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or "0"
        query = "--query-gpu=name,driver_version,clocks.max.sm,power.limit"
        words = ["nvidia-smi", f"--id={first}", query, "--format=csv,noheader"]
        try:
            found = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            return f"a GPU ({type(error).__name__} of nvidia-smi)"
        return found.stdout.strip()

    def usable(self) -> bool:
        """Whether the device still works: an illegal memory access makes every later call of the process fail."""
        try:
            wait(self.device)
        except RuntimeError:
            return False
        return True

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        """Raise in the block where the host waits for the device."""
        self.forbid_waits(True)
        try:
            yield
        finally:
            self.forbid_waits(False)

    def forbid_waits(self, forbidden: bool) -> None:
        """Let a wait of the host for the device raise, or allow it again."""
        if self.on_gpu:
            torch.cuda.set_sync_debug_mode("error" if forbidden else "default")

    def forward(self, precision: Precision) -> AbstractContextManager[None]:
        """Return the context that computes in a precision as the trainer and `rcg sample` do."""
        return Execution(precision).forward(self.device)

    def fit(
        self,
        stage: Stage,
        data: ImageDataModule,
        folder: Path,
        steps: int,
        precision: Precision | None = None,
        start: Path | None = None,
        **settings: Any,
    ) -> None:
        """Train a stage by the Trainer, without validation.

        Args:
            folder: of the run.
            precision: None for the trainer's default.
            start: checkpoint to continue.
            settings: further ones of the Trainer.
        """
        trainer = Trainer(folder, steps, **self.trainer_settings(precision or self.precision), **settings)
        trainer.fit(stage, datamodule=data, ckpt_path=start)

    def trainer_settings(self, precision: Precision) -> dict[str, Any]:
        """Return the settings of a quiet trainer without validation in a precision."""
        lightning = {"accelerator": self.accelerator, "precision": "bf16-mixed" if precision == "bf16" else "32-true"}
        quiet = {"logger": False, "enable_progress_bar": False, "limit_val_batches": 0}
        return {**lightning, "float32_precision": "highest" if precision == "float32" else "high", **quiet}
