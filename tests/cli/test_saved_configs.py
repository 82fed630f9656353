"""The config.yaml of a run with every subcommand, from another folder, for a stage of each kind."""

import lightning.pytorch as pl
import pytest
import yaml

from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.data.store import Store
from rcg_lightning.stages.base import Stage

QUICK = [
    *("--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.logger=false"),
    "--trainer.enable_progress_bar=false",
]
STORES = ["--data.stores=[stores/train-encoder-1]", "--data.eval_stores=[stores/eval-encoder-1]"]
KINDS = {  # run -> shipped config, with paths relative to the folder of all runs; the column of its predictions
    "encoder": (["digits/encoder"], "backbone"),
    "classifier": (["digits/classifier"], "label"),
    "tokenizer": (["digits/tokenizer", "--model.network.width=8"], "tokens"),
    "rdm": (["digits/rdm", *STORES], "representation"),
    "generator": (["digits/generator", "--model.condition=RepresentationCondition", *STORES], "image"),
    "aligned": (["digits/repa", "--model.alignment.encoder.folder=encoder/encoder"], "image"),
    "mage": (
        [
            "digits/mage",
            "--model.codec.folder=tokenizer/tokenizer",
            "--data.stores=[t-train]",
            "--data.eval_stores=[t-eval]",
        ],
        "image",
    ),
    "gan": (["digits/gan"], "image"),
}


FIRST = {"aligned": "encoder", "mage": "tokenizer"}  # the run that another one needs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def fit(rcg, digits, runs, monkeypatch):
    """Train one step by the command, in the folder of all runs; the run that it needs comes first."""

    def train(kind):
        if kind in FIRST:
            train(FIRST[kind])
        monkeypatch.chdir(runs)
        digits(runs / "stores")
        for split in ("train", "eval") if kind == "mage" else ():
            codec = ["--codec=VQTokens", "--codec.folder=tokenizer/tokenizer"]
            words = ["--config", "digits/data", *codec, "--split", split, "--out", f"t-{split}", "--accelerator", "cpu"]
            assert rcg("extract", *words)[0] == 0
        if not (runs / kind).exists():
            config, *words = KINDS[kind][0]
            code, _, error = rcg("fit", "--config", config, *QUICK, *words, f"--trainer.default_root_dir={kind}")
            assert code == 0, error

    return train


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_config_works_with_every_subcommand_in_any_folder(rcg, fit, runs, tmp_path, monkeypatch, kind):
    fit(kind)
    monkeypatch.chdir(tmp_path)
    given = ["--config", runs / kind / "config.yaml", "--ckpt_path", "last"]
    measured = {}
    for command in ("validate", "test", "predict"):
        code, measured[command], error = rcg(command, *given)
        assert code == 0, error
    assert "val/" in measured["validate"]
    assert measured["test"] == measured["validate"]
    assert KINDS[kind][1] in Store.open(runs / kind / "predictions").columns
    code, _, error = rcg("fit", *given, "--trainer.max_steps=2")
    assert code == 0, error
    assert not list(tmp_path.iterdir())


def test_lightnings_own_trainer_tests_a_stage(rcg, runs, tmp_path):
    run = f"--trainer.default_root_dir={tmp_path}"
    for config in ("encoder", "classifier", "tokenizer"):  # with their own steps and hooks of validation
        assert rcg("fit", "--config", f"digits/{config}", *QUICK, run)[0] == 0
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        data = ImageDataModule(Digits())
        stage = Stage.load(tmp_path / "last.ckpt")
        assert trainer.test(stage, data, verbose=False) == trainer.validate(stage, data, verbose=False) != [{}]


def test_the_config_lies_in_the_runs_folder_whatever_the_logger(rcg, tmp_path):
    run, logs = tmp_path / "run", tmp_path / "logs"
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={logs}"]
    words = ["--config", "digits/classifier", *QUICK, *logger, f"--trainer.default_root_dir={run}"]
    assert rcg("fit", *words)[0] == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 1
    assert not list(logs.rglob("config.yaml"))


def test_only_training_starts_from_other_weights(raised):
    words = ["--config", "digits/classifier", "--ckpt_path", "x.ckpt", "--init_from", "y.ckpt"]
    assert "--init_from is of `rcg fit`" in raised("validate", *words)
