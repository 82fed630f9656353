"""What codecs give back, through the command."""

import json

import pytest
import torch
from PIL import Image

import rcg_process
from autoencoders import save_vq
from rcg_lightning.data.images import ImageData
from rcg_lightning.data.sources import Digits
from rcg_lightning.evaluation.reconstruction import reconstruction_scores
from rcg_lightning.evaluation.reference import real_pictures
from rcg_lightning.pretrained.codecs import Pixels
from rcg_lightning.types import to_uint8

REAL = ["--data.source", "Digits", "--data.source.limit", "256", "--accelerator", "cpu"]


class Coarse(Pixels):
    """Keeps every picture's levels in steps only: a codec that loses something."""

    def __init__(self, levels: int = 4) -> None:
        self.levels = levels

    def encode(self, batch):
        return (super().encode(batch) * self.levels).round() / self.levels


@pytest.fixture
def classifier(toy):
    return ["--extractor", "ClassifierExtractor", "--extractor.folder", toy / "classifier" / "classifier"]


def test_a_lossy_codec_is_scored_and_shown(rcg, classifier, tmp_path):
    out = tmp_path / "figures.json"
    coarse = ["--codec", f"{__name__}.Coarse", "--codec.levels", 3]
    code, _, error = rcg("reconstruct", *coarse, *REAL, *classifier, "--pictures", 5, "--out", out)
    assert code == 0, error
    content = json.loads(out.read_text())
    original = torch.cat(list(real_pictures(ImageData(Digits(limit=256)), "heldout")))
    codec = Coarse(3)
    made = to_uint8(codec.decode(codec.encode({"image": original / 255})))
    expected = reconstruction_scores([(original, made)])
    count = len(original)
    assert content["figures"][f"psnr/pixels_{count}_heldout"] == pytest.approx(expected["psnr"], rel=1e-5)
    assert content["figures"][f"ssim/pixels_{count}_heldout"] == pytest.approx(expected["ssim"], rel=1e-5)
    assert content["figures"][f"rfd/classifier_{count}_heldout"] > 0
    assert content["protocol"]["codec"]["init_args"] == {"levels": 3}
    assert Image.open(tmp_path / content["picture"]).width > 5 * 56


def test_an_autoencoders_folder_is_all_that_it_takes(rcg, tmp_path):
    folder = save_vq(tmp_path / "vq", channels=1)
    out = ["--number", 20, "--out", tmp_path / "figures.json"]
    code, _, error = rcg("reconstruct", "--codec", "VQTokens", "--codec.folder", folder, *REAL, *out)
    assert code == 0, error
    content = json.loads((tmp_path / "figures.json").read_text())
    assert 0 < content["figures"]["psnr/pixels_20_heldout"] < 40
    assert content["protocol"]["codec"]["class_path"].endswith("VQTokens")
    assert content["protocol"]["codec_identity"]


def test_two_processes_give_what_one_gives(rcg, classifier, tmp_path):
    words = ["reconstruct", "--codec", "Pixels", *REAL[:-2], *classifier, "--number", 51, "--batch_size", 16]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert rcg(*words, "--accelerator", "cpu", "--out", one)[0] == 0
    assert rcg_process.pair([*words, "--out", two], tmp_path) == [0, 0], (tmp_path / "said.txt").read_text()
    alone, together = (json.loads(path.read_text()) for path in (one, two))
    assert alone["figures"] == pytest.approx(together["figures"], rel=1e-6, abs=1e-9)
    assert alone["figures"]["psnr/pixels_51_heldout"] == float("inf")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--codec", "Representations"], "Representations gives back representations, not pictures"),
        (["--codec", "Pixels", "--number", "9999"], "9999 pictures are asked for"),
        (["--codec", "Pixels", "--lpips", "alex"], "LPIPS"),
        (["--codec", "Pixels", "--pictures", "3"], "--pictures writes a picture beside --out"),
    ],
)
def test_what_cannot_be_scored(refused, words, line, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda *a, **k: (_ for _ in ()).throw(OSError("offline"))
    )
    assert line in refused("reconstruct", *words, *REAL)
