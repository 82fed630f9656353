"""Autoguidance, guidance intervals and solvers from the command line."""

import json

import numpy as np
import pytest
import torch

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.data.store import Store
from rcg_lightning.networks.classifier import Classifier
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.networks.ema import EMA
from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.types import DataSpec

SPEC = DataSpec(
    (1, 8, 8),
    classes=10,
    columns={"representation": {"shape": [6]}},
    identities={"representation": "encoder-1"},
)


@pytest.fixture
def models(make_stage, awake, save, tmp_path):
    """Checkpoints of two unconditional models, one class-conditional, two RDMs; and a classifier for scoring."""
    ema_names = {"ema": EMA({"long": 0.9, "short": 0.5})}
    kinds = {
        "good": make_stage(**ema_names),
        "bad": make_stage(**ema_names),
        "class": make_stage(ClassCondition()),
        "rdm": make_stage(codec=Representations()),
        "rdm_bad": make_stage(codec=Representations()),
    }
    for seed, (name, stage) in enumerate(kinds.items()):
        save(awake(stage.build(SPEC), seed), tmp_path / f"{name}.ckpt")
    torch.manual_seed(0)
    network = Classifier(SmallConvNet(1, 8, (8, 12)), 10)
    save_network(tmp_path / "classifier", network, {"image": [1, 8, 8], "classes": 10, "dim": 12})
    return tmp_path


@pytest.fixture
def sample(rcg, models):
    """Sample from a checkpoint; return the images."""
    calls = []

    def run(name, *argv):
        calls.append(name)
        out = models / f"out{len(calls)}"
        words = ["--checkpoint", models / f"{name}.ckpt", "--npz", "true", "--png", "false", "--out", out]
        code, _, error = rcg("sample", *words, *argv, "--accelerator", "cpu")
        assert code == 0, error
        return np.load(out / "samples.npz")["arr_0"]

    return run


def test_a_weaker_model_guides_by_seed(sample, models):
    weak = ["--weak", models / "bad.ckpt", "--guidance", 2]
    guided = sample("good", *weak, "--number", 20)
    assert not np.array_equal(guided, sample("good", "--number", 20))
    few = sample("good", *weak, "--number", 3, "--first_seed", 7, "--batch_size", 2)
    assert np.array_equal(few, guided[7:10])
    assert not np.array_equal(sample("good", *weak, "--weak_ema", "trained", "--number", 20), guided)
    own = sample("good", "--weak_ema", "short", "--guidance", 2, "--number", 20)
    assert not np.array_equal(own, guided)


def test_samples_of_another_weaker_model_need_another_folder(rcg, raised, models):
    words = ["sample", "--checkpoint", models / "good.ckpt", "--number", 3, "--guidance", 2, "--out", models / "out"]
    assert rcg(*words, "--weak", models / "bad.ckpt")[0] == 0
    assert rcg(*words, "--weak", models / "bad.ckpt")[0] == 0  # the same again
    assert "another folder" in raised(*words, "--weak", models / "good.ckpt")
    assert "another folder" in raised(*words, "--weak", models / "bad.ckpt", "--weak_ema", "short")


def test_an_rdm_is_guided_by_a_weaker_one(rcg, models):
    rows = []
    for name, words in {"plain": [], "guided": ["--weak", models / "rdm_bad.ckpt", "--guidance", 2]}.items():
        code, _, error = rcg(
            "sample", "--checkpoint", models / "rdm.ckpt", *words, "--number", 6, "--out", models / name
        )
        assert code == 0, error
        rows.append(Store.open(models / name / "store").read("representation", np.arange(6)))
    assert rows[0].shape == (6, 6)
    assert not np.allclose(*rows)


def test_guidance_in_an_interval_and_on_some_channels(sample):
    everything = sample("class", "--guidance", 4, "--number", 6)
    inside = sample("class", "--guidance", 4, "--interval", "0.5,1", "--number", 6)
    assert not np.array_equal(inside, everything)
    assert np.array_equal(sample("class", "--guidance", 4, "--interval", 0, 1, "--number", 6), everything)
    assert np.array_equal(sample("class", "--guidance", 4, "--guided_channels", 1, "--number", 6), everything)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--weak", "{models}/bad.ckpt"], "does nothing at guidance scale 1"),
        (["--weak", "{models}/nothing.ckpt", "--guidance", "2"], "no checkpoint"),
        (["--weak", "{models}/rdm.ckpt", "--guidance", "2"], "the weaker model makes representations"),
        (["--weak", "{models}/class.ckpt", "--guidance", "2"], "is conditioned on"),
        (["--weak_ema", "middle", "--guidance", "2"], "no EMA weights 'middle'"),
        (["--guidance", "2"], "cannot be guided"),
        (["--weak", "{models}/bad.ckpt", "--guidance", "2", "--interval", "0.8,0.2"], "should ascend"),
        (["--weak", "{models}/bad.ckpt", "--guidance", "2", "--interval", "0.8"], "two numbers"),
        (["--weak", "{models}/bad.ckpt", "--guidance", "2", "--guided_channels", "0"], "at least 1"),
        (["--sampler", "Heun", "--sampler.steps", "200"], "1 to 100 steps"),
    ],
)
def test_rejected_before_anything_is_written(raised, models, words, line):
    given = [word.format(models=models) for word in words]
    assert line in raised("sample", "--checkpoint", models / "good.ckpt", *given, "--out", models / "out")
    assert not (models / "out").exists()


def sweep_words(models):
    classifier = ["--extractor", "ClassifierExtractor", "--extractor.folder", models / "classifier"]
    data = ["--data.source", "Digits", "--data.source.limit", 128, "--accelerator", "cpu", "--number", 40]
    return ["sweep", "--checkpoint", models / "good.ckpt", *classifier, *data, "--out", models / "sweep"]


def metrics(models):
    return [row["metrics"][0]["fd"] for row in json.loads((models / "sweep" / "sweep.json").read_text())["rows"]]


@pytest.mark.parametrize("name", ["Heun", "DPMSolver2M", "Euler"])
def test_solvers_are_swept(rcg, raised, models, name):
    words = [*sweep_words(models), "--sampler", name]
    code, _, error = rcg(*words, "--steps", "2,4", "--temperature", "1,0.5")
    assert code == 0, error
    assert len(set(metrics(models))) == 4
    assert f"{name} has no eta" in raised(*words, "--eta", "1")


def test_scales_of_a_weaker_model_are_swept(rcg, models):
    words = sweep_words(models)
    assert rcg(*words, "--weak", models / "bad.ckpt", "--guidance", "1,2")[0] == 0
    first = metrics(models)
    assert rcg(*words, "--weak", models / "bad.ckpt", "--guidance", "1,2", "--interval", "0.5,1")[0] == 0
    second = metrics(models)
    assert first[0] == second[0]
    assert len({*first, *second}) == 3
