"""The plan of a run: how many steps each stage takes within a budget, and what that costs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rcg_lightning.errors import UserError
from rcg_lightning.planning.duration import duration
from rcg_lightning.planning.step_timing import FEW_SAMPLES, StageCost

STARTUP = 2.5  # seconds that a command takes to begin and end
ENCODER_SHARE, EVALUATION_ENCODER_SHARE, RDM_SHARE = 0.2, 0.1, 0.08  # of the training time
SMALL_RDM_SHARE = 0.3  # where the generator is as small as the RDM
EVALUATION_ENCODER = "evaluation_encoder"  # a second encoder that no stage reads
LONGEST_EPOCHS = {"encoder": 400, EVALUATION_ENCODER: 400, "rdm": 1000}
MOST_STEPS = {"encoder": 50_000, EVALUATION_ENCODER: 50_000, "rdm": 20_000}
VALIDATED = 512  # evaluation images in a validation
SAMPLES, SHOWN, EVALUATED = 64, 96, 500  # samples of the run, of the gallery, and images of the verdict
VALIDATION_SHARE = 0.1  # of a generator's time
SAVING_SHARE, MOST_SAVES = 0.04, 10  # of a stage's time, for checkpoints before the last ones
LAST_SAVES = 2  # before the learning rate decays, and at the end
STORED_STATES = 3  # checkpoints of a run at most: last, previous, undecayed
TRAINED = (
    "encoder",
    EVALUATION_ENCODER,
    "rdm",
    "generator",
)  # in the order in which they take their shares
ORDER = ("encoder", "store", "generator", "rdm", "samples", EVALUATION_ENCODER, "comparison", "gallery", "verdict")
BASELINES = ("none", "cluster")  # conditions of a comparison's further generators, and their steps
ROWS = (*BASELINES, "representation", "oracle")  # of the comparison
COMPARED = 1000  # samples of each row at most


@dataclass(frozen=True)
class PlannedStage:
    """One stage with its cost.

    Attributes:
        name: of its step.
        seconds: for all of it.
        memory: bytes at the peak; 0 where it is small.
        disk: bytes that it leaves.
        steps: of training; None where nothing is trained.
        images: of a step.
        validations: how often it is validated.
        repeats: how often it runs: for each seed, and each condition of a comparison.
        saves: how often it is saved before its end.
    """

    name: str
    seconds: float
    memory: float = 0.0
    disk: float = 0.0
    steps: int | None = None
    images: int = 0
    validations: int = 1
    repeats: int = 1
    saves: int = MOST_SAVES

    @property
    def once(self) -> float:
        """Seconds of one run."""
        return self.seconds / self.repeats


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
        train, evaluation: images of each split.
        reading: seconds to decode and resize one image.
        stages: of ``TRAINED``, those that the run has.
        encoding: seconds of a frozen encoder for an image; None where the run has no representations.
        dim: dimensions of a representation.
        views: of each training image in the store.
        sampler_steps: network evaluations of a sample.
        seeds: of everything but encoders and stores.
        compare: whether generators of other conditions are trained and compared.
    """

    train: int
    evaluation: int
    reading: float
    stages: Mapping[str, StageCost]
    encoding: float | None
    dim: int
    views: int
    sampler_steps: int
    seeds: int = 1
    compare: bool = False

    def repeats(self, name: str) -> int:
        """Return how often a stage is trained."""
        if name in ("encoder", EVALUATION_ENCODER):
            return 1
        return self.seeds * (1 + len(BASELINES) if self.compare and name == "generator" else 1)

    def step(self, name: str) -> float:
        """Return the seconds of a step, with reading its images, in all repeats of the stage."""
        cost = self.stages[name]
        reading = 0.0 if name == "rdm" else cost.images * self.reading
        return self.repeats(name) * (cost.seconds + reading)

    def overhead(self, name: str) -> float:
        """Return the seconds of a stage, in all repeats, in which nothing is trained."""
        cost = self.stages[name]
        return self.repeats(name) * (STARTUP + cost.compiling + LAST_SAVES * cost.saving)

    def forward(self) -> float:
        """Return the generator's seconds for one image without gradient: about a third of training."""
        cost = self.stages["generator"]
        return cost.seconds / cost.images / 3

    def samples(self, count: int) -> float:
        """Return the seconds of ``count`` samples, of which a few take as long as ``FEW_SAMPLES``."""
        return self.sampler_steps * max(count * self.forward(), self.stages["generator"].evaluation)

    def sampling(self, count: int) -> float:
        """Return the seconds of a command that makes ``count`` samples."""
        return self.samples(count) + STARTUP

    def validation(self) -> float:
        """Return the seconds of a generator's validation with its grid, in all repeats."""
        images = min(self.evaluation, VALIDATED)
        once = images * (self.forward() + self.reading) + self.samples(FEW_SAMPLES)
        return self.repeats("generator") * once


