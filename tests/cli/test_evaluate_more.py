"""Further metrics: the closest samples, Parzen windows, generated representations."""

import json

import pytest
import torch
from PIL import Image

from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.evaluation.image_grid import save_images
from rcg_lightning.evaluation.nearest_images import closest_matches
from rcg_lightning.evaluation.reference import Reference, real_images
from rcg_lightning.evaluation.sample_readers import open_samples
from rcg_lightning.metrics.parzen import parzen_likelihood, validation_and_test

REAL = ["--data.source", "Digits", "--data.source.limit", "256"]


@pytest.fixture
def evaluated(rcg, toy, tmp_path):
    """Evaluate toy samples; return the written results and stderr."""

    def run(samples, *words, data=REAL):
        out = tmp_path / "metrics.json"
        classifier = ["--extractor", "ClassifierExtractor", "--extractor.folder", toy / "classifier" / "classifier"]
        common = ["--samples", samples, *classifier, *data, "--accelerator", "cpu", "--out", out]
        code, _, error = rcg("evaluate", *common, *words)
        assert code == 0, error
        return json.loads(out.read_text()), error

    return run


@pytest.mark.parametrize("space", ["pixels", "features"])
def test_the_closest_samples_are_shown_next_to_training_images(evaluated, toy, tmp_path, space):
    content, _ = evaluated(toy / "samples_none", "--memorisation", 3, "--memorisation_in", space)
    found = content["closest"]
    assert (found["in"], found["of"], len(found["rows"])) == (space, 128, 3)
    assert [row["distance"] for row in found["rows"]] == sorted(row["distance"] for row in found["rows"])
    assert Image.open(tmp_path / found["image"]).height > 3 * 50
    if space == "pixels":
        samples = open_samples(toy / "samples_none" / "store").first(128)
        data = ImageDataModule(Digits(limit=256))
        expected = closest_matches(samples, real_images(data, "train"), 3)
        assert [row["training"] for row in found["rows"]] == [match.training for match in expected]


def test_generated_samples_are_analysed_as_well(evaluated, toy):
    content, _ = evaluated(toy / "none" / "last.ckpt", "--number", 40, "--seeds", 2, "--memorisation", 2, "--parzen")
    assert content["closest"]["of"] == 80
    assert len(content["blocks"][0]) == len(content["deviations"])
    assert content["deviations"]["parzen/pixels_40_eval"] > 0


