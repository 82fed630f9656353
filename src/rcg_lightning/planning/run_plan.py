"""From the user's wishes to a plan: examine the data, choose the stages, measure them, share the budget."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rcg_lightning.artifacts import fingerprint
from rcg_lightning.config import construct, describe
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.image_folders import FolderSource
from rcg_lightning.data.image_split import ImageSplit, Source, fixed_subset
from rcg_lightning.data.transforms import AsIs, CenterCrop, Transform, Views
from rcg_lightning.planning.data_choice import check_condition, choose_source
from rcg_lightning.planning.data_report import FEW, DataReport, examine
from rcg_lightning.planning.duration import duration
from rcg_lightning.planning.encoder_choice import MOCO, EncoderChoice, choose_encoder
from rcg_lightning.planning.machine import Machine
from rcg_lightning.planning.plan import BASELINES, EVALUATION_ENCODER, Costs
from rcg_lightning.planning.stage_choice import (
    batch_size,
    default_generator,
    encoder_stage,
    generator_stage,
    rdm_stage,
)
from rcg_lightning.planning.step_timing import StageCost, measure_stage, seconds_per_image
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.pretrained.timm_encoder import TimmEncoder
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.ssl import MoCoV3Stage
from rcg_lightning.types import DataSpec

SIZE_ON_CPU, SIZE_ON_GPU = 32, 64
READ = 24  # images that are read to time it
PRINCIPAL_DIM = 64
MOST_EVALUATION = 10_000
STORE_SHARE = 0.2  # of the budget
WORTH_COMPILING, GENERATOR_SHARE = 1200.0, 0.7  # seconds of a budget, and the share that is the generator's
FEW_FOR_NOISE = 1000  # images below which a generator copies what it is conditioned on


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; None leaves the choice to the plan."""

    data: str
    size: int | None = None
    encoder: str = "auto"
    generator: str | None = None
    condition: str = "representation"
    stop_after: str | None = None
    seeds: int = 1
    compare: bool = False


@dataclass
class Choices:
    """What a run will do, before its steps are known.

    Attributes:
        source, transform, views: of the data module.
        report: of the data.
        sheet: thumbnails for the contact sheet.
        shape: (C, H, W) of an image.
        encoder: None where no representations are needed.
        generator: name of its kind.
        stages: by name, in the order of training.
        costs: as measured.
        dim: of a representation.
        workers: loader processes.
        version: identity of the images.
    """

    source: Source
    transform: Transform
    views: Views | None
    report: DataReport
    sheet: list[Any]
    shape: tuple[int, int, int]
    encoder: EncoderChoice | None
    generator: str
    dim: int
    workers: int
    version: str
    stages: dict[str, Stage] = field(default_factory=dict)
    costs: Costs | None = None


def examine_data(wishes: Wishes, machine: Machine, known: tuple[str, DataReport] | None = None) -> Choices:
    """Report the data and choose size, encoder and generator; nothing is trained or measured yet.

    Args:
        wishes: of the user.
        machine: that trains.
        known: version and report of an earlier run, which holds for the same images.

    Raises:
        UserError: data that cannot work, or a choice that does not exist.
    """
    source = choose_source(wishes.data, wishes.condition in ("class", "joint"))
    data = ImageDataModule(source)
    data.prepare_data()
    check_condition(wishes.condition, source)
    train, evaluation = data.images("train"), data.images("eval")
    if known is not None and known[0] == version_of(source, train):
        report, sheet = known[1], []
    else:
        report, sheet = examine(train, evaluation, machine)
    report.check(wishes.data)
    fixed = train.shape  # all images have it
    changed: dict[str, Any] = {"channels": 1} if report.is_grey and train.channels == 3 else {}
    if isinstance(source, FolderSource) and len(evaluation) > MOST_EVALUATION:
        halvings = math.ceil(math.log2(len(evaluation) / MOST_EVALUATION))
        changed["eval_share"] = source.eval_share / 2**halvings  # in powers of two, so that the split seldom changes
    if changed:
        source = type(source)(**{**source._arguments, **changed})
        data = ImageDataModule(source)
        report.train, report.evaluation = len(data.images("train")), len(data.images("eval"))
    channels = data.images("train").channels
    size = wishes.size or (fixed[1] if fixed else SIZE_ON_CPU if machine.on_cpu else SIZE_ON_GPU)
    as_is = fixed is not None and fixed[1:] == (size, size)
    shape = (channels, size, size)
    encoder = None
    if wishes.condition in ("representation", "joint"):
        encoder = choose_encoder(wishes.encoder, report, machine, size)
    return Choices(
        source=source,
        transform=AsIs() if as_is else CenterCrop(size),
        views=Views(flips=True) if size > 8 and channels == 3 else None,  # letters and digits have no mirror images
        report=report,
        sheet=sheet,
        shape=shape,
        encoder=encoder,
        generator=wishes.generator or default_generator(shape, machine.on_cpu),
        dim=0,
        workers=0 if machine.on_cpu or as_is else 8,
        version=version_of(source, train),
    )


def version_of(source: Source, train: ImageSplit) -> str:
    """Return the identity of a data set's images, whatever their number of channels."""
    return fingerprint([type(source).__name__, train.fingerprint])


