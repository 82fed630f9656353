"""Grids and settings with each kind of logger: in the logs, or in the run's folder."""

import sys
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rcg_lightning.callbacks.sample_grid import SampleGrid
from rcg_lightning.core.samplers import DDIM

GRID = "samples/generated"


@pytest.fixture
def run(make_stage, digits, trainer, tmp_path):
    """Train a stage with a grid of 6 samples for two steps, with some loggers; return the run's folder."""

    def fit(logger):
        folder = tmp_path / "run"
        made = trainer(folder, 2, callbacks=[SampleGrid(count=6, columns=3)], logger=logger, log_every_n_steps=1)
        made.fit(make_stage(sampler=DDIM(2)), digits())
        return folder

    return fit


@pytest.fixture
def wandb(monkeypatch):
    """A mock of Weights & Biases; ``wandb.Image`` is the image itself."""
    mocks = {name: ModuleType(name) for name in ("wandb", "wandb.sdk", "wandb.sdk.lib", "wandb.wandb_run")}
    mocks["wandb"].Image = lambda image: image
    mocks["wandb"].run = None
    mocks["wandb.sdk.lib"].RunDisabled = mocks["wandb.wandb_run"].Run = type("Run", (), {})
    for name, module in mocks.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    return MagicMock()


def grid_files(folder):
    return [path.name for path in (folder / "grids").glob("*")]


def tensorboard_images(folder):
    log = EventAccumulator(str(folder), size_guidance={"images": 0})
    log.Reload()
    return log.Images(GRID)


def test_a_logger_without_images_leaves_files(run, tmp_path):
    folder = run(CSVLogger(tmp_path / "csv", name="", version=""))
    assert grid_files(folder) == ["samples_generated-0000002.png"]
    with Image.open(folder / "grids" / "samples_generated-0000002.png") as image:
        assert image.size == (3 * 34 + 2, 2 * 34 + 2)
    settings = yaml.safe_load((tmp_path / "csv" / "hparams.yaml").read_text())
    assert settings["denoiser.network.width"] == 16
    assert "train/loss" in (tmp_path / "csv" / "metrics.csv").read_text()


def test_without_a_logger_the_grid_is_a_file(run):
    files = ["samples_generated-0000002.png"]
    assert grid_files(run(False)) == files
    folder = run(False)  # another run in the same folder leaves the files of the first
    assert grid_files(folder) == grid_files(folder / "version_0") == files


def test_weights_and_biases_takes_grid_and_settings(run, wandb):
    folder = run(WandbLogger(experiment=wandb))
    logged = [call.args[0] for call in wandb.log.call_args_list]
    ((image,),) = [metrics[GRID] for metrics in logged if GRID in metrics]
    assert image.size == (3 * 34 + 2, 2 * 34 + 2)
    assert any(metrics.get("trainer/global_step") == 2 for metrics in logged if GRID in metrics)
    assert wandb.config.update.call_args.args[0]["denoiser.network.width"] == 16
    assert grid_files(folder) == []


@pytest.mark.parametrize("first", ["csv", "tensorboard"])
def test_every_one_of_several_loggers_takes_what_it_can(run, wandb, tmp_path, first):
    csv, board = CSVLogger(tmp_path / "csv", name="", version=""), TensorBoardLogger(tmp_path / "board", "", "")
    loggers = [csv, board, WandbLogger(experiment=wandb)]
    folder = run(loggers if first == "csv" else loggers[::-1])
    assert [event.step for event in tensorboard_images(tmp_path / "board")] == [2]
    assert any(GRID in call.args[0] for call in wandb.log.call_args_list)
    assert (tmp_path / "csv" / "hparams.yaml").is_file()
    assert wandb.config.update.called
    assert grid_files(folder) == []


def test_a_trial_run_samples_no_grid(make_stage, digits, trainer, tmp_path, monkeypatch):
    stage = make_stage(sampler=DDIM(2))
    monkeypatch.setattr(stage, "sample", lambda *_: pytest.fail("a trial of one step would take minutes"))
    trainer(tmp_path, 1, callbacks=[SampleGrid(count=6)], logger=False, fast_dev_run=True).fit(stage, digits())
