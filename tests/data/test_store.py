"""Stores: exact for any number of processes, continued after a kill, rejected where they do not belong."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import ShardCollector, StoreWriter
from rcg_lightning.errors import UserError

IDENTITY = {"dataset": "abc", "split": "train", "transform": "as is", "h": "encoder 1"}
N, V = 23, 2


def values(shard):
    index = np.arange(shard.start, shard.stop)[:, None, None]
    h = (index * 100 + np.arange(V)[:, None] * 10 + np.arange(3)).astype(np.float32)
    return {"h": h, "tokens": h[..., :2].astype(np.uint16)}


def writer(folder, **changes):
    return StoreWriter(folder, **{"size": N, "views": V, "shard_rows": 5, "identity": IDENTITY, **changes})


def make(folder, **changes):
    maker = writer(folder, **changes)
    for shard in maker.pending():
        maker.write(shard, values(shard))
    maker.finish({"tokens": {"count": 4096}})
    return Store.open(folder)


def test_a_store_returns_the_written_values(tmp_path):
    store = make(tmp_path / "s")
    assert (store.size, store.views) == (N, V)
    assert store.columns["h"] == {"shape": [3], "dtype": "float32"}
    assert store.columns["tokens"] == {"shape": [2], "dtype": "uint16", "count": 4096}
    assert store.identity == IDENTITY
    index, view = np.asarray([22, 0, 7, 7, 4]), np.asarray([1, 0, 1, 0, 0])
    expected = index[:, None] * 100 + view[:, None] * 10 + np.arange(3)
    assert np.array_equal(store.read("h", index, view), expected)
    assert np.array_equal(store.read("h", index)[:, 0], index * 100)
    whole = store.whole("h")
    assert whole.shape == (N, V, 3)
    assert np.array_equal(whole[index, view], expected)
    store.verify()


def test_two_processes_write_the_same_files_as_one(tmp_path):
    make(tmp_path / "one")
    makers = [writer(tmp_path / "two") for _ in range(2)]
    plans = [maker.pending(rank, 2) for rank, maker in enumerate(makers)]
    assert sorted(s.number for plan in plans for s in plan) == list(range(5))  # each shard once
    for maker, plan in zip(makers, plans):
        for shard in plan:
            maker.write(shard, values(shard))
    makers[0].finish({"tokens": {"count": 4096}})
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from test_store import values, writer
maker = writer(sys.argv[1])
first, second, *_ = maker.pending()
maker.write(first, values(first))
replace = os.replace
def killed(source, target):
    if str(target).endswith("000001.tokens.npy"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killed
maker.write(second, values(second))
"""


def test_a_kill_loses_one_shard_at_most(tmp_path):
    folder = tmp_path / "s"
    run = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parent)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert list(folder.glob(".*.draft"))  # the process was writing a file
    with pytest.raises(UserError, match="incomplete"):
        Store.open(folder)
    assert [shard.number for shard in writer(folder).pending()] == [1, 2, 3, 4]
    with pytest.raises(UserError, match="4 of 5 shards"):
        writer(folder).finish()
    store = make(folder)
    store.verify()
    assert np.array_equal(store.whole("h"), make(tmp_path / "unbroken").whole("h"))
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity": {**IDENTITY, "h": "encoder 2"}}, "h is 'encoder 1', not 'encoder 2'"),
        ({"identity": {**IDENTITY, "dataset": "xyz"}}, "dataset is 'abc', not 'xyz'"),
        ({"size": 24}, "size is 23, not 24"),
        ({"views": 1}, "views is 2, not 1"),
        ({"floats": "float16"}, "floats is 'float32'"),
    ],
)
def test_another_store_is_not_continued(tmp_path, changes, message):
    begun = writer(tmp_path)
    begun.write(begun.shards[0], values(begun.shards[0]))
    with pytest.raises(UserError, match=message):
        writer(tmp_path, **changes)


def test_an_identity_without_shards_can_be_replaced(tmp_path):
    writer(tmp_path)  # its maker failed before the first shard
    assert make(tmp_path, size=24).size == 24


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        writer(tmp_path)
    with pytest.raises(UserError, match="is not a store"):
        Store.open(tmp_path)
    with pytest.raises(UserError, match="no store at"):
        Store.open(tmp_path / "nowhere")


