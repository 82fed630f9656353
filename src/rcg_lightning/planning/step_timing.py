"""What a stage costs on this machine: seconds of a step, from a few real ones, and memory, before any is taken."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from rcg_lightning.core.samplers import DDIM, LinspaceSpacing
from rcg_lightning.data.data_module import as_floats
from rcg_lightning.errors import UserError
from rcg_lightning.planning.machine import Machine
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.trainer import Trainer
from rcg_lightning.types import Batch, DataSpec

PROBE = 4  # images whose activations are measured
RUNTIME = 0.9e9  # bytes of the process itself, with torch and its libraries
SPARE = 1.3  # activations that kernels need for a moment
USABLE = 0.8  # of the free memory
LONGEST = 6.0  # seconds that timing one stage may take
STEPS = 4
SAVED = 3e8  # bytes of a checkpoint that are written in a second: 1.06 GB took 3.5 s on a virtual machine's disk
FEW_SAMPLES = 16  # of a grid: on a GPU, which few samples do not fill, they take as long as many more
ENCODED = {True: 8, False: 128}  # images that time an encoder on a CPU, and on a GPU, which needs many


@dataclass(frozen=True)
class StageCost:
    """What a training step takes.

    Attributes:
        batch: images that are computed together.
        accumulate: batches of a step.
        seconds: of a step, of ``batch * accumulate`` images, without reading them.
        memory: bytes at the peak.
        parameters: trained numbers.
        evaluation: seconds of one network evaluation for ``FEW_SAMPLES`` samples; 0 where the stage samples nothing.
        compile: whether steps are of compiled networks; None where that was not timed.
        compiling: seconds until they are compiled.
    """

    batch: int
    accumulate: int
    seconds: float
    memory: float
    parameters: int
    evaluation: float = 0.0
    compile: bool | None = None
    compiling: float = 0.0

    @property
    def images(self) -> int:
        """The images of a step."""
        return self.batch * self.accumulate

    @property
    def checkpoint(self) -> float:
        """Bytes of a checkpoint: weights, their EMA, and two moments."""
        return 16.0 * self.parameters

    @property
    def saving(self) -> float:
        """Seconds that a checkpoint takes, in which training waits."""
        return self.checkpoint / SAVED


def random_batch(spec: DataSpec, needs: frozenset[str], count: int, seed: int = 0) -> Batch:
    """Return a batch of noise with the keys that a stage needs, images as uint8."""
    generator = torch.Generator().manual_seed(seed)
    batch: dict[str, Tensor] = {"index": torch.arange(count), "view": torch.zeros(count, dtype=torch.int64)}
    for name in needs & {"image", "pair"}:
        batch[name] = torch.randint(0, 256, (count, *spec.image), generator=generator, dtype=torch.uint8)
    if "label" in needs and spec.classes:
        batch["label"] = torch.arange(count) % spec.classes
    for name in needs & spec.columns.keys():
        batch[name] = torch.randn(count, *spec.columns[name]["shape"], generator=generator)
    return batch  # type: ignore[return-value]


def bytes_of_step(stage: Stage) -> tuple[float, float, int]:
    """Return bytes that do not depend on the batch, bytes for each image, and the number of trained parameters.

    The activations that autograd stores for ``PROBE`` images are counted, on the CPU, whatever the device.
    """
    assert stage.spec is not None, "a stage is built before it is measured"
    stored: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = as_floats(random_batch(stage.spec, stage.needs, PROBE))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        stage.losses(batch)["loss"].detach()
    weights = {p.untyped_storage().data_ptr() for p in stage.parameters()}
    activations = sum(size for pointer, size in stored.items() if pointer not in weights)
    trained = sum(p.numel() for module in stage.trained_modules() for p in module.parameters() if p.requires_grad)
    held = sum(p.numel() for p in stage.parameters())
    return RUNTIME + 4.0 * (held + 3 * trained), SPARE * activations / PROBE, trained


def fitting_batch(fixed: float, each: float, wanted: int, memory: float) -> tuple[int, int]:
    """Return the images computed together, and over how many such batches a step accumulates, for ``wanted`` images.

    Raises:
        UserError: one image alone does not fit.
    """
    batch, accumulate = wanted, 1
    while fixed + batch * each > USABLE * memory and batch > 1:
        batch, accumulate = batch // 2, 2 * accumulate
    need = fixed + batch * each
    if need > USABLE * memory:
        raise UserError(
            f"not enough memory for one image: {need / 1e9:.1f} GB are needed, {memory / 1e9:.1f} GB are free: "
            "lower --size, or close other programs"
        )
    return batch, accumulate


def measure_stage(stage: Stage, spec: DataSpec, wanted: int, machine: Machine, compilable: float = 0.0) -> StageCost:
    """Return what a step of ``wanted`` images costs; trains the stage for a few steps on noise.

    Args:
        stage: not built yet.
        spec: of its data.
        wanted: images of a step.
        machine: that trains.
        compilable: seconds of training for which networks are compiled, where that saves more than twice what it costs.

    Raises:
        UserError: one image alone does not fit in memory.
    """
    stage.build(spec)
    fixed, each, parameters = bytes_of_step(stage)
    batch, accumulate = fitting_batch(fixed, each, wanted, machine.memory)
    seconds, memory = accumulate * min(_timed_steps(stage, spec, batch, machine)), fixed + batch * each
    compile, compiling = None, 0.0
    if compilable > 0:
        first, *others = _timed_steps(stage, spec, batch, machine, compile=True)
        compiled = accumulate * min(others)
        compile = compilable * (1 - compiled / seconds) > 2 * first
        seconds, compiling = (compiled, first) if compile else (seconds, 0.0)
    evaluation = _evaluation(stage, spec, machine)
    return StageCost(batch, accumulate, seconds, memory, parameters, evaluation, compile, compiling)


def _timed_steps(stage: Stage, spec: DataSpec, batch: int, machine: Machine, compile: bool = False) -> list[float]:
    """Return the seconds of each of a few steps."""
    stopwatch = _Stopwatch(machine, float("inf") if compile else LONGEST)
    with tempfile.TemporaryDirectory(prefix="rcg-plan-") as folder:
        trainer = Trainer(
            folder,
            STEPS,
            accelerator=machine.device,
            logger=False,
            enable_progress_bar=False,
            limit_val_batches=0,
            callbacks=[stopwatch],
            compile=compile,
        )
        trainer.fit(stage, _NoiseData(spec, stage.needs, batch))
    if trainer.interrupted:
        raise KeyboardInterrupt
    return stopwatch.seconds


def _evaluation(stage: Stage, spec: DataSpec, machine: Machine) -> float:
    """Return the seconds of one network evaluation for ``FEW_SAMPLES`` samples."""
    if not isinstance(stage, DiffusionStage):
        return 0.0
    stage.to(machine.device)
    raw = stage.condition.observe(random_batch(spec, stage.condition.needs, FEW_SAMPLES))
    batch: Any = {"seed": torch.arange(FEW_SAMPLES)}
    timed, given = DDIM(2, spacing=LinspaceSpacing()), tuple(part.to(machine.device) for part in raw)

    def sample() -> None:
        stage.sample(batch, sampler=timed, raw=given, tile=FEW_SAMPLES)

    return _seconds_after(sample, sample, machine) / timed.steps


def seconds_per_image(encoder: Encoder, spec: DataSpec, machine: Machine) -> float:
    """Return the seconds that a frozen encoder takes for an image of a batch."""
    count = ENCODED[machine.on_cpu]
    images = as_floats(random_batch(spec, frozenset({"image"}), count))["image"].to(machine.device)
    warm_up = images[:1] if machine.on_cpu else images  # a GPU chooses its kernels by the size of a batch
    with torch.no_grad():
        return _seconds_after(lambda: encoder(warm_up), lambda: encoder(images), machine) / count


def _seconds_after(warm_up: Callable[[], object], work: Callable[[], object], machine: Machine) -> float:
    """Return the seconds of ``work``, once what a first call alone costs is spent in ``warm_up``."""
    warm_up()
    start = machine.now()
    work()
    return machine.since(start)


class _Stopwatch(Callback):
    """Times each step; ends training where these and the next would take longer than ``longest`` seconds."""

    def __init__(self, machine: Machine, longest: float) -> None:
        self.machine, self.longest, self.seconds, self._start = machine, longest, list[float](), machine.now()

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = self.machine.now()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seconds.append(self.machine.since(self._start))
        if sum(self.seconds) + self.seconds[-1] > self.longest:
            trainer.should_stop = True


class _NoiseData(pl.LightningDataModule):
    """Endless batches of noise with the spec of the real data."""

    def __init__(self, spec: DataSpec, needs: frozenset[str], batch_size: int) -> None:
        super().__init__()
        self.spec, self.needs, self.batch_size = spec, needs, batch_size

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(dataset=_Noise(random_batch(self.spec, self.needs, self.batch_size)), batch_size=None)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        return []

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int = 0) -> Batch:
        return as_floats(batch)


class _Noise(IterableDataset[Batch]):
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield dict(self.batch)  # type: ignore[misc]
