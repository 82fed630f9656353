"""How fast the stages are at their published sizes, eager, compiled and as CUDA graphs, in three precisions."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch

from rcg_lightning.bench.execution import Execution, Mode, Precision
from rcg_lightning.bench.generators import DiTSampling, DiTTraining, MAGESampling, MAGETraining, TokenDecoding
from rcg_lightning.bench.measure import measure
from rcg_lightning.bench.report import size
from rcg_lightning.bench.representations import Extraction, RDMSampling, RDMTraining
from rcg_lightning.bench.surroundings import Scoring
from rcg_lightning.bench.workload import Workload
from rcg_lightning.gpu_check.cards import GOALS_ON, peak_rate
from rcg_lightning.gpu_check.parts import Trial
from rcg_lightning.gpu_check.results import Finding
from rcg_lightning.gpu_check.target import Target
from rcg_lightning.gpu_check.workloads import Frechet, LatentDecoding, Noise, rdm_through_trainer
from rcg_lightning.trainer import reset_torch

TIMES = 5  # bursts of which the median counts


@dataclass(frozen=True)
class Measurement:
    """A workload, how it computes, and the items per second that are aimed for."""

    workload: Workload
    mode: Mode = "eager"
    precision: Precision = "bf16"
    goal: float | None = None

    @property
    def name(self) -> str:
        """The workload with its precision and mode."""
        return f"{self.workload.name}, {self.precision}, {self.mode}"


def measurements() -> list[Measurement]:
    """Return all measurements on a GPU in order of worth: first what has a goal, then what explains it."""
    rdm, sampling = RDMTraining(512), RDMSampling(8192)
    guided, plain = MAGESampling(64, guided=True), MAGESampling(64, guided=False)
    mage, small, large = MAGETraining(64), DiTTraining(64, "B/2"), DiTTraining(64, "XL/2")
    first = [
        *(Measurement(rdm, mode, goal=250_000) for mode in ("eager", "graphed")),
        *(Measurement(sampling, mode, goal=10_000) for mode in ("eager", "graphed")),
        Measurement(mage, goal=2200),
        Measurement(small, goal=2500),
        Measurement(large, goal=500),
        Measurement(Extraction(256), goal=10_000),
        Measurement(plain, goal=200),
        Measurement(guided, goal=105),
        Measurement(Scoring(256), precision="float32", goal=4000),
        Measurement(TokenDecoding(64)),
        Measurement(LatentDecoding(16)),
        Measurement(DiTSampling(64, "B/2")),
        Measurement(DiTSampling(64, "XL/2")),
        Measurement(Noise(8192), precision="float32"),
        Measurement(Frechet(), precision="float32"),
    ]
    compiled = [
        Measurement(mage, "compiled", goal=2200),
        Measurement(small, "compiled", goal=2500),
        Measurement(large, "compiled", goal=500),
        Measurement(plain, "compiled", goal=200),
        Measurement(rdm, "compiled", goal=250_000),
        Measurement(sampling, "compiled", goal=10_000),
    ]
    sizes = [RDMTraining(2048), RDMSampling(64), RDMSampling(1024)]
    others = [Measurement(workload, mode) for workload in sizes for mode in ("eager", "graphed")]
    precisions = [
        Measurement(workload, "eager", precision)
        for workload in (rdm, sampling, mage, small)
        for precision in ("tf32", "float32")
    ]
    return [*first, *compiled, *others, *precisions]


def rehearsed() -> list[Measurement]:
    """Return measurements at sizes for a CPU."""
    tiny = [RDMTraining(2), RDMSampling(2), LatentDecoding(1, 4), Noise(2), Frechet(16)]
    return [Measurement(workload, precision="float32", goal=1.0) for workload in tiny]


@dataclass(frozen=True)
class Throughput:
    """Times workloads until the part's time is spent."""

    target: Target

    def trials(self) -> Iterable[Trial]:
        """Return the checks in order of worth; what there is no time for is left out."""
        every = rehearsed() if self.target.rehearsal else measurements()
        modes: tuple[Mode, ...] = ("eager",) if self.target.rehearsal else ("eager", "graphed")
        for measurement in every[:2]:
            yield Trial(measurement.name, partial(self.measured, measurement), required=False)
        for mode in modes:
            yield Trial(f"RDM through the Trainer, {mode}", partial(self.through_trainer, mode), required=False)
        for measurement in every[2:]:
            yield Trial(measurement.name, partial(self.measured, measurement), required=False)

    def measured(self, measurement: Measurement) -> list[Finding]:
        """Time a workload; also its memory, its operations and its waits."""
        execution, times = Execution(measurement.precision, measurement.mode), 1 if self.target.rehearsal else TIMES
        try:
            variants = measurement.workload.prepare(self.target.device, execution)
            with variants.settings:  # compiled noise would stay for the next workload
                cost = measure(variants.fast, variants.items, times, self.target.device)
        except torch.OutOfMemoryError:
            return [Finding(measurement.name, "does not fit into the memory")]
        finally:
            reset_torch()
        speed = 1 / cost.wall
        limit = peak_rate(self.target.name, measurement.precision)
        rate = f", {cost.flops * speed / 1e12:.3g} TFLOP/s" if cost.flops else ""
        share = f" ({cost.flops * speed / limit:.0%} of the peak)" if cost.flops and limit else ""
        saved = f", {size(round(cost.saved))} of activations an item" if cost.saved else ""
        memory = f"peak {size(cost.peak)}{saved}, {cost.syncs} waits a call"
        value = f"{speed:,.4g} {measurement.workload.unit}s/s{rate}{share}"
        return [Finding(measurement.name, value, self.against(speed, measurement.goal), note=memory)]

    def through_trainer(self, mode: Mode) -> list[Finding]:
        """Time the training of the RDM by the Trainer."""
        batch, steps = (4, 4) if self.target.rehearsal else (512, 300)
        execution = Execution("float32" if self.target.rehearsal else "bf16", mode)
        try:
            speed = rdm_through_trainer(self.target, execution, batch, steps)
        finally:
            reset_torch()
        name = f"RDM training through the Trainer, batch {batch}, {execution.precision}, {mode}"
        return [Finding(name, f"{speed:,.4g} representations/s", self.against(speed, 100_000))]

    def against(self, speed: float, goal: float | None) -> str:
        """Return a goal and whether it is met, on the cards that it is meant for."""
        if goal is None or not (self.target.rehearsal or any(card in self.target.name for card in GOALS_ON)):
            return ""
        return f"goal {goal:,.0f}/s {'met' if speed >= goal else 'not met'}"
