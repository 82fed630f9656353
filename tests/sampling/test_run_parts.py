"""Sampling from the folder of a run or a bundle: its parts are found by what the files hold."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder
from rcg_lightning.sampling.run_parts import find_parts

STEPS = ("none", "class", "representation", "rdm", "encoder", "store", "eval_store", "classifier")


@pytest.fixture
def run(toy, tmp_path):
    """The folder of a run with the toy pipeline's steps."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in STEPS:
        (folder / name).symlink_to(toy / name)
    return folder


@pytest.fixture
def sampled(rcg, tmp_path):
    """Sample; return the images (N, H, W, C), the grid and the folder."""

    def sample(*argv):
        code, output, error = rcg("sample", *argv, "--npz", "--accelerator", "cpu")
        assert code == 0, error
        folder = tmp_path.parent.joinpath(output.splitlines()[-1].rpartition(": ")[0])
        return np.load(folder / "samples.npz")["arr_0"], np.asarray(Image.open(folder / "grid.png")), folder

    return sample


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png", pixels


def explicit(toy, *argv):
    return ["--checkpoint", toy / "representation" / "last.ckpt", *argv]


def test_a_run_is_sampled_by_its_folder_alone(sampled, run, toy, tmp_path):
    images, _, folder = sampled(run, "--number", 4, "--guidance", 2)
    assert folder.parent == run / "sampled"
    words = ["--prior", toy / "rdm" / "last.ckpt", "--number", 4, "--guidance", 2, "--out", tmp_path / "out"]
    assert np.array_equal(images, sampled(*explicit(toy, *words))[0])
    assert sampled(run, "--number", 4, "--guidance", 2)[2] == folder
    assert sampled(run, "--number", 4)[2] != folder


def test_variations_show_the_image_first(sampled, run, toy, tmp_path, image):
    path, pixels = image
    images, grid, _ = sampled(run, "--variations-of", path)
    encoder = ["--encoder", "TrainedEncoder", "--encoder.folder", toy / "encoder" / "encoder"]
    words = ["--variations-of", path, *encoder, "--number", 9, "--out", tmp_path / "out"]
    assert np.array_equal(images, sampled(*explicit(toy, *words))[0])
    scale = grid.shape[0] // 8
    assert np.array_equal(grid[: 8 * scale : scale, : 8 * scale : scale, 0], pixels)
    second = 8 * scale + 2
    assert np.array_equal(grid[: 8 * scale : scale, second : second + 8 * scale : scale, 0], images[0, :, :, 0])


def test_an_interpolation_lies_between_its_images(sampled, run, image, tmp_path):
    path, pixels = image
    Image.fromarray(255 - pixels).save(tmp_path / "other.png")
    images, grid, folder = sampled(run, "--interpolate", path, tmp_path / "other.png")
    assert len(images) == 9
    scale = grid.shape[0] // 8
    assert grid.shape[1] == 11 * (8 * scale + 2) - 2
    assert np.array_equal(grid[::scale, : 8 * scale : scale, 0], pixels)
    assert np.array_equal(grid[::scale, -8 * scale :: scale, 0], 255 - pixels)
    assert len(list((folder / "png").iterdir())) == 9


def test_a_step_of_the_run_is_another_generator(sampled, run, toy, tmp_path):
    images, _, folder = sampled(run / "class", "--number", 3, "--classes", 3)
    assert folder.parent == run / "sampled"
    words = ["--checkpoint", toy / "class" / "last.ckpt", "--number", 3, "--classes", 3, "--out", tmp_path / "out"]
    assert np.array_equal(images, sampled(*words)[0])


def test_a_bundle_is_sampled_by_its_folder_alone(rcg, sampled, run, image):
    assert rcg("bundle", run)[0] == 0
    images, _, folder = sampled(run / "bundle", "--variations-of", image[0], "--number", 2)
    assert folder.parent == run / "bundle-samples"
    assert np.array_equal(images, sampled(run, "--variations-of", image[0], "--number", 2)[0])


