"""Sampling by seed in every mode, and inputs that are rejected before anything is written."""

import numpy as np
import pytest
from PIL import Image

from rcg_lightning.data.store import Store

ENCODER = ["--encoder", "TrainedEncoder", "--encoder.folder", "{toy}/encoder/encoder"]


@pytest.fixture
def encoder(toy):
    return [word.format(toy=toy) for word in ENCODER]


@pytest.fixture
def sample(rcg, toy, tmp_path):
    """Sample from a generator of the toy folder; return the images (N, H, W, C)."""
    calls = []

    def run(name, *argv, prior=None):
        calls.append(name)
        out = tmp_path / f"samples{len(calls)}"
        given = ["--prior", toy / prior / "last.ckpt"] if prior else []
        words = ["--checkpoint", toy / name / "last.ckpt", *given, *argv, "--npz", "true", "--out", out]
        code, _, error = rcg("sample", *words, "--accelerator", "cpu")
        assert code == 0, error
        return np.load(out / "samples.npz")["arr_0"]

    return run


def test_smaller_tiles_agree_up_to_rounding(sample):
    usual, small = sample("none", "--number", 8), sample("none", "--number", 8, "--tile", 4)
    assert np.abs(usual.astype(int) - small.astype(int)).max() <= 1


def test_the_image_of_a_seed_is_the_same_for_any_batch(sample):
    many = sample("none", "--number", 40, "--tile", 16)
    few = sample("none", "--number", 5, "--first_seed", 15, "--batch_size", 3, "--tile", 16)
    assert np.array_equal(few, many[15:20])
    fitting = sample("none", "--number", 5, "--first_seed", 15)  # computed in smaller tiles
    assert np.abs(fitting.astype(int) - few.astype(int)).max() <= 1
    assert not np.array_equal(many[0], many[1])


def test_representations_come_from_the_prior(sample):
    tiles = ["--tile", 8, "--prior_tile", 32]
    many = sample("representation", "--number", 20, *tiles, prior="rdm")
    one = sample("representation", "--number", 1, "--first_seed", 17, *tiles, prior="rdm")
    assert np.array_equal(one[0], many[17])
    assert np.abs(sample("representation", "--number", 20, prior="rdm").astype(int) - many.astype(int)).max() <= 1


def test_output_files(rcg, toy, tmp_path):
    words = ["sample", "--checkpoint", toy / "none" / "last.ckpt", "--number", 12, "--npz", "true", "--out", tmp_path]
    code, output, _ = rcg(*words)
    assert code == 0
    assert f"{tmp_path}: 12 samples" in output
    images = np.load(tmp_path / "samples.npz")["arr_0"]
    assert images.shape == (12, 8, 8, 1)
    assert images.dtype == np.uint8
    names = sorted(path.name for path in (tmp_path / "png").iterdir())
    assert names[7] == "000007-seed7.png"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "png" / names[7])), images[7, :, :, 0])
    assert Image.open(tmp_path / "grid.png").size[0] > 100
    assert rcg(*words)[0] == 0  # again: nothing is missing, nothing changes
    assert np.array_equal(np.load(tmp_path / "samples.npz")["arr_0"], images)


def test_guidance_and_sampler_are_chosen_at_sampling(sample):
    plain = sample("class", "--number", 8, "--classes", "3")
    assert np.array_equal(sample("class", "--number", 8, "--classes", "3", "--guidance", 1), plain)
    assert not np.array_equal(sample("class", "--number", 8, "--classes", "3", "--guidance", 4), plain)
    slow = sample("class", "--number", 8, "--classes", "3", "--sampler", "DDIM", "--sampler.steps", 9)
    assert not np.array_equal(slow, plain)


def test_classes_by_generator_or_by_the_prior(sample):
    threes = sample("class", "--number", 4, "--classes", 3)
    mixed = sample("class", "--number", 4, "--classes", "3,5")
    assert np.array_equal(mixed[[0, 2]], threes[[0, 2]])
    assert not np.array_equal(mixed[1], threes[1])
    assert np.array_equal(sample("class", "--number", 4, "--classes", 3, 5), mixed)
    prior = {"prior": "rdm_class"}
    chosen = sample("representation", "--number", 4, "--classes", "[3]", **prior)
    assert not np.array_equal(chosen, sample("representation", "--number", 4, "--classes", "[5]", **prior))
    assert sample("joint", "--number", 11, "--balanced", "true", **prior).shape[0] == 11


