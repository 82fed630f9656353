"""Images and verdicts of the stages of a run, through the commands that a pipeline's steps run."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.autoencoders import save_vq
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.data.datasets import Digits
from rcg_lightning.sampling.gallery import Gallery
from rcg_lightning.sampling.loading import Loaded
from rcg_lightning.sampling.stage_measurements import _shuffled
from rcg_lightning.types import DataSpec

DATA = ["--config", "digits/data", "--data.source.limit", 256, "--accelerator", "cpu"]


@pytest.fixture
def stored(toy):
    return [*DATA, f"--data.stores=[{toy / 'store'}]", f"--data.eval_stores=[{toy / 'eval_store'}]"]


def representation(toy):
    return ["--checkpoint", toy / "representation" / "last.ckpt", "--prior", toy / "rdm" / "last.ckpt"]


def first_tiles(path, count):
    """The first images of a grid's first row, (count, 8, 8)."""
    grid = np.asarray(Image.open(path))[:, :, 0]
    scale = 7  # of 8 pixels
    left = [i * (8 * scale + 2) for i in range(count)]
    return np.stack([grid[: 8 * scale : scale, x : x + 8 * scale : scale] for x in left])


def test_a_gallery_shows_evaluation_images_and_samples(rcg, toy, stored, tmp_path):
    code, output, error = rcg("gallery", *representation(toy), *stored, "--out", tmp_path)
    assert code == 0, error
    names = ["samples", "nearest", "variations", "interpolation"]
    assert [line.rpartition("/")[2] for line in output.splitlines()[-4:]] == [f"{name}.png" for name in names]
    evaluation = Digits(limit=256).evaluation().array[:, 0]
    shown = first_tiles(tmp_path / "variations.png", 3)
    assert (evaluation == shown[0]).all(axis=(1, 2)).any()
    assert not (evaluation == shown[1]).all(axis=(1, 2)).any()
    assert not np.array_equal(shown[1], shown[2])
    ends = first_tiles(tmp_path / "interpolation.png", 10)
    assert all((evaluation == end).all(axis=(1, 2)).any() for end in (ends[0], ends[-1]))
    rcg("sample", *representation(toy), "--number", 8, "--npz", "--accelerator", "cpu", "--out", tmp_path / "some")
    samples = np.load(tmp_path / "some" / "samples.npz")["arr_0"][..., 0]
    # a small request has a smaller tile, which may change the last bit
    assert np.abs(first_tiles(tmp_path / "samples.png", 8).astype(int) - samples).max() <= 1


def test_rows_of_one_seed_each_share_their_tiles(make_stage, awake, monkeypatch):
    spec = DataSpec((1, 8, 8), columns={"representation": {"shape": [6]}})
    stage = awake(make_stage(RepresentationCondition()).build(spec))  # of tiles of 16
    data = SimpleNamespace(prepare_data=lambda: None)
    gallery = Gallery(Loaded(stage, None), data, Guidance(), torch.device("cpu"))
    sample_z, tiles = stage.sample_z, []
    monkeypatch.setattr(stage, "sample_z", lambda seeds, *args: tiles.append(seeds) or sample_z(seeds, *args))
    made = gallery._sampled(torch.arange(2).repeat_interleave(8), torch.randn(16, 6))
    assert made.shape == (16, 1, 8, 8)
    assert len(tiles) == 1


def test_an_unconditional_gallery_shows_given_samples(rcg, toy, tmp_path):
    words = ["--checkpoint", toy / "none" / "last.ckpt"]
    assert rcg("sample", *words, "--number", 3, "--first_seed", 9, "--out", tmp_path / "some", "--npz")[0] == 0
    code, _, error = rcg("gallery", *words, *DATA, "--samples", tmp_path / "some", "--out", tmp_path / "gallery")
    assert code == 0, error
    assert sorted(path.stem for path in (tmp_path / "gallery").iterdir()) == ["nearest", "samples"]
    samples = np.load(tmp_path / "some" / "samples.npz")["arr_0"][..., 0]
    assert np.array_equal(first_tiles(tmp_path / "gallery" / "samples.png", 3), samples)


@pytest.fixture
def verdicts(rcg, tmp_path):
    """Run `rcg verdict`; return the verdicts by stage."""

    def run(*words):
        code, output, error = rcg("verdict", *words, "--out", tmp_path / "verdict")
        assert code == 0, error
        found = json.loads((tmp_path / "verdict" / "verdict.json").read_text())
        text = (tmp_path / "verdict" / "verdict.md").read_text()
        for one in found:
            assert f"{one['stage']}: {one['grade']}: {one['reason']}" in output
            assert f"**{one['stage']}: {one['grade']}.**" in text
        return {one["stage"]: one for one in found}

    return run