def make_plan(
    costs: Costs,
    budget: float | None,
    steps: int | None,
    spent: float = 0.0,
    least: Mapping[str, int] | None = None,
    done: Collection[str] = (),
) -> list[PlannedStage]:
    """Return the stages in their order, with the steps that the budget allows.

    Args:
        costs: as measured.
        budget: seconds for everything; or else give ``steps``.
        steps: of every trained stage.
        spent: seconds of the budget that are gone.
        least: steps that stages have been trained for: no plan takes less.
        done: stages that are finished with these steps: their time is in ``spent``.

    Raises:
        UserError: the budget is too small for a step of each stage.
    """
    around = _around(costs)
    given = dict(least or {})
    if steps is not None:
        counts = {name: max(steps, given.get(name, 0)) for name in costs.stages}
    else:
        assert budget is not None, "a plan needs a budget or steps"
        other = sum(stage.seconds for stage in around.values() if stage.name not in done)
        counts = _counts(costs, budget - spent - other, budget, given, done)
    stages = {**around, **{name: _trained(costs, name, count) for name, count in counts.items()}}
    return [stages[name] for name in ORDER if name in stages]


def _around(costs: Costs) -> dict[str, PlannedStage]:
    """Return the stages that train nothing."""
    found = {}
    if costs.encoding is not None:
        images = costs.train * costs.views + costs.evaluation
        seconds = images * (costs.encoding + costs.reading) + 2 * STARTUP
        found["store"] = PlannedStage("store", seconds, disk=4.0 * images * costs.dim)
    if "generator" in costs.stages:
        evaluating = 4 * STARTUP + EVALUATED * (4 * (costs.encoding or 0) + costs.reading)
        once = {"samples": costs.sampling(SAMPLES), "gallery": costs.sampling(SHOWN), "verdict": evaluating}
        if costs.compare:
            once["comparison"] = len(ROWS) * costs.sampling(min(COMPARED, costs.train))
        for name, seconds in once.items():
            found[name] = PlannedStage(name, costs.seeds * seconds, repeats=costs.seeds)
    return found


def _counts(
    costs: Costs, seconds: float, budget: float, least: Mapping[str, int], done: Collection[str]
) -> dict[str, int]:
    """Share ``seconds`` between the trained stages that are not done; return the steps of each."""
    counts = {name: least[name] for name in done if name in costs.stages}
    todo = [name for name in TRAINED if name in costs.stages and name not in counts]
    left = whole = seconds - sum(map(costs.overhead, todo))
    for name in todo:
        mine = left if name == todo[-1] else _share(costs, name) * whole
        other = SAVING_SHARE + (VALIDATION_SHARE if name == "generator" else 0)
        count = int(mine * (1 - other) / costs.step(name))
        if name in MOST_STEPS:
            epoch = costs.train / costs.stages[name].images
            count = min(count, MOST_STEPS[name], max(int(LONGEST_EPOCHS[name] * epoch), 1000))
        counts[name] = max(count, least.get(name, 0))
        left -= counts[name] * costs.step(name)
    short = next((name for name in todo if counts[name] < 1), None)
    if short is not None:
        needed = budget - min(seconds, 0) + 10 * sum(costs.step(name) for name in todo)
        raise UserError(
            f"--budget {duration(budget)} leaves no step for the {short}, whose step takes "
            f"{costs.step(short):.2g} s here: give at least --budget {max(1, round(needed / 60 + 0.5))}m"
        )
    return counts


