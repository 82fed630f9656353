"""`rcg neighbours`: its output, continuing after a stop, and mistakes."""

import sys

import numpy as np
import pytest
import torch

from rcg_lightning.cli.neighbours import bytes_of
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.data.stored_neighbours import StoredNeighbours
from rcg_lightning.errors import UserError


@pytest.fixture
def store(digits, tmp_path):
    digits(tmp_path)
    return tmp_path / "train-encoder-1"


def test_neighbours_are_written_with_their_origin(rcg, store, digits, tmp_path):
    code, output, error = rcg("neighbours", "--store", store, "--k", 9, "--out", tmp_path / "near", "--accelerator=cpu")
    assert code == 0, error
    source, made = Store.open(store), Store.open(tmp_path / "near")
    assert f"9 neighbours of each of {source.size} images" in output
    rows = torch.nn.functional.normalize(torch.from_numpy(source.whole("representation")[:, 0]).double())
    found = torch.from_numpy(made.whole("neighbours")[:, 0]).long()  # (N, 9)
    assert torch.equal(found[:, 0], torch.arange(source.size))
    cosine = rows @ rows.T
    torch.testing.assert_close(cosine.gather(1, found), cosine.topk(9).values, rtol=0, atol=1e-6)
    assert made.columns["neighbours"] == {"representation": "encoder-1", "shape": [9], "dtype": "int32"}
    assert made.identity["neighbours"] == "encoder-1/k9"
    data = digits(tmp_path)
    data.store_paths["train"].append(tmp_path / "near")
    assert data.columns("train")["neighbours"].size == source.size  # the stores fit together


def test_a_stopped_search_continues(rcg, store, tmp_path, monkeypatch):
    words = ["neighbours", "--store", store, "--k", 3, "--accelerator", "cpu", "--out"]
    search, calls = StoredNeighbours.find, []

    def until_stopped(self, start, stop):
        calls.append(start)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return search(self, start, stop)

    monkeypatch.setattr(StoredNeighbours, "find", until_stopped)
    code, _, error = rcg(*words, tmp_path / "near")
    assert code == 130
    assert "continue with: rcg neighbours" in error
    assert [path.name for path in (tmp_path / "near").glob("0*.json")] == ["000000.json"]
    assert rcg(*words, tmp_path / "near")[0] == 0
    assert calls == [0, 512, 512, 1024]
    assert rcg(*words, tmp_path / "again", "--memory", "5MB")[0] == 0
    np.testing.assert_array_equal(*(Store.open(tmp_path / name).whole("neighbours") for name in ("near", "again")))


def test_faiss_gives_the_same_store(rcg, store, tmp_path):
    pytest.importorskip("faiss", reason="the extra faiss is not installed")
    for index in ("exact", "faiss"):
        code, _, error = rcg("neighbours", "--store", store, "--out", tmp_path / index, "--index", index)
        assert code == 0, error
    exact, faiss = (Store.open(tmp_path / index).whole("neighbours")[:, 0] for index in ("exact", "faiss"))
    assert exact.shape[1] == 50
    np.testing.assert_array_equal(exact, faiss)


def test_mistakes_are_one_line_before_anything_is_written(raised, store, tmp_path, monkeypatch):
    words = ["neighbours", "--store", store, "--out", tmp_path / "near"]
    assert "2000 neighbours were asked for" in raised(*words, "--k", 2000)
    assert "--k should be at least 1" in raised(*words, "--k", 0)
    assert "such as 500MB or 2GB, not 'much'" in raised(*words, "--memory", "much")
    assert "0.01 MB are too little memory for 50 neighbours" in raised(*words, "--memory", "10kB")
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "faiss is not installed: pip install" in raised(*words, "--index", "faiss")
    writer = StoreWriter(tmp_path / "labels", 3, 1, 3, {})
    writer.write(writer.shards[0], {"cluster": np.zeros((3, 1), int)})
    writer.finish()
    assert "holds no representations" in raised(
        "neighbours", "--store", tmp_path / "labels", "--out", tmp_path / "near"
    )
    assert not (tmp_path / "near").exists()


def test_amounts_of_memory():
    assert [bytes_of(text) for text in ("500MB", "2 GB", "1.5GiB", "4096", "1e9", "8g")] == [
        500_000_000,
        2_000_000_000,
        1_610_612_736,
        4096,
        1_000_000_000,
        8_000_000_000,
    ]
    for wrong in ("", "GB", "2PB", "1..5GB", "-1GB", "0MB", "1e999GB"):
        with pytest.raises(UserError, match="--memory is an amount"):
            bytes_of(wrong)
