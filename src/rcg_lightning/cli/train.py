"""`rcg train`: from a folder of images to generated ones, planned for this machine and the time there is."""

import time
from pathlib import Path
from typing import Literal

from rcg_lightning.arguments import ImageSize, PositiveInt
from rcg_lightning.artifacts import locked
from rcg_lightning.cli.main import STEP_COMMANDS, run
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.errors import UserError
from rcg_lightning.overall_progress import Overall, stage_of
from rcg_lightning.pipeline.runner import Run
from rcg_lightning.pipeline.spec import Step, read_pipeline
from rcg_lightning.planning.data_choice import check_apart
from rcg_lightning.planning.duration import duration, parse_duration
from rcg_lightning.planning.files import PIPELINE
from rcg_lightning.planning.machine import Machine, this_machine
from rcg_lightning.planning.plan import PlannedStage, expected, table
from rcg_lightning.planning.plan_record import PlanRecord
from rcg_lightning.planning.representation_report import largest_cluster
from rcg_lightning.planning.run_plan import Choices, Wishes, examine_data
from rcg_lightning.types import require

TOLERANCE = 1.3  # a stage may take this many times its planned time before the plan is made again
DOMINATING = 0.5  # share of the representations in the largest of some clusters
RUN = Path("runs", "NAME")
DEFAULT_BUDGET = {True: "30m", False: "1h"}  # on a CPU or not


def train(
    data: str,
    budget: str | None = None,
    steps: PositiveInt | None = None,
    size: ImageSize | None = None,
    encoder: str = "auto",
    generator: Literal["unet", "dit", "mlp"] | None = None,
    condition: Literal["representation", "class", "joint", "none"] = "representation",
    compare: bool = False,
    seeds: PositiveInt = 1,
    out: Path = RUN,
    stop_after: Literal["encoder", "rdm"] | None = None,
    accelerator: str = "auto",
    dry_run: bool = False,
) -> None:
    """Train encoder, generator and RDM on a folder of images, or a data set by name, and generate new images.

    The same command continues where it stopped; with more budget or steps it trains longer.

    Args:
        data: a folder, with folders in it or without, or the name of a data set, such as digits.
        budget: time for everything, such as 10m, 1h or 8h; by default 30m on a CPU and 1h on a GPU.
        steps: of every training, instead of a budget.
        size: height and width to train and generate at; by default 32 on a CPU and 64 on a GPU, or the data set's own.
        encoder: moco or principal to train one here, a timm name, NAME=WEIGHTS with a local file, or a network folder.
        generator: kind of network; by default by size and machine.
        condition: of the generator; class and joint need a folder for each class.
        compare: also train without condition and on clusters, and score all by a second encoder.
        seeds: how often generator and RDM are trained, each time with other random numbers.
        out: the run's folder; NAME is that of the folder of the images, or of the data set.
        stop_after: end with the encoder and its representations, or with the RDM, without a generator.
        accelerator: cpu, gpu, mps or auto.
        dry_run: end with the plan.
    """
    machine = this_machine(accelerator)
    require(budget is None or steps is None, "give --budget or --steps, not both")
    whole = condition == "representation" and stop_after is None
    require(not compare or whole, "--compare compares representations with other conditions: give no other --condition")
    wishes = Wishes(data, size, encoder, generator, condition, stop_after, seeds, compare)
    seconds = parse_duration(budget or DEFAULT_BUDGET[machine.on_cpu]) if steps is None else None
    folder = out.with_name(run_name(data)) if out == RUN else out
    require(not folder.is_file(), f"--out {folder} is a file: give a folder")
    record = PlanRecord.read(folder)
    record.check_owner(wishes)
    choices = examine_data(wishes, machine, record.known)
    check_apart(choices.source, folder)
    for line in choices.report.lines(choices.shape[1]):
        echo(f"  {line}")
    for line in choices.report.warnings(choices.shape[1]):
        echo(f"  warning: {line}")
    for line in record.changes(wishes, choices):
        echo(line)
    plan = record.planned(wishes, choices, machine, seconds, steps, lambda line: echo(f"  {line}"))
    show_plan(plan, choices, machine)
    if dry_run:
        if not record.exists:
            record.write(choices, seeds, machine)
            echo(f"configs for rcg fit: {folder / 'configs'}; start it by the same command without --dry-run")
        return
    busy = f"another rcg train is running in {folder}: wait for it, or give another --out"
    with locked(folder / ".lock", busy):
        Training(folder, record, choices, seeds, machine).work(plan)