def test_parzen_likelihood_is_of_images_that_did_not_choose_the_bandwidth(evaluated, toy):
    content, _ = evaluated(toy / "samples_none", "--parzen", "true")
    samples = open_samples(toy / "samples_none" / "store").first(128)
    evaluation = torch.cat(list(real_images(ImageDataModule(Digits(limit=256)), "eval")))
    validation, test = validation_and_test(evaluation)
    assert len(validation) == -(-len(evaluation) // 5)
    assert len(validation) + len(test) == len(evaluation)
    expected = parzen_likelihood(samples, validation, test)
    named = {f"{name}/pixels_128_eval": pytest.approx(value) for name, value in expected.items()}
    assert {name: content["metrics"][name] for name in named} == named
    assert {"parzen", "parzen_se", "bandwidth"} == expected.keys()
    train = torch.from_numpy(Digits(limit=256).train().array)
    spread = torch.arange(len(samples)) * len(train) // len(samples)
    for name, value in parzen_likelihood(train[spread], validation, test).items():
        assert content["metrics"][f"{name}_of_real/pixels_{len(samples)}_eval"] == pytest.approx(value)
    assert (content["parzen"]["validation"], content["parzen"]["test"]) == (len(validation), len(test))


def test_generated_representations_are_scored_directly_or_from_their_store(rcg, evaluated, toy, tmp_path):
    stores = [f"--data.stores=[{toy}/store]", f"--data.eval_stores=[{toy}/eval_store]"]
    generated, _ = evaluated(
        toy / "rdm" / "last.ckpt", "--number", 90, "--protocol", "rep-train", data=[*REAL, *stores]
    )
    names = {f"{kind}/encoder_90_{split}" for kind in ("rep_fd", "rep_fd_of_real") for split in ("train", "eval")}
    assert generated["metrics"].keys() == names
    assert generated["protocol"]["name"] == "rep-train with another number"
    assert generated["protocol"]["extractor"] is None
    (tmp_path / "published.yaml").write_text("depth/12: metrics.json\nrep-fd-of-real/train: metrics.json\n")
    code, output, _ = rcg("reproduce", "depth", "--runs", tmp_path)
    assert code == 0
    assert f"| 0.48 | {generated['metrics']['rep_fd/encoder_90_train']:.4g} (n 90, to train) |" in output
    assert "90 samples, not 50000; protocol rep-train with another number, not rep-train" in output
    output = rcg("reproduce", "rep-fd-of-real", "--runs", tmp_path)[1]
    assert f"| 0.38 | {generated['metrics']['rep_fd_of_real/encoder_90_train']:.4g} (n 90, to train) |" in output
    words = ["sample", "--checkpoint", toy / "rdm" / "last.ckpt", "--number", 90, "--accelerator", "cpu"]
    assert rcg(*words, "--out", tmp_path / "samples")[0] == 0
    read, _ = evaluated(tmp_path / "samples", data=[*REAL, *stores])
    assert read["metrics"] == pytest.approx(generated["metrics"], rel=1e-9)


def test_folders_of_mixed_sizes_are_scored_with_resize(evaluated, tmp_path):
    for side in (8, 16):
        images = torch.randint(0, 256, (6, 1, side, side + 3), dtype=torch.uint8)
        save_images([images], tmp_path / "mixed", (f"{side}_{i}.png" for i in range(6)))
    content, _ = evaluated(tmp_path / "mixed", "--resize", 8)
    assert content["protocol"]["samples_resize"] == "shorter side 8, centre 8"
    others, _ = evaluated(tmp_path / "mixed", "--resize", 8, data=["--reference_samples", tmp_path / "mixed"])
    assert others["protocol"]["reference"]["resize"] == "shorter side 8, centre 8"
    (distance,) = (value for name, value in others["metrics"].items() if name.startswith("fd/"))
    assert distance == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--samples", "{toy}/samples_none", "--memorisation", 2], "--memorisation writes an image next to --out"),
        (["--samples", "{toy}/rdm/last.ckpt", "--parzen"], "need images"),
        (["--samples", "{toy}/none/last.ckpt", "--parzen", "--number", 99999999], "too many for Parzen windows"),
        (["--samples", "{toy}/none/last.ckpt", "--ema", "short"], "no EMA weights 'short'"),
        (["--samples", "{tmp}/large"], "samples of 16x16 pixels, a reference of 8x8"),
        (["--samples", "{toy}/none/last.ckpt", "--resize", 8], "--resize is for images in files"),
        (["--samples", "{tmp}/text.npz"], "text.npz cannot be read as an .npz of images"),
        (
            ["--samples", "{tmp}/broken.ckpt", "--number", 20, "--ema", "trained"],
            "20 of 20 images hold NaN or infinity",
        ),
        (["--samples", "{toy}/none/last.ckpt", "--interval", "0.2"], "a guidance interval is two numbers"),
    ],
)
def test_impossible_evaluations_are_rejected(raised, toy, tmp_path, monkeypatch, words, line):
    save_images([torch.zeros(9, 1, 16, 16, dtype=torch.uint8)], tmp_path / "large", (f"{i}.png" for i in range(9)))
    (tmp_path / "text.npz").write_text("text")
    checkpoint = torch.load(toy / "none" / "last.ckpt", weights_only=True)
    checkpoint["state_dict"] = {
        name: value * torch.nan if "ema" not in name and value.is_floating_point() else value
        for name, value in checkpoint["state_dict"].items()
    }
    torch.save(checkpoint, tmp_path / "broken.ckpt")
    if "{tmp}/large" in words:
        monkeypatch.setattr(Reference, "measure", None)  # rejected before the real images are measured
    classifier = ["--extractor", "ClassifierExtractor", "--extractor.folder", toy / "classifier" / "classifier"]
    words = [str(word).format(toy=toy, tmp=tmp_path) for word in words]
    assert line in raised("evaluate", *words, *classifier, *REAL, "--accelerator", "cpu")