def _share(costs: Costs, name: str) -> float:
    """Return a stage's share of the training time."""
    if name != "rdm":
        return {"encoder": ENCODER_SHARE, EVALUATION_ENCODER: EVALUATION_ENCODER_SHARE}[name]
    small = "generator" in costs.stages and costs.step("generator") < 3 * costs.step("rdm")
    return SMALL_RDM_SHARE if small else RDM_SHARE


def _trained(costs: Costs, name: str, steps: int) -> PlannedStage:
    cost, seconds, validations = costs.stages[name], steps * costs.step(name), 1
    if name == "generator":
        allowed = VALIDATION_SHARE * seconds / max(costs.validation(), 1e-6)
        validations = min(max(int(allowed), 4), 20, max(steps, 1))
        seconds += validations * costs.validation()
    repeats = costs.repeats(name)
    saving = repeats * cost.saving
    saves = min(max(int(SAVING_SHARE * seconds / max(saving, 1e-6)), 2), MOST_SAVES)
    return PlannedStage(
        name,
        seconds + saves * saving + costs.overhead(name),
        cost.memory,
        repeats * STORED_STATES * cost.checkpoint,
        steps,
        cost.images,
        validations,
        repeats,
        saves,
    )


def table(stages: Sequence[PlannedStage], train: int) -> str:
    """Return the plan as a table, with its total."""
    rows = [("stage", "steps", "epochs", "time", "memory", "disk")]
    for stage in stages:
        epochs = "" if stage.steps is None else f"{stage.steps * stage.images / train:.1f}"
        steps = "" if stage.steps is None else f"{stage.steps:,}"
        memory = f"{stage.memory / 1e9:.1f} GB" if stage.memory else ""
        rows.append((stage.name, steps, epochs, duration(stage.seconds), memory, size(stage.disk)))
    memory = max(stage.memory for stage in stages)
    disk = size(sum(stage.disk for stage in stages))
    rows.append(("total", "", "", duration(total(stages)), f"{memory / 1e9:.1f} GB" if memory else "", disk))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def expected(step: str, plan: Sequence[PlannedStage]) -> float:
    """Return the seconds that one run of a step of the pipeline file is expected to take; 0 for what takes a moment."""
    if step.startswith("compared_"):
        return expected("comparison", plan) / len(ROWS)
    name = "generator" if step in BASELINES else step
    return next((stage.once for stage in plan if stage.name == name), 0.0)


def total(stages: Sequence[PlannedStage]) -> float:
    """Return the seconds of all stages."""
    return sum(stage.seconds for stage in stages)


def size(count: float) -> str:
    """Return bytes as 3 MB or 1.2 GB."""
    return "" if not count else f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 1):.0f} MB"


def slowed(costs: Costs, factor: float) -> Costs:
    """Return the costs on a machine that is ``factor`` times as slow."""
    stages = {name: replace(cost, seconds=cost.seconds * factor) for name, cost in costs.stages.items()}
    encoding = None if costs.encoding is None else costs.encoding * factor
    return replace(costs, stages=stages, encoding=encoding, reading=costs.reading * factor)


def costs_to_plain(costs: Costs) -> dict[str, Any]:
    """Return plain data for a file."""
    return asdict(costs)


def costs_from_plain(content: Mapping[str, Any]) -> Costs:
    """Invert ``costs_to_plain``."""
    return Costs(**{**content, "stages": {name: StageCost(**cost) for name, cost in content["stages"].items()}})