def test_variations_and_interpolation(sample, toy, encoder, tmp_path):
    images = [tmp_path / "one.png", tmp_path / "other.png"]
    for shade, path in enumerate(images):
        pixels = np.random.default_rng(shade).integers(0, 255, (8, 8), np.uint8)
        Image.fromarray(pixels).save(path)
    one, other = (sample("representation", "--variations-of", path, *encoder, "--number", 3) for path in images)
    both = sample("representation", "--variations-of", *images, *encoder, "--number", 3)
    assert np.array_equal(both, np.concatenate([one, other]))
    line = sample("representation", "--interpolate", *images, *encoder, "--number", 5, "--interpolation", "lerp")
    assert np.array_equal(line[[0, -1]], np.stack([one[0], other[0]]))
    arc = sample("representation", "--interpolate", *images, *encoder, "--number", 5)
    assert arc.shape == line.shape
    assert np.abs(arc[[0, -1]].astype(int) - line[[0, -1]]).max() <= 1


def test_an_rdm_writes_a_store_that_a_generator_reads(rcg, sample, toy, tmp_path):
    code, output, _ = rcg(
        "sample", "--checkpoint", toy / "rdm" / "last.ckpt", "--number", 6, "--out", tmp_path / "made"
    )
    assert code == 0
    assert "a store of 6 representations" in output
    made = Store.open(tmp_path / "made" / "store")
    assert made.columns["representation"]["shape"] == [32]
    theirs = sample("representation", "--representations", tmp_path / "made", "--number", 6)
    assert np.array_equal(theirs, sample("representation", "--number", 6, prior="rdm"))


@pytest.mark.parametrize(
    ("name", "argv", "line"),
    [
        ("representation", [], "give an RDM's checkpoint with --prior"),
        ("representation", ["--prior", "{toy}/none/last.ckpt"], "makes images, not representations"),
        ("representation", ["--prior", "{toy}/encoder/last.ckpt"], "MoCoV3Stage"),
        ("representation", ["--prior", "{toy}/rdm/last.ckpt", "--classes", "3"], "conditioned on classes"),
        ("representation", ["--prior", "{toy}/rdm_class/last.ckpt", "--classes", "12"], "class 12 is out of range"),
        ("none", ["--prior", "{toy}/rdm/last.ckpt"], "--prior is of no use"),
        ("none", ["--prior_tile", "8"], "--prior_tile is of no use"),
        ("none", ["--classes", "3"], "conditioned on classes"),
        ("class", ["--classes", "-1"], "class -1 is out of range: 0 to 9"),
        ("class", ["--number", "0"], "--number should be in [1, 1000000000], not 0"),
        ("representation", ["--variations-of", "nope.png"], "need --encoder"),
        ("representation", ["--variations-of", "nope.png", *ENCODER], "nope.png cannot be read"),
        ("representation", ["--interpolate", "a.png", *ENCODER], "--interpolate takes two"),
        ("representation", ["--representations", "nope"], "no store at nope"),
        ("encoder", [], "MoCoV3Stage"),
        ("nothing", [], "no checkpoint at"),
        ("store", [], "no checkpoint at"),
    ],
)  # fmt: skip
def test_rejected_before_anything_is_written(raised, toy, tmp_path, name, argv, line):
    words = [word.format(toy=toy) for word in argv]
    output = raised("sample", "--checkpoint", toy / name / "last.ckpt", *words, "--out", tmp_path / "out")
    assert line in output
    assert not (tmp_path / "out").exists()


def test_other_samples_in_the_folder_are_not_overwritten(raised, rcg, toy, tmp_path):
    checkpoint = toy / "none" / "last.ckpt"
    assert rcg("sample", "--checkpoint", checkpoint, "--number", 4, "--out", tmp_path)[0] == 0
    before = (tmp_path / "store" / "manifest.json").read_bytes()
    assert "not 6: give another folder" in raised(
        "sample", "--checkpoint", checkpoint, "--number", 6, "--out", tmp_path
    )
    assert (tmp_path / "store" / "manifest.json").read_bytes() == before
