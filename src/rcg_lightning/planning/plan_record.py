"""What an earlier run in a folder planned, and how this run goes on from it."""

import math
import re
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import yaml

from rcg_lightning.artifacts import read_state, write_text
from rcg_lightning.errors import UserError
from rcg_lightning.pipeline.records import read_record
from rcg_lightning.planning import files
from rcg_lightning.planning.data_report import DataReport, write_sheet
from rcg_lightning.planning.machine import Machine
from rcg_lightning.planning.pipeline_file import PipelineFile
from rcg_lightning.planning.plan import (
    EVALUATION_ENCODER,
    Costs,
    PlannedStage,
    costs_from_plain,
    costs_to_plain,
    make_plan,
    slowed,
    table,
)
from rcg_lightning.planning.run_plan import Choices, Wishes, fit_data, measure, take_images

_EXTENT = ("stop_after", "seeds", "compare")  # wishes that add stages, and change none
FEW_TO_COMPARE = 20  # evaluation images below which their representations have no statistics
LEAST = 0.5  # of the steps of a stage, however late the run is
REPORT, SHEET = "data_report.json", "contact_sheet.png"


class PlanRecord:
    """The plan of a run's folder: read, compared with what is asked for now, and written.

    Args:
        folder: of the run.
        content: of ``plan.json``; empty where the folder holds no run.
        report: of the data then.
    """

    def __init__(self, folder: Path, content: dict[str, Any], report: DataReport | None) -> None:
        self.folder, self.content, self.report = folder, content, report
        self.exists = bool(content)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what lies in a folder."""
        content = files.read_plan(folder)
        found = read_state(folder / REPORT, lambda report: report.keys() == asdict(DataReport(0, 0)).keys())
        return cls(folder, content, DataReport(**found) if found else None)

    @property
    def known(self) -> tuple[str, DataReport] | None:
        """Version and report of the data."""
        return (self.content["version"], self.report) if self.exists and self.report is not None else None

    def check_owner(self, wishes: Wishes) -> None:
        """Raise UserError where the folder holds a run of other data, or another kind of run."""
        folder = self.folder
        if self.exists and self.content["data"] != _location(wishes.data):
            raise UserError(f"{folder} holds the run of {self.content['data']}: give another --out")
        if not self.exists and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UserError(f"{folder} holds other files, and no run of rcg train: give another --out")

    def changes(self, wishes: Wishes, choices: Choices) -> list[str]:
        """Describe what is different from the earlier run, and what that means for it."""
        if not self.exists:
            return []
        found = []
        if self.content["version"] != choices.version:
            count, now = self.content["images"], choices.report.images
            kept = "; the encoder that was trained stays" if "encoder" in self.content["steps"] else ""
            found.append(
                f"the images have changed: {count:,} then, {now:,} now. What depends on them is made again{kept}"
            )
        before = self.content["wishes"]
        for name, value in asdict(wishes).items():
            if name not in ("data", *_EXTENT) and before.get(name, value) != value:
                then, now = (one or "the default" for one in (before[name], value))
                found.append(f"--{name} was {then}, now it is {now}: what depends on it is made again")
        return found

    def planned(
        self,
        wishes: Wishes,
        choices: Choices,
        machine: Machine,
        budget: float | None,
        steps: int | None,
        tell: Callable[[str], None],
    ) -> list[PlannedStage]:
        """Return the plan: that of the earlier run where nothing has changed, a longer one, or a new one."""
        wanted, plain = [budget, steps], asdict(wishes)
        same = self.exists and not self.changes(wishes, choices)
        represented = same and bool(self.step_record("store"))
        if represented:
            take_images(choices, self.content["limit"])  # a store of other images would be another run
        measure(wishes, choices, machine, budget, tell, self._costs(machine) if same else None)
        if budget is not None and not represented:
            fit_data(choices, budget, tell)
        assert choices.costs is not None, "the costs are measured"
        before = {name: n for name, n in self.content["steps"].items() if self.step_record(name)} if same else {}
        done, spent = self._encoder_kept(choices)
        if same and self.content["wanted"] == wanted and self.content["wishes"] == plain:
            plan = [PlannedStage(**stage) for stage in self.content["stages"]]
        else:
            plan = make_plan(choices.costs, budget, steps, spent, {**before, **done}, done)
        self.content = {
            "data": _location(wishes.data),
            "images": choices.report.images,
            "version": choices.version,
            "wishes": plain,
            "wanted": wanted,
            "least": {stage.name: math.ceil(LEAST * stage.steps) for stage in plan if stage.steps is not None},
            "machine": {"device": machine.device, "name": machine.name, "threads": machine.threads},
            "limit": getattr(choices.source, "limit", None),
            "shape": list(choices.shape),
            "condition": wishes.condition,
            "generator": choices.generator,
            "encoder": None if choices.encoder is None else _encoder(choices),
            **_costs_and_stages(choices.costs, plan),
        }
        return plan

    def replan(self, choices: Choices, factor: float, spent: float, done: Collection[str]) -> list[PlannedStage]:
        """Plan the stages that are not done again, on a machine that is ``factor`` times as slow as it was measured.

        None becomes shorter than half of what it was: a run that is late ends late, with all its stages.

        Args:
            choices: of this run.
            factor: of all costs.
            spent: seconds of the budget that are gone.
            done: names of the finished stages.
        """
        assert choices.costs is not None, "the costs are measured"
        choices.costs = slowed(choices.costs, factor)
        finished = {name: steps for name, steps in self.content["steps"].items() if name in done}
        plan = make_plan(choices.costs, self.content["wanted"][0], None, spent, self.content["least"] | finished, done)
        self.content |= _costs_and_stages(choices.costs, plan)
        return plan

    def _encoder_kept(self, choices: Choices) -> tuple[dict[str, int], float]:
        """Return the steps of an encoder that is trained and stays, and the seconds that it took of a budget."""
        config, steps = self.folder / files.CONFIGS / "encoder.yaml", self.content.get("steps", {}).get("encoder")
        record, costs = self.step_record("encoder"), choices.costs
        if steps is None or "encoder" not in choices.stages or record.get("seconds") is None or not config.is_file():
            return {}, 0.0
        if yaml.safe_load(config.read_text())["model"] != files.model_config(choices.stages["encoder"]):
            return {}, 0.0  # of another size
        assert costs is not None, "the costs are measured"
        return {"encoder": steps}, steps * costs.step("encoder")

    def step_record(self, name: str) -> dict[str, Any]:
        """Return the record of a step of the first seed; empty if it never started."""
        found = (self.folder / f".{name}.json", self.folder / "seed0" / f".{name}.json")
        return next((record for record in map(read_record, found) if record), {})

    def _costs(self, machine: Machine) -> Costs | None:
        """Return the costs that were measured on the same machine."""
        here = {"device": machine.device, "name": machine.name, "threads": machine.threads}
        return costs_from_plain(self.content["costs"]) if self.content["machine"] == here else None

    def write(self, choices: Choices, seeds: int, machine: Machine) -> None:
        """Write the plan and all its files to the run's folder."""
        folder = self.folder
        configs = (folder / files.CONFIGS).absolute()
        configs.mkdir(parents=True, exist_ok=True)
        choices.report.write(folder / REPORT)
        if choices.sheet:
            write_sheet(folder / SHEET, choices.sheet)
        assert choices.costs is not None, "the costs are measured"
        data = files.data_config(choices.source, choices.transform, choices.views, 128, choices.workers)
        files.write_config(configs / "data.yaml", data, "the images of this run")
        for stage in (PlannedStage(**stage) for stage in self.content["stages"]):
            if stage.name in choices.stages:
                cost = choices.costs.stages[stage.name]
                few = choices.report.evaluation < FEW_TO_COMPARE
                config = files.stage_config(choices.stages[stage.name], data, stage, cost, machine.device, few)
                files.write_config(configs / f"{stage.name}.yaml", config, f"{stage.name} of this run, for rcg fit")
        steps = self.content["steps"]
        pipeline = PipelineFile(
            configs,
            choices.encoder,
            steps,
            choices.version,
            seeds,
            machine.device,
            choices.dim,
            choices.costs.train,
            EVALUATION_ENCODER in steps,
        )
        name = re.sub(r"[^\w. +-]", "_", folder.resolve().name)[:99]
        comment = "the plan of this run; `rcg pipeline` runs it too"
        files.write_config(folder / files.PIPELINE, pipeline.content(name), comment)
        self._write_sections(choices)
        parts = files.parts_of(choices.encoder, list(steps), "seed0/" if seeds > 1 else "")
        files.write_plan(folder, {**self.content, "seeds": seeds, "parts": parts})

    def _write_sections(self, choices: Choices) -> None:
        """Write what the report of the run shows of the data and the plan."""
        side = choices.shape[1]
        lines = [*choices.report.lines(side), *(f"**{line}**" for line in choices.report.warnings(side))]
        sheet = f"\n\n![some of the images]({SHEET})" if (self.folder / SHEET).is_file() else ""
        write_text(self.folder / "section-data.md", "\n".join(f"- {line}" for line in lines) + sheet + "\n")
        plan = [PlannedStage(**stage) for stage in self.content["stages"]]
        assert choices.costs is not None, "a plan has costs"
        write_text(self.folder / "section-plan.md", f"```\n{table(plan, choices.costs.train)}\n```\n")

    def spent(self) -> float:
        """Return the seconds that the steps have taken so far."""
        paths = [*self.folder.glob(".*.json"), *self.folder.glob("seed*/.*.json")]
        records = [read_record(path) for path in paths]
        return float(sum(record.get("seconds") or record.get("spent") or 0.0 for record in records))


def _costs_and_stages(costs: Costs, plan: list[PlannedStage]) -> dict[str, Any]:
    steps = {stage.name: stage.steps for stage in plan if stage.steps is not None}
    return {"costs": costs_to_plain(costs), "stages": [asdict(stage) for stage in plan], "steps": steps}


def _location(data: str) -> str:
    path = Path(data).expanduser()
    return str(path.resolve()) if path.exists() else data.lower()


def _encoder(choices: Choices) -> dict[str, Any]:
    assert choices.encoder is not None
    found = choices.encoder
    return {"kind": found.kind, "name": found.name, "reason": found.reason, "saw_labels": found.saw_labels}
