"""Reconstructions of codecs, through the command."""

import json

import pytest
import torch
from PIL import Image

from helpers import rcg_process
from helpers.autoencoders import save_vq
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.evaluation.reference import real_images
from rcg_lightning.metrics.reconstruction import reconstruction_scores
from rcg_lightning.pretrained.codecs import Pixels
from rcg_lightning.types import to_uint8

REAL = ["--data.source", "Digits", "--data.source.limit", "256", "--accelerator", "cpu"]


class Coarse(Pixels):
    """Lossy codec that quantises grey values."""

    def __init__(self, levels: int = 4) -> None:
        self.levels = levels

    def encode(self, batch):
        return (super().encode(batch) * self.levels).round() / self.levels


@pytest.fixture
def classifier(toy):
    return ["--extractor", "ClassifierExtractor", "--extractor.folder", toy / "classifier" / "classifier"]


def test_a_lossy_codec_is_scored_and_shown(rcg, classifier, tmp_path):
    out = tmp_path / "metrics.json"
    coarse = ["--codec", f"{__name__}.Coarse", "--codec.levels", 3]
    code, _, error = rcg("reconstruct", *coarse, *REAL, *classifier, "--images", 5, "--out", out)
    assert code == 0, error
    content = json.loads(out.read_text())
    original = torch.cat(list(real_images(ImageDataModule(Digits(limit=256)), "eval")))
    codec = Coarse(3)
    reconstructed = to_uint8(codec.decode(codec.encode({"image": original / 255})))
    expected = reconstruction_scores([(original, reconstructed)])
    count = len(original)
    assert content["metrics"][f"psnr/pixels_{count}_eval"] == pytest.approx(expected["psnr"], rel=1e-5)
    assert content["metrics"][f"ssim/pixels_{count}_eval"] == pytest.approx(expected["ssim"], rel=1e-5)
    assert content["metrics"][f"rfd/classifier_{count}_eval"] > 0
    assert content["protocol"]["codec"]["init_args"] == {"levels": 3}
    assert Image.open(tmp_path / content["image"]).width > 5 * 56


def test_an_autoencoders_folder_is_enough(rcg, tmp_path):
    folder = save_vq(tmp_path / "vq", channels=1)
    out = ["--number", 20, "--out", tmp_path / "metrics.json"]
    code, _, error = rcg("reconstruct", "--codec", "VQTokens", "--codec.folder", folder, *REAL, *out)
    assert code == 0, error
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 < content["metrics"]["psnr/pixels_20_eval"] < 40
    assert content["protocol"]["codec"]["class_path"].endswith("VQTokens")
    assert content["protocol"]["codec_identity"]


def test_two_processes_agree_with_one(rcg, classifier, tmp_path):
    words = ["reconstruct", "--codec", "Pixels", *REAL[:-2], *classifier, "--number", 51, "--batch_size", 16]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert rcg(*words, "--accelerator", "cpu", "--out", one)[0] == 0
    assert rcg_process.pair([*words, "--out", two], tmp_path) == [0, 0], (tmp_path / "output.txt").read_text()
    alone, together = (json.loads(path.read_text()) for path in (one, two))
    assert alone["metrics"] == pytest.approx(together["metrics"], rel=1e-6, abs=1e-9)
    assert alone["metrics"]["psnr/pixels_51_eval"] == float("inf")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--codec", "Representations"], "Representations reconstructs representations"),
        (["--codec", "Pixels", "--number", "9999"], "not 9999"),
        (["--codec", "Pixels", "--lpips", "alex"], "LPIPS"),
        (["--codec", "Pixels", "--images", "3"], "--images writes an image next to --out"),
    ],
)
def test_unusable_codecs_are_rejected(raised, words, line, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("rcg_lightning.pretrained.downloads.WAIT", 0.0)
    assert line in raised("reconstruct", *words, *REAL)
