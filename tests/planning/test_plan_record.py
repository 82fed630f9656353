"""A plan that is made again in the folder of an earlier run."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from rcg_lightning.planning import run_plan
from rcg_lightning.planning.machine import this_machine
from rcg_lightning.planning.plan_record import PlanRecord
from rcg_lightning.planning.run_plan import Wishes, examine_data


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Plan a run of 60 images, of which a store of ``fitting`` fits the budget; return the limit of its images."""
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run_plan, "STORE_SHARE", 0.0)
    (tmp_path / "images").mkdir()
    for seed in range(60):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{seed}.png")

    def planned(fitting):
        monkeypatch.setattr(run_plan, "FEW", fitting)
        machine, wishes = this_machine("cpu"), Wishes(str(tmp_path / "images"))
        record = PlanRecord.read(tmp_path / "run")
        choices = examine_data(wishes, machine, record.known)
        record.planned(wishes, choices, machine, 600 * fitting, None, lambda line: None)
        record.write(choices, 1, machine)
        return choices.source.limit

    return planned


def test_a_late_run_keeps_half_of_its_later_stages(tmp_path, monkeypatch):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    machine, record = this_machine("cpu"), PlanRecord.read(tmp_path / "run")
    choices = examine_data(Wishes("digits"), machine, None)
    first = record.planned(Wishes("digits"), choices, machine, 600, None, lambda line: None)
    again = record.replan(choices, 3.0, 900, ["encoder", "store", "generator"])
    planned, late = ({stage.name: stage.steps for stage in plan if stage.steps} for plan in (first, again))
    assert late == {**planned, "rdm": math.ceil(planned["rdm"] / 2)}


def test_a_run_that_has_represented_some_images_continues_on_these(plan, tmp_path):
    assert [plan(30), plan(20), plan(100)] == [30, 20, None]  # nothing has run yet
    assert plan(20) == 20
    (tmp_path / "run" / ".store.json").write_text(json.dumps({"key": "k"}))
    assert plan(30) == 20