def test_the_first_seed_with_shared_steps(run, tmp_path):
    for number in (0, 1):
        (tmp_path / "seeds" / f"seed{number}").mkdir(parents=True)
        for name in ("representation", "rdm"):
            (tmp_path / "seeds" / f"seed{number}" / name).symlink_to(run / name)
    (tmp_path / "seeds" / "encoder").symlink_to(run / "encoder")
    first, second = find_parts(tmp_path / "seeds"), find_parts(tmp_path / "seeds" / "seed1")
    assert (first.generator.parts[-3], second.generator.parts[-3]) == ("seed0", "seed1")
    assert second.prior == tmp_path / "seeds" / "seed1" / "rdm" / "last.ckpt"
    assert first.networks == (tmp_path / "seeds" / "encoder" / "encoder",)


def test_a_run_in_runs_is_named_by_one_word(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run)
    assert find_parts("mine").prior is not None


def test_only_the_rdm_of_the_same_encoder_is_the_prior(run, save, make_stage, digits, tmp_path):
    (run / "rdm").unlink()
    (run / "other").mkdir()
    rdm = make_stage(codec=Representations()).build(digits(tmp_path).spec)
    save(rdm, run / "other" / "last.ckpt")
    assert find_parts(run).prior is None


def test_a_plan_describes_an_encoder_without_a_folder(run, toy):
    (run / "some" / "where").mkdir(parents=True)
    (run / "some" / "where" / "else").symlink_to(toy / "encoder" / "encoder")
    encoder = {"class_path": "TrainedEncoder", "init_args": {"folder": "some/where/else"}}  # in the run's folder
    (run / "encoder").unlink()
    (run / "classifier").unlink()
    (run / "plan.json").write_text(json.dumps({"parts": {"encoder": encoder}}))
    identity = TrainedEncoder(toy / "encoder" / "encoder").identity
    found = find_parts(run).encoder(identity)
    assert found is not None
    assert found.identity == identity
    assert found.folder == run / "some" / "where" / "else"
    (run / "some" / "where" / "else").unlink()
    assert find_parts(run).encoder(identity) is None


def test_generators_of_one_kind_must_be_named(raised, run):
    (run / "again").mkdir()
    shutil.copy(run / "representation" / "last.ckpt", run / "again" / "last.ckpt")
    assert "name one of them" in raised("sample", run)
    (run / "again").rename(run / "generator")
    assert find_parts(run).generator == run / "generator" / "last.ckpt"


def test_folders_that_hold_no_generator(raised, run, toy, tmp_path):
    assert "no generator" in raised("sample", toy / "encoder")
    assert "no checkpoint at" in raised("sample", tmp_path / "nothing")
    assert "--out is missing" in raised("sample", toy / "none" / "last.ckpt")
    (run / "encoder").unlink()
    assert "need --encoder" in raised("sample", run, "--variations-of", "image.png")


def test_a_damaged_checkpoint_is_left_out(run, caplog):
    (run / "class").unlink()
    (run / "class").mkdir()
    (run / "class" / "last.ckpt").write_bytes(b"nothing")
    assert find_parts(run).generator.parent.name == "representation"
    assert "class/last.ckpt is left out" in caplog.text
    with pytest.raises(UserError, match="holds no generator"):
        find_parts(run / "class")


def test_a_run_is_scored_by_its_folder(rcg, run, toy):
    words = ["--number", 64, "--extractor", "ClassifierExtractor", "--extractor.folder", toy / "classifier/classifier"]
    code, output, error = rcg("evaluate", run, *words, "--config", "digits/data", "--json", "--accelerator", "cpu")
    assert code == 0, error
    explicit = ["evaluate", "--samples", toy / "representation/last.ckpt", "--prior", toy / "rdm/last.ckpt", *words]
    code, expected, _ = rcg(*explicit, "--config", "digits/data", "--json", "--accelerator", "cpu")
    assert json.loads(output)["metrics"] == json.loads(expected)["metrics"]
    assert torch.isfinite(torch.tensor(list(json.loads(output)["metrics"].values()))).all()