def show_plan(plan: list[PlannedStage], choices: Choices, machine: Machine) -> None:
    """Print the choices and the table of stages."""
    if choices.encoder is not None:
        name = choices.encoder.name or choices.encoder.kind
        echo(f"encoder: {name}, {choices.encoder.reason}; {choices.dim} dimensions")
    if "generator" in choices.stages:
        channels, side, _ = choices.shape
        colour = "grey" if channels == 1 else "colour"
        echo(f"generator: {choices.generator} over {side} x {side} {colour} pixels; machine: {machine}")
    assert choices.costs is not None, "a plan has costs"
    echo(table(plan, choices.costs.train))


class Training:
    """The steps of a run that are not up to date, with the plan made again where the machine's speed changes.

    Args:
        folder: of the run.
        record: its plan.
        choices: from which the plan was made.
        seeds: of generator, RDM and samples.
        machine: that trains.
    """

    def __init__(self, folder: Path, record: PlanRecord, choices: Choices, seeds: int, machine: Machine) -> None:
        self.folder, self.record, self.choices, self.seeds, self.machine = folder, record, choices, seeds, machine
        self.begun, self.spent = time.monotonic(), record.spent()
        self.used = self.spent  # of the budget: on a CPU what was computed

    def work(self, plan: list[PlannedStage]) -> None:
        """Run the steps."""
        steps, number = self._steps(), 0
        while number < len(todo := steps.todo()):
            step, seed = todo[number]
            number += 1
            title = step.name if step.shared else f"{step.name}, seed {seed}"
            where = f"[{number}/{len(todo)}] {title}"
            if steps.is_done(step, seed):
                echo(f"{where}: up to date")
                continue
            seconds = expected(step.name, plan)
            echo(f"{where}{_expectation(step, seconds)}")
            begun, now, continued = self.machine.now(), time.monotonic(), bool(self.record.step_record(step.name))
            later = sum(expected(other.name, plan) for other, _ in todo[number:])
            with stage_of(Overall(number, len(todo), title, self.begun - self.spent, now, seconds, later)):
                steps.execute(step, seed, run, echo)
            self.used += self.machine.since(begun)
            if step.name == "store":
                self._warn_of_clusters(steps.folder(step, seed))
            if step.steps is not None and not continued:
                factor = self.machine.since(begun) / seconds
                done = [other.name for other, _ in todo[:number]]
                plan = self._replanned(plan, factor, done)
                steps = self._steps()
        steps.make_table(run, echo)
        run("report", [str(self.folder)])
        for step, seed in todo:
            if step.name == "samples":
                echo(f"{steps.folder(step, seed) / 'grid.png'}: generated images")
        echo(f"{self.folder}: finished after {duration(time.monotonic() - self.begun)}")

    def _warn_of_clusters(self, store: Path) -> None:
        share = largest_cluster(store)
        if share > DOMINATING:
            echo(
                f"  warning: one cluster holds {share:.0%} of the representations: most images are alike to the encoder"
            )

    def _steps(self) -> Run:
        self.record.write(self.choices, self.seeds, self.machine)
        return Run(read_pipeline(self.folder / PIPELINE, STEP_COMMANDS), self.folder, list(range(self.seeds)))

    def _replanned(self, plan: list[PlannedStage], factor: float, done: list[str]) -> list[PlannedStage]:
        """Return the plan, made again where a stage took 30 % more or less than planned and others follow."""
        trained = [stage.name for stage in plan if stage.steps is not None]
        untouched = [name for name in trained if name not in done]
        begun = any(self.record.step_record(name) for name in untouched)
        if 1 / TOLERANCE < factor < TOLERANCE or not untouched or begun or self.record.content["wanted"][0] is None:
            return plan
        again = self.record.replan(self.choices, factor, self.used, done)
        counts = ", ".join(f"{stage.name} {stage.steps:,} steps" for stage in again if stage.name in untouched)
        echo(f"this machine is {factor:.1f} times as slow as measured, so the plan is now: {counts}")
        return again


def _expectation(step: Step, seconds: float) -> str:
    steps = "" if step.steps is None else f"{step.steps:,} steps, "
    return f": {steps}about {duration(seconds)}" if seconds else ""


def run_name(data: str) -> str:
    """Return the name of a run: that of the folder of the images, or of the data set."""
    name = Path(data).expanduser().resolve().name if Path(data).expanduser().exists() else data
    if not name:
        raise UserError(f"{data} has no name to call the run after: give --out")
    return name


def main(name: str, argv: list[str]) -> None:
    """Parse the command line of `rcg train`; the data need no --data before them."""
    if argv and not argv[0].startswith("-"):
        argv = ["--data", *argv]
    examples = [
        "rcg train digits --budget 1m                         a first try",
        "rcg train my_images                                  plan, encoder, generator, RDM, samples",
        "rcg train my_images --budget 8h --size 64            the same, longer and larger",
        "rcg train my_images --dry-run                        what it would do, and what that costs",
        "rcg train my_images --condition class                the folders in my_images are classes",
    ]
    call(train, name, argv, examples, config_file=False)
