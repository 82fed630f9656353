"""Workloads that `rcg bench` doesn't time: what matters on a GPU only."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch

from rcg_lightning.bench.execution import COMPILE_MODES, Execution
from rcg_lightning.bench.frozen import DIM, RandomKL
from rcg_lightning.bench.measure import wait
from rcg_lightning.bench.workload import Variants, Workload, shipped_stage
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.core.frechet import frechet_distance, moments
from rcg_lightning.gpu_check.cases import CASES, SmallData
from rcg_lightning.gpu_check.target import Target


class LatentDecoding(Workload):
    """Stable Diffusion's KL decoder: the part of a DiT's sampling that runs once per image."""

    name = "KL, latents to images"

    def __init__(self, batch: int, side: int = 32) -> None:
        self.batch, self.side = batch, side

    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        execution = execution or Execution.usual(device)
        autoencoder = RandomKL()
        autoencoder.precision = execution.frozen_precision
        latents = torch.randn(self.batch, 4, self.side, self.side, device=device)

        @torch.no_grad()
        def work() -> None:
            autoencoder.decode(latents)

        return Variants(work, self.batch)


class Noise(Workload):
    """Normal noise by seed, of one step of the RDM's sampling."""

    name = "noise by seed"
    unit = "vector"

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        seeds = torch.arange(self.batch, device=device)
        return Variants(lambda: SeededNoise(seeds).normal(1, DIM), self.batch)


class Frechet(Workload):
    """The Fréchet distance of two sets of features."""

    unit = "distance"

    def __init__(self, dim: int = 2048) -> None:
        self.dim, self.name = dim, f"Fréchet distance, {dim} dimensions"

    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        features = torch.randn(2, 3 * self.dim, self.dim, device=device, dtype=torch.float64)
        sets = [moments(features[0]), moments(1.1 * features[1])]
        return Variants(lambda: frechet_distance(*sets[0], *sets[1]), 1)


class Clock(pl.Callback):
    """Times the second half of a training.

    Attributes:
        seconds: of a step.
    """

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps, self.seconds = device, steps, float("inf")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps // 2:
            wait(self.device)
            self._start = time.perf_counter()
        if trainer.global_step == self.steps:
            wait(self.device)
            self.seconds = (time.perf_counter() - self._start) / (self.steps - self.steps // 2)


def rdm_through_trainer(target: Target, execution: Execution, batch: int, steps: int) -> float:
    """Return the representations per second of the official RDM's training by the Trainer."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        data = SmallData(folder / "data", DIM).module(CASES[0], batch)
        stage, clock = shipped_stage("imagenet256/rdm", data.spec), Clock(target.device, steps)
        compile: Any = COMPILE_MODES.get(execution.mode, False)
        target.fit(stage, data, folder / "run", steps, execution.precision, callbacks=[clock], compile=compile)
    return batch / clock.seconds