def test_damage_is_found(tmp_path):
    folder = tmp_path / "s"
    store = make(folder)
    path = folder / "000002.h.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for find in (store.verify, lambda: Store.open(folder)):
        with pytest.raises(UserError, match=r"000002\.h\.npy is damaged"):
            find()
    path.write_bytes(content[:-8])
    with pytest.raises(UserError, match="bytes"):
        Store.open(folder)
    (folder / "000002.json").unlink()  # as the message advises
    (folder / "manifest.json").unlink()
    make(folder).verify()
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Store.open(folder)
    (folder / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        Store.open(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"columns": {"h": 3}}'])
@pytest.mark.parametrize("name", ["000002.json", "identity.json", "manifest.json"])
def test_damaged_descriptions_are_written_again(tmp_path, name, content):
    make(tmp_path / "whole")
    for complete in (True, False):
        folder = tmp_path / f"damaged-{complete}"
        make(folder)
        if not complete:
            (folder / "manifest.json").unlink()
        (folder / name).write_text(content)
        make(folder).verify()
        assert [(folder / p.name).read_bytes() == p.read_bytes() for p in (tmp_path / "whole").iterdir()].count(
            False
        ) == 0


def test_a_file_that_is_cut_short_is_extracted_again(tmp_path):
    make(tmp_path)
    (tmp_path / "000002.h.npy").write_bytes(b"torn")
    make(tmp_path).verify()


def test_no_flipped_byte_is_read(tmp_path):
    folder = tmp_path / "s"
    expected = make(folder).whole("h")
    for name in ("manifest.json", "000001.h.npy", "000004.tokens.npy"):
        path, content = folder / name, (folder / name).read_bytes()
        for at in range(0, len(content), 3):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            try:
                store = Store.open(folder)
            except UserError as error:
                found = str(error)
            else:  # a space became a line's end or the like
                found = str(folder)
                assert path.suffix == ".json"
                assert np.array_equal(store.whole("h"), expected)
                assert store.identity == IDENTITY
            assert str(folder) in found
        path.write_bytes(content)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_value_that_is_not_finite_is_found_on_opening(tmp_path, monkeypatch, value):
    shards = writer(tmp_path / "s").shards

    def broken(shard):
        found = values(shard)
        if shard.number == 3:
            found["h"][2, 1, 0] = value
        return found

    maker = writer(tmp_path / "s")
    monkeypatch.setattr(maker, "_checked", lambda name, array, shard: array)  # as other code would write it
    for shard in shards:
        maker.write(shard, broken(shard))
    maker.finish()
    message = r"000003\.h\.npy holds NaN or infinity, first in row 2 \(image 17\), view 1"
    with pytest.raises(UserError, match=message):
        Store.open(tmp_path / "s")


def test_a_store_that_does_not_belong_is_rejected(tmp_path):
    store = make(tmp_path / "s")
    store.check(dataset="abc", split="train")
    with pytest.raises(UserError, match="split is 'train', not 'eval'"):
        store.check(dataset="abc", split="eval")


def test_reading_needs_no_write_permission(tmp_path):
    folder = tmp_path / "s"
    make(folder)
    for path in [*folder.iterdir(), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    store = Store.open(folder)
    rows = store.read("h", np.arange(N))
    assert rows.shape == (N, 3)
    assert not store._map("h", 0).flags.writeable
    folder.chmod(0o755)


def test_a_store_is_pickled_without_its_data(tmp_path):
    store = make(tmp_path / "s")
    store.whole("h")
    content = pickle.dumps(store)
    assert b"memmap" not in content
    assert np.array_equal(pickle.loads(content).whole("h"), store.whole("h"))


def test_floats_can_be_stored_in_half_precision(tmp_path):
    store = make(tmp_path / "s", floats="float16")
    assert store.columns["h"]["dtype"] == "float16"
    assert store.columns["tokens"]["dtype"] == "uint16"
    assert store.read("h", np.asarray([3]), 1).tolist() == [[310, 311, 312]]


def test_the_message_about_a_full_disk_gives_needed_and_free_bytes(tmp_path, monkeypatch):
    maker = writer(tmp_path / "s")
    shard = maker.pending()[0]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(UserError, match="736 bytes needed, 100 bytes free"):
        maker.write(shard, values(shard))
    monkeypatch.undo()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no room"):
        maker.write(shard, values(shard))
    monkeypatch.undo()
    assert len(maker.pending()) == 5
    assert not list((tmp_path / "s").glob(".*.draft"))
    make(tmp_path / "s").verify()


def test_wrong_columns_are_rejected(tmp_path):
    maker = writer(tmp_path / "s")
    shard = maker.pending()[0]
    with pytest.raises(UserError, match="shape"):
        maker.write(shard, {"h": np.zeros((5, 1, 3), np.float32)})
    broken = values(shard)
    broken["h"][3, 1, 0] = np.nan
    with pytest.raises(UserError, match="'h' of image 3 is not finite"):
        maker.write(shard, broken)
    with pytest.raises(UserError, match="not finite in float16"):
        writer(tmp_path / "t", floats="float16").write(shard, {"h": np.full((5, V, 1), 1e6, np.float32)})
    with pytest.raises(UserError, match="cannot be stored"):
        maker.write(shard, {"h": np.full((5, V), "text")})
    with pytest.raises(UserError, match="no 'k', only"):
        make(tmp_path / "s").read("k", np.asarray([0]))
    with pytest.raises(IndexError):
        Store.open(tmp_path / "s").read("h", np.asarray([N]))


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1)])
def test_a_store_without_an_image_a_view_or_rows_in_a_shard_is_rejected(tmp_path, sizes):
    with pytest.raises(UserError):
        StoreWriter(tmp_path / "s", *sizes, {})
    assert not (tmp_path / "s").exists()
    assert StoreWriter(tmp_path / "s", 1, 1, 1, {}).pending()


def test_batches_are_collected_into_shards(tmp_path):
    maker = writer(tmp_path / "s")
    collector = ShardCollector(maker)
    for shard in maker.pending():
        rows = values(shard)
        pairs = [(i, v) for i in range(shard.start, shard.stop) for v in range(V)]
        for first in range(0, len(pairs), 3):  # batches of 3, not a multiple of the views
            index, view = np.asarray(pairs[first : first + 3]).T
            collector.add(index, view, {name: array[index - shard.start, view] for name, array in rows.items()})
    maker.finish()
    assert np.array_equal(Store.open(tmp_path / "s").whole("h"), make(tmp_path / "t").whole("h"))
    with pytest.raises(UserError, match="several shards"):
        collector.add(np.asarray([4, 5]), np.asarray([0, 0]), {})


def test_an_identity_that_is_no_dictionary_is_named(tmp_path):
    make(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    content = {name: value for name, value in json.loads(path.read_text()).items() if name != "checksum"}
    path.write_text(json.dumps({**content, "identity": "x"}))
    with pytest.raises(UserError, match=r"manifest.json is damaged: its identity is 'x'"):
        Store.open(tmp_path / "s")
