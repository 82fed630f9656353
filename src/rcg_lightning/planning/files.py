"""The files of a plan in a run's folder: configs for `rcg fit`, the pipeline file, and an index of the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rcg_lightning.artifacts import read_state, write_json, write_text
from rcg_lightning.config import describe
from rcg_lightning.data.image_split import Source
from rcg_lightning.data.transforms import Transform, Views
from rcg_lightning.planning.encoder_choice import EncoderChoice
from rcg_lightning.planning.plan import VALIDATED, PlannedStage
from rcg_lightning.planning.step_timing import FEW_SAMPLES, StageCost
from rcg_lightning.run_folder import PLAN
from rcg_lightning.stages.base import Stage

FORMAT = 1
LOG_SECONDS = 0.3  # between two points of a curve: a log takes as long as a very small step
PIPELINE, CONFIGS = "plan.yaml", "configs"


def plain(value: Any) -> Any:
    """Return the description of an object with short class names, as people write configs."""
    return _shortened(describe(value))


def _shortened(value: Any) -> Any:
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"class_path", "init_args"}:
        name = value["class_path"].rpartition(".")[2]
        given = _shortened(value["init_args"])
        return {"class_path": name, "init_args": given} if given else name
    return {name: _shortened(item) for name, item in value.items()}


def model_config(stage: Stage) -> dict[str, Any]:
    """Return a stage as a config names it; its seed is that of the step."""
    model = plain(stage)
    model["init_args"].pop("seed", None)
    return model


def source_config(source: Source) -> dict[str, Any]:
    """Return a source as a config names it, with its absolute path, which a description leaves out."""
    arguments = {name: value for name, value in source._arguments.items() if not isinstance(value, Path)}
    roots = {name: str(value.absolute()) for name, value in source._arguments.items() if isinstance(value, Path)}
    return {"class_path": type(source).__name__, "init_args": {**roots, **arguments}}


def data_config(source: Source, transform: Transform, views: Views | None, batch: int, workers: int) -> dict[str, Any]:
    """Return the data module as a config names it."""
    given: dict[str, Any] = {"source": source_config(source), "transform": plain(transform)}
    if views is not None:
        given["views"] = describe(views)["init_args"]
    return {"class_path": "ImageDataModule", "init_args": {**given, "batch_size": batch, "workers": workers}}


def stage_config(
    stage: Stage, data: Mapping[str, Any], planned: PlannedStage, cost: StageCost, accelerator: str, few: bool
) -> dict[str, Any]:
    """Return what `rcg fit --config` takes to train a stage as planned; all schedules are shares of its steps.

    Args:
        stage: as chosen.
        data: the data module.
        planned: its steps and validations.
        cost: its batch.
        accelerator: that trains.
        few: too few evaluation images for statistics.
    """
    model = model_config(stage)
    trainer: dict[str, Any] = {"max_steps": planned.steps, "accelerator": accelerator}
    if cost.accumulate > 1:
        trainer["accumulate_grad_batches"] = cost.accumulate
    trainer["checkpoint_every"] = round(1 / planned.saves, 4)
    if cost.compile:
        trainer["compile"] = True
    trainer["log_every_n_steps"] = min(max(round(LOG_SECONDS / cost.seconds), 1), 50)
    if planned.name == "generator":
        trainer["val_check_interval"] = round(1 / planned.validations, 4)
        grid = {"count": FEW_SAMPLES, "columns": 4, "files": True}
        trainer["callbacks"] = [{"class_path": "SampleGrid", "init_args": grid}]
    elif planned.name == "rdm":
        trainer["val_check_interval"] = 0.25
        trainer["callbacks"] = [] if few else ["RepresentationDistance"]
    arguments = {**data["init_args"], "batch_size": cost.batch}
    if planned.name == "generator":
        arguments["validation_limit"] = VALIDATED
    return {"model": model, "data": {**data, "init_args": arguments}, "trainer": trainer}


def write_config(path: Path, content: Any, comment: str) -> None:
    """Write a config with a comment that says what it is."""
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    write_text(path, f"# {comment}\n{text}")


def parts_of(encoder: EncoderChoice | None, steps: Sequence[str], seed_folder: str = "") -> dict[str, Any]:
    """Return where the parts of a run lie, relative to its folder, for commands that take the folder alone."""
    parts: dict[str, Any] = {"data": f"{CONFIGS}/data.yaml"}
    if encoder is not None:
        parts |= {"encoder": encoder.configured("encoder"), "store": "store", "eval_store": "eval_store"}
    if "rdm" in steps:
        parts["prior"] = f"{seed_folder}rdm/last.ckpt"
    if "generator" in steps:
        parts |= {"generator": f"{seed_folder}generator/last.ckpt", "samples": f"{seed_folder}samples"}
    return parts


def read_plan(folder: Path) -> dict[str, Any]:
    """Return the index of an earlier run in a folder; empty if there is none."""
    return read_state(folder / PLAN, lambda content: content.get("format") == FORMAT and "parts" in content)


def write_plan(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the index of a run."""
    write_json(folder / PLAN, {"format": FORMAT, **content})