def measure(
    wishes: Wishes,
    choices: Choices,
    machine: Machine,
    budget: float | None,
    tell: Callable[[str], None],
    known: Costs | None = None,
) -> None:
    """Build the stages and measure what their steps, and everything around them, cost, unless it is ``known``."""
    data = ImageDataModule(choices.source, choices.transform, views=choices.views)
    spec = DataSpec(image=choices.shape, classes=data.images("train").classes)
    on_cpu, wanted = machine.on_cpu, batch_size(choices.shape, machine.on_cpu)
    costs: dict[str, StageCost] = dict(known.stages) if known else {}

    def measured(name: str, images: int, compilable: float = 0.0) -> None:
        if name not in costs or (compilable > 0 and costs[name].compile is None):
            tell(f"timing a few steps of the {name}" + (", also compiled" if compilable > 0 else ""))
            costs[name] = measure_stage(construct(describe(choices.stages[name])), spec, images, machine, compilable)

    encoder, encoding = choices.encoder, known.encoding if known else None
    if encoder is not None and encoder.kind == MOCO:
        choices.stages["encoder"] = encoder_stage(choices.shape, on_cpu)
        measured("encoder", wanted)
    if encoder is not None:
        choices.dim, encoding = (known.dim, encoding) if known else _encoder(choices, spec, machine, costs, tell)
        columns = {"representation": {"shape": [choices.dim]}}
        spec = DataSpec(spec.image, spec.classes, columns, {"representation": "not yet extracted"})
    if wishes.stop_after is None:
        few = choices.report.images < FEW_FOR_NOISE
        stage = generator_stage(choices.generator, choices.shape, wishes.condition, on_cpu, few)
        choices.stages["generator"] = stage
        measured("generator", wanted, compilable_seconds(wishes, machine, budget))
    if encoder is not None and wishes.stop_after != "encoder":
        choices.stages["rdm"] = rdm_stage(choices.dim, wishes.condition, on_cpu)
        measured("rdm", min(wanted * 2, 256))
    if wishes.compare:
        choices.stages[EVALUATION_ENCODER] = encoder_stage(choices.shape, on_cpu)
        costs |= {EVALUATION_ENCODER: costs["encoder"]} if "encoder" in costs else {}
        measured(EVALUATION_ENCODER, wanted)
    sampler = getattr(choices.stages.get("generator"), "sampler", None)
    choices.costs = Costs(
        train=len(data.images("train")),
        evaluation=len(data.images("eval")),
        reading=known.reading if known else _reading(data, machine) / max(choices.workers, 1),
        stages={name: costs[name] for name in choices.stages},
        encoding=encoding,
        dim=choices.dim,
        views=choices.views.count if choices.views else 1,
        sampler_steps=0 if sampler is None else sampler.steps,
        seeds=wishes.seeds,
        compare=wishes.compare,
    )


def compilable_seconds(wishes: Wishes, machine: Machine, budget: float | None) -> float:
    """Return the seconds of a generator's training, where they are enough to try whether compiling it pays."""
    if machine.device != "cuda" or budget is None or budget < WORTH_COMPILING:
        return 0.0
    return GENERATOR_SHARE * budget / (wishes.seeds * (1 + len(BASELINES) if wishes.compare else 1))


def fit_data(choices: Choices, budget: float, tell: Callable[[str], None]) -> None:
    """Use fewer training images, at random, where representing all would take more than a fifth of the budget."""
    costs = choices.costs
    if costs is None or costs.encoding is None or not isinstance(choices.source, FolderSource):
        return
    each = costs.views * (costs.encoding + costs.reading)
    allowed = max(int(STORE_SHARE * budget / each), FEW)
    if allowed >= costs.train:
        return
    whole = duration(each * costs.train)
    tell(f"{allowed:,} of {costs.train:,} images, chosen at random, fit the budget: to represent all takes {whole}")
    take_images(choices, allowed)
    choices.costs = replace(costs, train=allowed)


def take_images(choices: Choices, limit: int | None) -> None:
    """Train on ``limit`` images of a folder, chosen at random; None takes all."""
    if isinstance(choices.source, FolderSource) and limit != choices.source.limit:
        choices.source = type(choices.source)(**{**choices.source._arguments, "limit": limit})


def _encoder(
    choices: Choices, spec: DataSpec, machine: Machine, costs: dict[str, StageCost], tell: Callable[[str], None]
) -> tuple[int, float]:
    """Return the dimensions of the encoder's representations, and its seconds for an image."""
    encoder = choices.encoder
    assert encoder is not None
    if encoder.kind == MOCO:
        stage = choices.stages["encoder"]
        assert isinstance(stage, MoCoV3Stage)
        dim = describe(stage.encoder.head)["init_args"]["dim"]
        return dim, costs["encoder"].seconds / costs["encoder"].images / 6  # two views, two networks
    if encoder.trained_here:
        return min(PRINCIPAL_DIM, choices.report.train // 4), 1e-4
    tell("timing the encoder")
    if encoder.name is not None:
        frozen: Encoder = TimmEncoder(encoder.name, encoder.path, size=encoder.size)
    else:
        frozen = TrainedEncoder(encoder.path)
    return frozen.dim, seconds_per_image(frozen, spec, machine)


def _reading(data: ImageDataModule, machine: Machine) -> float:
    """Return the seconds to read and resize an image, in one process."""
    index = fixed_subset(len(data.images("train")), READ)
    start = machine.now()
    for _ in data.deterministic_batches("train", frozenset({"image"}), index):
        pass
    return machine.since(start) / len(index)
