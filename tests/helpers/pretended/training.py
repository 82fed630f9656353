"""Lightning trains on the pretended device wherever it is left to choose: ``accelerator: auto``, as on a GPU's machine.

``install`` changes what Lightning and the Trainer find, so whole commands run there without a change of theirs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors import accelerator_connector

from helpers.pretended.backend import GPU
from helpers.pretended.device import Record
from rcg_lightning import trainer as trainer_module
from rcg_lightning.core import fused_kernels
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.stages.base import Stage
from rcg_lightning.trainer import Trainer

STEPS = 4


class Pretended(Accelerator):
    """Lightning's accelerator of the pretended device."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [GPU]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "pretended"

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}


AcceleratorRegistry.register("pretended", Pretended, description="a GPU pretended in CPU memory")


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every Trainer that is left to choose train on the pretended device, in bf16-mixed as on a GPU."""
    connector = accelerator_connector._AcceleratorConnector
    elsewhere = connector._choose_strategy

    def strategy(self: Any) -> Any:
        there = self._accelerator_flag == "pretended"
        return SingleDeviceStrategy(GPU, self.accelerator) if there else elsewhere(self)

    def mixed(precision: Any, device: str) -> MixedPrecision:  # Lightning takes any accelerator but CPU for CUDA
        return MixedPrecision(precision, GPU.type if device == "cuda" else device)

    monkeypatch.setattr(connector, "_choose_auto_accelerator", staticmethod(lambda: "pretended"))
    monkeypatch.setattr(connector, "_choose_strategy", strategy)
    monkeypatch.setattr(accelerator_connector, "MixedPrecision", mixed)
    monkeypatch.setattr(trainer_module, "on_cuda", lambda accelerator: accelerator in ("auto", "gpu"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(fused_kernels, "DEVICES", fused_kernels.DEVICES | {GPU.type})


class RecordedSteps(Callback):
    """Records each training step after the first, which may check the data and fill caches."""

    def __init__(self) -> None:
        self.steps: list[Record] = []
        self._current: Record | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > 0:
            self._current = Record()
            self._current.start()

    def on_train_batch_end(self, *_: Any) -> None:
        if self._current is not None:
            self._current.stop()
            self.steps.append(self._current)
            self._current = None

    on_exception = on_train_batch_end  # type: ignore[assignment]


@dataclass(frozen=True)
class DeviceRun:
    """A finished training.

    Attributes:
        last: its checkpoint.
        half: its checkpoint after half of the steps.
        steps: what happened on the device in each step after the first.
        state: the stage's state at the end, on the CPU.
    """

    last: Path
    half: Path
    steps: list[Record]
    state: dict[str, torch.Tensor]


class HalfTime(Callback):
    """Saves a checkpoint after half of the steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == STEPS // 2 and not self.path.exists():
            trainer.save_checkpoint(self.path)


def fit(stage: Stage, data: ImageDataModule, folder: Path, precision: str, resume: Path | None = None) -> DeviceRun:
    """Train on the pretended device for STEPS steps, or to their end from the checkpoint ``resume``."""
    steps, half = RecordedSteps(), folder / "half.ckpt"
    trainer = Trainer(
        folder,
        STEPS,
        precision=precision,
        callbacks=[steps, HalfTime(half)],
        log_every_n_steps=1000,  # logged steps wait
        limit_val_batches=1,
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(stage, datamodule=data, ckpt_path=resume)
    assert trainer.strategy.root_device == GPU
    state = {name: value.cpu() for name, value in stage.state_dict().items()}
    return DeviceRun(folder / "last.ckpt", half, steps.steps, state)