def test_random_weights_are_broken(verdicts, rcg, toy, stored, tmp_path):
    words = [*representation(toy), "--number", 64, "--accelerator", "cpu", "--out", tmp_path / "some"]
    assert rcg("sample", *words)[0] == 0
    encoder = ["--encoder", "TrainedEncoder", "--encoder.folder", toy / "encoder" / "encoder"]
    prior = ["--prior", toy / "rdm" / "last.ckpt"]
    found = verdicts(*stored, *encoder, *prior, "--samples", tmp_path / "some", "--number", 128)
    assert list(found) == ["encoder", "RDM", "generator"]
    assert found["RDM"]["grade"] == "broken"
    assert found["generator"]["grade"] == "broken"
    metrics = found["generator"]["metrics"]
    assert metrics["fd"] > metrics["fd_of_real"]
    assert 0 <= metrics["copy_rate"] < metrics["copy_rate_upper"]


def test_real_images_have_no_fault_that_untrained_features_see(verdicts, tmp_path):
    evaluation = Digits().evaluation().array[:, 0]  # in the order of writers
    for i, pixels in enumerate(np.random.default_rng(0).permutation(evaluation)[:200]):
        Image.fromarray(pixels).save(tmp_path / f"{i:03d}.png")
    data = ["--config", "digits/data", "--accelerator", "cpu"]
    found = verdicts(*data, "--samples", tmp_path)["generator"]
    assert found["grade"] == "usable", found
    assert "give an --extractor" in found["advice"]
    assert "features of an untrained network" in found["reason"]


def test_training_images_are_copies(verdicts, tmp_path, caplog):
    (tmp_path / "copies").mkdir()
    for i, pixels in enumerate(Digits(limit=256).train().array[:64, 0]):
        Image.fromarray(pixels).save(tmp_path / "copies" / f"{i:03d}.png")
    found = verdicts(*DATA, "--samples", tmp_path / "copies")["generator"]
    assert found["metrics"]["copy_rate"] == 1
    assert "copies" in found["advice"]
    assert "too few" not in caplog.text  # all sets that are compared have the same number


def test_a_principal_encoder_is_no_better_than_itself(verdicts, rcg, tmp_path):
    words = ["--data.source", "Digits", "--data.source.limit", 256, "--dim", 16, "--out", tmp_path / "principal"]
    assert rcg("principal", *words)[0] == 0
    found = verdicts(*DATA, "--encoder", "TrainedEncoder", "--encoder.folder", tmp_path / "principal")["encoder"]
    metrics = found["metrics"]
    assert metrics["encoder_effective_rank"] == pytest.approx(metrics["components_effective_rank"], rel=0.05)
    assert found["grade"] == "usable"


def test_a_codec_without_loss_is_good_and_a_random_one_is_broken(verdicts, tmp_path):
    perfect = verdicts(*DATA, "--codec", "Pixels")["tokenizer"]
    assert (perfect["grade"], perfect["metrics"]["rfd"]) == ("good", pytest.approx(0, abs=1e-6))
    random = verdicts(*DATA, "--codec", "VQTokens", "--codec.folder", save_vq(tmp_path / "vq"))["tokenizer"]
    assert random["grade"] == "broken"
    assert "of 12 codes in use" in random["reason"]
    assert random["metrics"]["psnr"] < perfect["metrics"]["psnr"]


def test_mistakes_are_rejected(raised, toy, stored, tmp_path):
    out = ["--out", tmp_path / "out"]
    assert "nothing to evaluate" in raised("verdict", *DATA, *out)
    encoder = ["--encoder", "TrainedEncoder", "--encoder.folder", toy / "encoder" / "encoder"]
    extractor = [word.replace("encoder", "extractor.encoder", 1) if isinstance(word, str) else word for word in encoder]
    assert "own encoder" in raised("verdict", *DATA, *encoder, "--extractor", "EncoderExtractor", *extractor, *out)
    assert "makes images" in raised("verdict", *stored, "--prior", toy / "none" / "last.ckpt", *out)
    assert "makes representations" in raised("gallery", "--checkpoint", toy / "rdm" / "last.ckpt", *DATA, *out)
    assert not (tmp_path / "out").exists()


def test_shuffled_pixels_keep_their_distribution():
    images = torch.randint(0, 255, (20, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shuffled = _shuffled(images)
    assert torch.equal(shuffled.sort(0).values, images.sort(0).values)
    assert not torch.equal(shuffled, images)
