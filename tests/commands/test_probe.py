"""Probes of an encoder, as it encodes and from its stores."""

import json

import pytest
import torch

from rcg_lightning.data.images import ImageData
from rcg_lightning.data.sources import Digits
from rcg_lightning.data.store import Store
from rcg_lightning.evaluation.probes import probe

REAL = ["--data.source", "Digits", "--data.source.limit", "256"]


def test_an_encoder_and_its_stores_are_probed_alike(rcg, toy, tmp_path):
    stores = [f"--data.stores=[{toy}/store]", f"--data.heldout_stores=[{toy}/heldout_store]"]
    encoder = ["--encoder", "TrainedEncoder", "--encoder.folder", toy / "encoder" / "encoder"]
    found = []
    for i, words in enumerate((stores, encoder)):
        out = tmp_path / f"{i}.json"
        code, said, error = rcg("probe", *REAL, *words, "--accelerator", "cpu", "--out", out)
        assert code == 0, error
        found.append(json.loads(out.read_text()))
        assert all(name in said for name in found[-1]["figures"])
    assert found[0]["figures"] == pytest.approx(found[1]["figures"], rel=1e-4)
    assert found[0]["protocol"] == found[1]["protocol"]

    data = ImageData(Digits(limit=256))
    rows, labels = [], []
    for split, name in (("train", "store"), ("heldout", "heldout_store")):
        rows.append(torch.from_numpy(Store.open(toy / name).whole("representation")[:, 0]))
        labels.append(torch.from_numpy(data.pictures(split).labels))
    expected = probe(rows[0], labels[0], rows[1], labels[1])
    trained, held = len(rows[0]), len(rows[1])
    assert found[0]["figures"] == {
        f"uniformity/encoder_{trained}": expected["uniformity"],
        f"effective_rank/encoder_{trained}": expected["effective_rank"],
        f"knn_accuracy/encoder_{held}_heldout": expected["knn_accuracy"],
        f"linear_accuracy/encoder_{held}_heldout": expected["linear_accuracy"],
    }


def test_something_to_probe_is_needed(refused, toy):
    assert "give --encoder, or a store of rcg extract as --data.stores" in refused("probe", *REAL)
    words = [f"--data.stores=[{toy}/store]"]
    assert "as --data.heldout_stores" in refused("probe", *REAL, *words)
