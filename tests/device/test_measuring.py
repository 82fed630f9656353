"""Extraction, neighbours and metrics on the pretended device equal those of the CPU."""

import json

import numpy as np
import pytest
import torch

from helpers.pretended.backend import GPU
from rcg_lightning.cli.evaluate import evaluate
from rcg_lightning.cli.extract import extract
from rcg_lightning.cli.neighbours import neighbours
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.data.store import Store
from rcg_lightning.metrics.feature_extractors import InceptionExtractor
from rcg_lightning.pretrained.codecs import KLLatents, VQTokens
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder
from rcg_lightning.trainer import pick_device

pytestmark = pytest.mark.usefixtures("trains_there", "own_cache")


def both(tmp_path, command):
    """Run a command with an output path on the device and on the CPU; return both paths."""
    paths = [tmp_path / "there", tmp_path / "here"]
    for path, accelerator in zip(paths, ("auto", "cpu")):
        command(path, accelerator)
    return paths


def assert_equal_stores(there, here):
    there, here = Store.open(there), Store.open(here)
    assert there.columns.keys() == here.columns.keys()
    for name in here.columns:
        np.testing.assert_allclose(there.whole(name), here.whole(name), rtol=1e-5, atol=1e-5)


def test_the_device_is_found():
    assert pick_device("auto") == torch.device(GPU.type)


def test_extraction(frozen_networks, tmp_path):
    def command(out, accelerator):
        networks = [VQTokens(frozen_networks.tokenizer), KLLatents(frozen_networks.kl)]
        data = ImageDataModule(Digits(limit=64), batch_size=32)
        extract(data, out, TrainedEncoder(frozen_networks.encoder), networks, accelerator=accelerator)

    assert_equal_stores(*both(tmp_path, command))


def test_neighbours(digits, stored, tmp_path):
    store = digits(stored).store_paths["train"][0]
    there, here = both(tmp_path, lambda out, accelerator: neighbours(store, out, 4, accelerator=accelerator))
    assert_equal_stores(there, here)


def assert_equal_metrics(there, here, rel=1e-3):
    there, here = ({**json.loads(path.read_text())["metrics"]} for path in (there, here))
    assert there
    assert there == pytest.approx(here, rel=rel, abs=1e-4)


@pytest.mark.parametrize(("precision", "rel"), [("32-true", 1e-3), ("bf16-mixed", 0.1)])
def test_generated_images_are_scored(precision, rel, fitted, data, extractor, tmp_path):
    run = fitted("repa", precision)

    def command(out, accelerator):
        given = precision if accelerator == "auto" else "32-true"
        evaluate(run.last, extractor, data, number=40, all=True, out=out, accelerator=accelerator, precision=given)

    assert_equal_metrics(*both(tmp_path, command), rel)


def test_images_in_files_are_scored(data, extractor, samples, tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=samples.permute(0, 2, 3, 1).numpy())

    def command(out, accelerator):
        evaluate(tmp_path / "samples.npz", extractor, data, all=True, parzen=True, out=out, accelerator=accelerator)

    assert_equal_metrics(*both(tmp_path, command))


def test_generated_representations_are_scored(fitted, digits, stored, tmp_path):
    run = fitted("rdm", "32-true")

    def command(out, accelerator):
        precision = "32-true"
        evaluate(run.last, data=digits(stored), number=40, out=out, accelerator=accelerator, precision=precision)

    assert_equal_metrics(*both(tmp_path, command))


def test_inception(inception_weights):
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    extractor = InceptionExtractor(inception_weights)
    with torch.autocast(GPU.type, torch.bfloat16):
        there = extractor(images.to(GPU))
    here = InceptionExtractor(inception_weights)(images)
    for one, other in zip(there, here):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-4)
