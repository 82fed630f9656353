"""Every stage and sampler computes on the device what it computes on the CPU, within stated tolerances."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from rcg_lightning.bench.execution import Precision
from rcg_lightning.bench.training import on_device
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.masking import ParallelDecoding
from rcg_lightning.core.samplers import DDIM, Sampler
from rcg_lightning.gpu_check.cases import CASES, DIM, Case, SmallData
from rcg_lightning.gpu_check.host_randomness import HostRandomness
from rcg_lightning.gpu_check.parts import Trial
from rcg_lightning.gpu_check.results import Finding
from rcg_lightning.gpu_check.target import PRECISIONS, Target
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.masked import MaskedStage
from rcg_lightning.types import Batch

STEPS, SAMPLES = 2, 8
# largest relative error, ‖device - CPU‖ / ‖CPU‖; of tokens the largest share that differs
TOLERANCES: dict[Precision, dict[str, float]] = {
    "float32": {"loss": 1e-4, "gradient": 2e-3, "update": 2e-3, "EMA": 2e-3, "samples": 2e-3, "tokens": 0.02},
    "tf32": {"loss": 5e-3, "gradient": 5e-2, "update": 5e-2, "EMA": 5e-2, "samples": 5e-2, "tokens": 0.3},
    "bf16": {"loss": 3e-2, "gradient": 2e-1, "update": 2e-1, "EMA": 2e-1, "samples": 2e-1, "tokens": 1.0},
}


class Watch(pl.Callback):
    """Notes losses, first gradients, first update of the weights, and the move of the EMA weights in a training.

    Attributes:
        seen: vectors in float64 on the CPU, by name.
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.seen: dict[str, Tensor] = {}
        self._gradients: dict[int, list[Tensor]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before, self._average = vector(trained(pl_module)), averages(pl_module)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._gradients.setdefault(id(optimizer), [vector(p.grad for p in weights)])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        self.losses.append(vector(logged[name] for name in sorted(logged) if "gradient" not in name))
        if len(self.losses) == 1:
            self.seen["gradient"] = torch.cat([part for parts in self._gradients.values() for part in parts])
            self.seen["update"] = vector(trained(pl_module)) - self._before

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen["loss"] = torch.cat(self.losses)
        if len(self._average):
            self.seen["EMA"] = averages(pl_module) - self._average


def trained(stage: pl.LightningModule) -> Iterator[Tensor]:
    """Return the weights that take a gradient."""
    return (parameter for parameter in stage.parameters() if parameter.requires_grad)


def averages(stage: pl.LightningModule) -> Tensor:
    """Return the EMA weights of a generator as a vector; an empty one where there are none."""
    has_any = isinstance(stage, Generator) and stage.ema is not None
    return vector(stage.ema.averaged().parameters() if has_any else [])  # type: ignore[union-attr]


def vector(tensors: Iterable[Tensor | None]) -> Tensor:
    """Return all values of some tensors, one after the other, in float64 on the CPU."""
    parts = [tensor.detach().to("cpu", torch.float64).flatten() for tensor in tensors if tensor is not None]
    return torch.cat([torch.empty(0, dtype=torch.float64), *parts])


@dataclass
class Agreement:
    """Compares the device with the CPU, case by case.

    Args:
        target: the device.
        folder: for the data and the runs.
    """

    target: Target
    folder: Path
    _reference: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def trials(self) -> Iterable[Trial]:
        """Return the checks: noise, every case in float32, one seed in three batches, the other precisions."""
        self.data = SmallData(self.folder / "data")
        yield Trial("noise of the seeds", self.noise)
        yield Trial("random numbers drawn on the CPU", self.host_randomness)
        yield Trial("AdamW, fused", self.adamw)
        rehearsed = ("RDM", "BigGAN")  # the CPU emulates bf16 slowly
        yield from (Trial(f"{case.name}, float32", partial(self.compare, case, "float32")) for case in CASES)
        cases = [case for case in CASES if case.name in rehearsed or not self.target.rehearsal]
        for case in cases:
            for precision in ("float32", "bf16") if case.name in ("RDM", "DiT", "BigGAN") else ():
                yield Trial(f"{case.name}, seed 17", partial(self.one_seed, case, precision))
        for precision in PRECISIONS[1:]:
            yield from (Trial(f"{case.name}, {precision}", partial(self.compare, case, precision)) for case in cases)

    def compare(self, case: Case, precision: Precision) -> list[Finding]:
        """Train and sample on the device in a precision, and compare with the CPU in float32."""
        if case.name not in self._reference:
            self._reference[case.name] = self.computed(case, Target(torch.device("cpu")), "float32")
        found = self.computed(case, self.target, precision)
        tolerances = {name: value * case.looseness for name, value in TOLERANCES[precision].items()}
        errors = {name: error(found[name], value) for name, value in self._reference[case.name].items()}
        limits = {name: tolerances[name.partition(" ")[0]] for name in errors}
        within = all(value <= limits[name] for name, value in errors.items())
        values = ", ".join(f"{name} {value:.1e}" for name, value in errors.items())
        return [
            Finding(f"{case.name}, {precision}", values, ", ".join(f"{limit:.0e}" for limit in limits.values()), within)
        ]

    def computed(self, case: Case, target: Target, precision: Precision) -> dict[str, Tensor]:
        """Return samples, losses, gradients, an update and EMA weights of a case."""
        data = self.data.module(case, self.target.batch_size)
        stage = case.stage(data.spec, self.data.encoder, linear=True)
        found = self.samples(case, stage, target, precision) if isinstance(stage, Generator) else {}
        watch = Watch()
        with TemporaryDirectory(dir=self.folder) as run, HostRandomness():
            target.fit(stage.cpu(), data, Path(run), STEPS, precision, callbacks=[watch])
        return watch.seen | found

    def samples(self, case: Case, stage: Generator, target: Target, precision: Precision) -> dict[str, Tensor]:
        """Return z of a few seeds by each sampler, guided where there is a null condition."""
        stage.to(target.device).eval()
        batch = on_device(conditions(SAMPLES), target.device)
        guided = stage.conditioner.drop > 0 and not isinstance(stage.condition, NoCondition)
        kind, found = "tokens" if isinstance(stage, MaskedStage) else "samples", {}
        with torch.no_grad(), target.forward(precision):
            for sampler in samplers(case, stage):
                raw, guidance = stage.condition.sample(batch), Guidance(1.5 if guided else 1.0)
                name = f"{kind} by {type(sampler).__name__}" if sampler is not None else kind
                found[name] = stage.sample_z(batch["seed"], raw, guidance, sampler).cpu()
        return found

    def noise(self) -> list[Finding]:
        """Compare the noise that names a sample: its integers to the bit, its normal numbers to rounding."""
        seeds = torch.arange(0, 2**40, 2**40 // 64)
        host, other = SeededNoise(seeds, 3), SeededNoise(seeds.to(self.target.device), 3)
        exact = {
            "integers": (host.integers(5, 1000), other.integers(5, 1000)),
            "uniform numbers": (host.uniform(5, 333), other.uniform(5, 333)),
        }
        found = [
            Finding(f"noise: {name}", "equal" if same else "differ", "bit-equal", same)
            for name, (a, b) in exact.items()
            for same in [torch.equal(a, b.cpu())]
        ]
        worst = (host.normal(5, 333) - other.normal(5, 333).cpu()).abs().max().item()
        return [*found, Finding("noise: normal numbers", f"{worst:.1e}", "1e-5", worst <= 1e-5)]

    def host_randomness(self) -> list[Finding]:
        """Check that both devices train on the same random numbers here."""
        drawn = []
        for device in (torch.device("cpu"), self.target.device):
            torch.manual_seed(0)
            with HostRandomness():
                x = torch.rand(100, device=device)
                kept, _ = torch.native_dropout(x, 0.5, True)
                untouched, _ = torch.native_dropout(x, 0.5, False)
                parts = [x, torch.randn_like(x), x.new_empty(9).normal_(), kept, untouched, torch.bernoulli(x)]
                drawn.append(vector([*parts, torch.randperm(9, device=device)]))
        same = torch.equal(*drawn)
        return [Finding("random numbers drawn on the CPU", "equal" if same else "differ", "bit-equal", same)]

    def adamw(self) -> list[Finding]:
        """Compare ten fused steps of AdamW under the same gradients."""
        ends = []
        for device in (torch.device("cpu"), self.target.device):
            generator = torch.Generator().manual_seed(0)
            weight = torch.nn.Parameter(torch.randn(1000, generator=generator).to(device))
            optimizer = torch.optim.AdamW([weight], lr=1e-2, fused=True)
            for _ in range(10):
                weight.grad = torch.randn(1000, generator=generator).to(device)
                optimizer.step()
            ends.append(weight.detach().cpu())
        worst = error(ends[1], ends[0])
        return [Finding("AdamW, fused, 10 steps", f"{worst:.1e}", "1e-6", worst <= 1e-6)]

    def one_seed(self, case: Case, precision: Precision) -> list[Finding]:
        """Sample seed 17 in batches of 1, 64 and 100: the images must be equal to the last bit."""
        stage = case.stage(self.data.module(case).spec, self.data.encoder)
        assert isinstance(stage, Generator)
        stage.to(self.target.device)
        sampler = samplers(case, stage)[0]
        whole: Any = on_device(conditions(100), self.target.device)
        found = []
        for part in (slice(17, 18), slice(0, 64), slice(0, 100)):
            batch: Any = {name: value[part] for name, value in whole.items()}
            with self.target.forward(precision):
                found.append(stage.sample(batch, sampler=sampler)[17 - part.start].cpu())
        same = all(torch.equal(found[0], other) for other in found[1:])
        value = "equal" if same else "differ"
        return [Finding(f"{case.name}, {precision}, seed 17 in batches of 1, 64 and 100", value, "bit-equal", same)]


@cache
def _conditions(count: int) -> Mapping[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(count, DIM, generator=generator)
    return {
        "seed": torch.arange(count),
        "label": torch.arange(count) % 10,
        "representation": vectors,
        "instance": vectors,
    }


def conditions(count: int) -> Batch:
    """Return seeds with a condition of every kind."""
    return dict(_conditions(count))  # type: ignore[return-value]


def samplers(case: Case, stage: Stage) -> tuple[Sampler | None, ...]:
    """Return the samplers of a case, with few steps; a GAN has none."""
    if isinstance(stage, AdversarialStage):
        return (None,)
    return (ParallelDecoding(4),) if isinstance(stage, MaskedStage) else case.samplers or (DDIM(6, eta=1.0),)


def error(found: Tensor, expected: Tensor) -> float:
    """Return the relative error of a tensor, or of integers the share that differs; infinite where it isn't finite."""
    if not expected.is_floating_point():
        return (found != expected).double().mean().item()
    value = ((found - expected).double().norm() / expected.double().norm().clamp(min=1e-30)).item()
    return value if value == value else float("inf")
