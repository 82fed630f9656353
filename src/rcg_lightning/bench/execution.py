"""How a workload computes: its precision, and whether its networks are compiled or recorded as CUDA graphs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal, cast

import torch
from torch import nn

from rcg_lightning.callbacks.compilation import Compilation
from rcg_lightning.core.precision import FrozenPrecision, float32_precision
from rcg_lightning.networks.cast_weights import cast_weights
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.sampling import GuidedSampling
from rcg_lightning.trainer import Trainer, default_precision

Precision = Literal["float32", "tf32", "bf16"]
Mode = Literal["eager", "compiled", "graphed"]

FROZEN: dict[Precision, FrozenPrecision] = {"float32": "highest", "tf32": "high", "bf16": "bf16"}
COMPILE_MODES = {"compiled": "default", "graphed": "reduce-overhead"}


@dataclass(frozen=True)
class Execution:
    """How a workload computes, as the trainer's ``precision`` and ``compile`` make a run compute.

    Attributes:
        precision: bf16 is autocast, with TF32 for what stays in float32; TF32 is that of NVIDIA GPUs.
        mode: compiled by ``torch.compile``; graphed is its mode ``reduce-overhead``, CUDA graphs on NVIDIA GPUs.
    """

    precision: Precision = "float32"
    mode: Mode = "eager"

    @classmethod
    def usual(cls, device: torch.device) -> "Execution":
        """Return how the trainer computes on ``device`` unless a config decides otherwise."""
        return cls("bf16" if default_precision(device.type) == "bf16-mixed" else "float32")

    @property
    def frozen_precision(self) -> FrozenPrecision:
        """The same precision as a frozen network's setting."""
        return FROZEN[self.precision]

    @contextmanager
    def matmuls(self) -> Iterator[None]:
        """Context of a whole step, its backward pass included, with the precision of float32 matmuls."""
        with float32_precision("highest" if self.precision == "float32" else "high"):
            yield

    @contextmanager
    def forward(self, device: torch.device) -> Iterator[None]:
        """Context of a forward pass, with autocast where the precision is bf16."""
        half = self.precision == "bf16"  # without a cache, as Lightning's
        with self.matmuls(), torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            yield

    def training(self, stage: Stage) -> Compilation | None:
        """Compile the networks of a stage for training; its ``on_train_batch_start`` precedes each step."""
        if self.mode == "eager":
            return None
        compilation = Compilation(COMPILE_MODES[self.mode])
        trainer = SimpleNamespace(accumulate_grad_batches=1)  # all that the callback reads
        compilation.on_train_start(cast(Trainer, trainer), stage)
        return compilation

    def sampling(self, generator: Generator, device: torch.device) -> ExitStack:
        """Prepare sampling as `rcg sample` does: weights are cast once, networks and noise compiled, until closed."""
        settings = ExitStack()
        with self.forward(device):
            settings.enter_context(cast_weights(generator.sampling_networks(), device))
        if self.mode != "eager":
            compilation, trainer = Compilation(COMPILE_MODES[self.mode]), SimpleNamespace()
            compilation.on_predict_start(cast(Trainer, trainer), GuidedSampling(generator))
            settings.callback(compilation.on_predict_end)
        return settings

    def network(self, network: nn.Module) -> None:
        """Compile a frozen network."""
        if self.mode != "eager":
            network.compile(mode=COMPILE_MODES[self.mode])
