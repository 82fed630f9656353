"""Commands that take a run's folder take its images too."""

import json

import pytest

from rcg_lightning.cli.run_data import with_run_data
from rcg_lightning.planning.files import write_plan


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "mine"
    (folder / "generator").mkdir(parents=True)
    write_plan(folder, {"parts": {"data": "configs/data.yaml"}})
    return folder


def test_a_run_is_compared_with_its_own_images(run):
    config = ["--config", str(run / "configs/data.yaml")]
    assert with_run_data([str(run), "--number", "9"], "--samples") == ["--samples", str(run), *config, "--number", "9"]
    step = str(run / "generator")
    assert with_run_data([step], "--checkpoint") == ["--checkpoint", step, *config]
    assert with_run_data(["mine"], "--samples")[2:] == ["--config", "runs/mine/configs/data.yaml"]


@pytest.mark.parametrize(
    "images", [["--data.source", "Digits"], ["--reference-samples=x"], ["--config", "digits/data"]]
)
def test_other_images_that_are_named_are_taken(run, images):
    assert with_run_data([str(run), *images], "--samples") == ["--samples", str(run), *images]


def test_what_is_no_run_of_rcg_train_is_left_as_it_is(tmp_path):
    assert with_run_data([str(tmp_path)], "--samples") == ["--samples", str(tmp_path)]
    assert with_run_data(["--samples", str(tmp_path)], "--samples") == ["--samples", str(tmp_path)]
    (tmp_path / "plan.json").write_text(json.dumps({"format": 0}))
    assert with_run_data([str(tmp_path)], "--samples") == ["--samples", str(tmp_path)]
