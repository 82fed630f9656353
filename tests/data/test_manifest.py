"""A store's manifest is data of others: it claims no more than there is, and its names stay in its folder."""

import json

import numpy as np
import pytest

from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A store of five images with the columns h (3,) and cluster, one of four."""
    writer = StoreWriter(tmp_path / "store", 5, 1, 2, {})
    for shard in writer.pending():
        index = np.arange(shard.start, shard.stop)[:, None]
        writer.write(shard, {"h": np.repeat(index[..., None], 3, 2).astype(np.float32), "cluster": index % 4})
    writer.finish({"cluster": {"count": 4}})
    return tmp_path / "store"


def changed(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("checksum", None)  # a stranger's manifest needs none
    change(manifest)
    path.write_text(json.dumps(manifest))


def renamed(name):
    def change(manifest):
        for columns in (manifest["columns"], *manifest["shards"]):
            columns[name] = columns.pop("h")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(size=10**12), r"manifest\.json claims 1,000,000,000,000 entries.*RCG_LIMIT_ENTRIES"),
        (lambda m: m.update(size=10**12, shard_rows=10**12), "RCG_LIMIT_ENTRIES"),
        (lambda m: m.update(size=10**8), "does not list all shards, but 3 of 50000000"),
        (lambda m: m.update(size=10**8, shard_rows=4 * 10**7), "hold no 40000000 rows"),
        (lambda m: m.update(views=0), "whole numbers from 1"),
        (lambda m: m.update(size=True), "whole numbers from 1"),
        (lambda m: m.update(shards=m["shards"][:2]), "does not list all shards"),
        (lambda m: m["columns"]["h"].update(shape=[10**9]), "hold no 2 rows of h"),
        (lambda m: m["columns"]["h"].update(shape=[-3]), "column h is float32 of shape"),
        (lambda m: m["columns"]["h"].update(dtype="object"), "column h is object"),
        (lambda m: m["columns"]["h"].update(dtype="f4,f4"), "column h is"),
        (lambda m: m["columns"]["cluster"].update(count=-4), "count -4"),
        (lambda m: m["shards"][1].pop("h"), "shard 1 has columns"),
        (lambda m: m["shards"][1]["h"].update(bytes="many"), "damaged"),
        (lambda m: m.update(columns=[1]), "damaged"),
        (renamed("../../h"), "'../../h' is no name of a column"),
        (renamed("/etc/h"), "'/etc/h' is no name of a column"),
    ],
)
def test_a_wrong_manifest_is_rejected(folder, change, message):
    changed(folder, change)
    with pytest.raises(UserError, match=message):
        Store.open(folder)


def test_a_manifest_of_nested_lists_is_rejected(folder):
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="damaged"):
        Store.open(folder)


def test_the_limit_of_entries_can_be_raised(folder, monkeypatch):
    monkeypatch.setenv("RCG_LIMIT_ENTRIES", "4")
    with pytest.raises(UserError, match="claims 5 entries, the limit is 4"):
        Store.open(folder)
    monkeypatch.setenv("RCG_LIMIT_ENTRIES", "5")
    assert Store.open(folder).size == 5


@pytest.mark.parametrize("value", [4, -1, 99_999_999_999])
def test_a_value_that_is_no_index_of_its_table_is_rejected(tmp_path, value):
    writer = StoreWriter(tmp_path, 5, 1, 2, {})
    for shard, values in zip(writer.pending(), ([0, 1], [2, value], [3])):
        writer.write(shard, {"cluster": np.asarray(values)[:, None]})
    writer.finish({"cluster": {"count": 4}})
    store = Store.open(tmp_path)
    for read in (lambda: store.read("cluster", np.arange(5)), lambda: store.whole("cluster")):
        with pytest.raises(UserError, match=rf"000001\.cluster\.npy holds .*{value}.*, not 0 to 3"):
            read()
    assert store.read("cluster", np.arange(3)).tolist() == [0, 1, 2]  # other rows are good
