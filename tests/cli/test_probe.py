"""Probes of an encoder and of its stores."""

import json

import pytest
import torch

from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.data.store import Store
from rcg_lightning.metrics.probes import probe

REAL = ["--data.source", "Digits", "--data.source.limit", "256"]


def test_an_encoder_and_its_stores_give_the_same_probes(rcg, toy, tmp_path):
    stores = [f"--data.stores=[{toy}/store]", f"--data.eval_stores=[{toy}/eval_store]"]
    encoder = ["--encoder", "TrainedEncoder", "--encoder.folder", toy / "encoder" / "encoder"]
    found = []
    for i, words in enumerate((stores, encoder)):
        out = tmp_path / f"{i}.json"
        code, output, error = rcg("probe", *REAL, *words, "--accelerator", "cpu", "--out", out)
        assert code == 0, error
        found.append(json.loads(out.read_text()))
        assert all(name in output for name in found[-1]["metrics"])
    assert found[0]["metrics"] == pytest.approx(found[1]["metrics"], rel=1e-4)
    assert found[0]["protocol"] == found[1]["protocol"]

    data = ImageDataModule(Digits(limit=256))
    rows, labels = [], []
    for split, name in (("train", "store"), ("eval", "eval_store")):
        rows.append(torch.from_numpy(Store.open(toy / name).whole("representation")[:, 0]))
        labels.append(torch.from_numpy(data.images(split).labels))
    expected = probe(rows[0], labels[0], rows[1], labels[1])
    train_count, eval_count = len(rows[0]), len(rows[1])
    assert found[0]["metrics"] == {
        f"uniformity/encoder_{train_count}": expected["uniformity"],
        f"effective_rank/encoder_{train_count}": expected["effective_rank"],
        f"knn_accuracy/encoder_{eval_count}_eval": expected["knn_accuracy"],
        f"linear_accuracy/encoder_{eval_count}_eval": expected["linear_accuracy"],
    }


def test_an_encoder_or_stores_are_needed(raised, toy):
    assert "give --encoder, or a store that rcg extract wrote as --data.stores" in raised("probe", *REAL)
    words = [f"--data.stores=[{toy}/store]"]
    assert "as --data.eval_stores" in raised("probe", *REAL, *words)
