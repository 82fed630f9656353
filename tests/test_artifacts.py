"""Artifacts on disk: written whole or not at all, by any number of processes; those of earlier versions rejected."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rcg_lightning.artifacts import (
    cache_folder,
    check_format,
    check_writable,
    file_sha256,
    fingerprint,
    locked,
    read_state,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)
from rcg_lightning.errors import UserError

# -- cache folder ------------------------------------------------------------------------------------------------------


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RCG_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "rcg-lightning"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder("coco", "a.json") == tmp_path / "user" / "rcg-lightning" / "coco" / "a.json"
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "own"))
    assert cache_folder("coco") == tmp_path / "own" / "coco"


# -- writing -----------------------------------------------------------------------------------------------------------


def interrupted(draft):
    draft.write_text("half")
    raise KeyboardInterrupt


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, shared):
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 1}, shared)
    with pytest.raises(KeyboardInterrupt), replacing(path, shared) as draft:
        interrupted(draft)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_a_full_disk_is_reported_under_the_final_name(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(tmp_path / "results.md", "text")
    assert caught.value.filename == str(tmp_path / "results.md")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    folder, rename = tmp_path / "network", os.rename
    for number in range(2):
        with replacing_folder(folder, "marker", "a network") as draft:
            (draft / "marker").write_text(str(number))

    def fails(source, target):
        if str(source).endswith(".draft"):
            raise OSError(28, "No space left on device", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(OSError, match="No space left") as caught, replacing_folder(folder, "marker", "it") as draft:
        (draft / "marker").write_text("2")
    assert caught.value.filename == str(folder)
    assert (folder / "marker").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["network"]


def test_a_path_that_cannot_be_written_is_rejected_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "file", is_file=True)
    check_writable(tmp_path / "new" / "deep")
    check_writable(Path("new.json"), is_file=True)
    with pytest.raises(UserError, match=r"file/out cannot be written: .*file is not a folder"):
        check_writable(tmp_path / "file" / "out")
    with pytest.raises(UserError, match="is a folder: give the path of a file"):
        check_writable(tmp_path, is_file=True)
    monkeypatch.setattr(os, "access", lambda *_: False)  # to root everything is writable
    with pytest.raises(UserError, match="is read-only for you"):
        check_writable(tmp_path / "out")


KILLED = """
import os, signal, sys
from pathlib import Path
from rcg_lightning.artifacts import replacing, replacing_folder
folder = Path(sys.argv[1])
with replacing(folder / "file") as file, replacing_folder(folder / "network", "marker", "a network") as draft:
    file.write_text("half")
    (draft / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_draft_of_a_killed_process_is_used_up(tmp_path):
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".file.draft", ".network.draft"]
    write_text(tmp_path / "file", "whole")
    with replacing_folder(tmp_path / "network", "marker", "a network") as draft:
        (draft / "marker").write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"
    assert [entry.name for entry in (tmp_path / "network").iterdir()] == ["marker"]
    assert len(list(tmp_path.iterdir())) == 2


def test_processes_that_share_a_file_have_drafts_of_their_own(tmp_path):
    path = tmp_path / "cache.json"
    with replacing(path, shared=True) as one, replacing(path, shared=True) as other:
        one.write_text("1" * 1000)
        other.write_text("2" * 1000)
    assert path.read_text() == "1" * 1000  # the last one to finish
    assert len(list(tmp_path.iterdir())) == 1


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b'{"key": "a', b"[1]", b'"text"', b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_damaged_state_counts_as_missing_with_a_warning(tmp_path, caplog, content):
    path = tmp_path / ".step.json"
    assert read_state(path) == {}
    assert not caplog.records
    path.write_bytes(content)
    assert read_state(path) == {}
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert "\n" not in record.getMessage()
    write_json(path, {"a": 1})
    assert read_state(path) == {"a": 1}
    assert read_state(path, lambda content: "b" in content) == {}


# -- fingerprints and locks --------------------------------------------------------------------------------------------


def test_a_fingerprint_is_of_content_and_bytes():
    found = fingerprint({"b": [1, 2.5], "a": None})
    assert found == fingerprint({"a": None, "b": (1, 2.5)}) == "6b1d84977084473f"
    assert len({found, fingerprint({"a": None}), fingerprint(None), fingerprint(None, [b"0"])}) == 4
    array = np.arange(6).reshape(2, 3)
    assert fingerprint(None, [array.data]) == fingerprint(None, [array.tobytes()])
    with pytest.raises(TypeError):
        fingerprint(object())


def test_a_lock_is_released_at_the_end(tmp_path):
    path = tmp_path / "run" / ".lock"
    with locked(path, "busy"), pytest.raises(UserError, match="busy"), locked(path, "busy"):
        pass
    with locked(path, "busy"):
        pass


HOLDS = """
import os, signal, sys, time
from pathlib import Path
from rcg_lightning.artifacts import locked
with locked(Path(sys.argv[1]), "busy"):
    if os.fork() == 0:
        print(os.getpid(), flush=True)  # it has left the lock by now
        time.sleep(30)  # like a worker of a data loader that has not noticed yet
        os._exit(0)
    sys.stdin.read()
"""


def test_a_lock_ends_with_its_process_but_not_before(tmp_path):
    path = tmp_path / ".lock"
    words = [sys.executable, "-c", HOLDS, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        worker = int(holder.stdout.readline())
        with pytest.raises(UserError, match="busy"), locked(path, "busy"):
            pass
        holder.kill()
        holder.wait()
        with locked(path, "busy"):
            os.kill(worker, signal.SIGKILL)


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with locked(tmp_path / ".lock", "busy"):
        assert "cannot be locked (No locks available)" in caplog.text


# -- artifacts of other versions ---------------------------------------------------------------------------------------

OLD = (
    r"was made by an earlier version, before the renaming \(format {}, this version reads format \d\): (make it|delete)"
)


def old(number=1):
    return re.compile(OLD.format(number))


def test_formats_are_compared():
    check_format(2, 2, "it", "make it again")
    with pytest.raises(UserError, match=old()):
        check_format(None, 2, "it", "make it again")
    with pytest.raises(UserError, match=r"it was made by a later version \(format 3, .* reads format 2\): update"):
        check_format(3, 2, "it", "make it again")


@pytest.fixture
def old_checkpoint(tmp_path):
    """A checkpoint as it was before the renaming."""
    stage = {"class_path": "rcg_lightning.stages.diffusion.DiffusionStage", "init_args": {"law": None}}
    content = {"stage": stage, "facts": {"image": [1, 8, 8]}, "state_dict": {"weight": torch.ones(1)}, "global_step": 1}
    torch.save(content, tmp_path / "last.ckpt")
    return content


def old_folder(folder, name, **description):
    """A folder with weights and their description as it was before the renaming."""
    folder.mkdir(parents=True)
    save_file({"weight": torch.ones(1)}, folder / "weights.safetensors")
    sha256 = file_sha256(folder / "weights.safetensors")
    (folder / name).write_text(json.dumps({"format": 1, "sha256": sha256, **description}))


def test_an_old_checkpoint_is_described(old_checkpoint, tmp_path, make_stage, raised):
    from rcg_lightning.stages.diffusion import DiffusionStage

    path = tmp_path / "last.ckpt"
    for read in (DiffusionStage.load, make_stage().start_from):
        with pytest.raises(UserError, match=old()) as caught:
            read(path)
        assert str(caught.value).startswith(f"the stage in {path}")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=old()):
        make_stage().on_load_checkpoint(old_checkpoint)
    assert old().search(raised("convert", "--to", "official", "--from", path, "--out", tmp_path / "rdm.pth"))
    assert old().search(raised("sample", "--checkpoint", path, "--out", tmp_path / "samples"))
    continued = ["--ckpt_path", path, f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert old().search(raised("fit", "--config", "digits/generator", *continued))


@pytest.mark.parametrize("bundle", [False, True])
def test_an_old_stage_folder_or_bundle_is_described(old_checkpoint, tmp_path, bundle):
    from rcg_lightning.stages.generator import Generator

    folder = tmp_path / "bundle" / "generator"
    old_folder(folder, "stage.json", stage=old_checkpoint["stage"], facts=old_checkpoint["facts"])
    with pytest.raises(UserError, match=old()) as caught:
        Generator.load(folder.parent if bundle else folder)
    assert f"the stage in {folder} " in str(caught.value)


def test_an_old_network_folder_is_described(tmp_path):
    from rcg_lightning.pretrained.trained_encoder import TrainedEncoder

    network = {"class_path": "rcg_lightning.networks.convnet.SmallConvNet", "init_args": {}}
    old_folder(tmp_path / "encoder", "network.json", network=network, settings={"kind": "encoder"})
    with pytest.raises(UserError, match=old()):
        TrainedEncoder(tmp_path / "encoder").setup()


@pytest.mark.parametrize("complete", [True, False])
def test_an_old_store_is_described(tmp_path, complete):
    from rcg_lightning.data.store import Store
    from rcg_lightning.data.store_writer import StoreWriter

    spec = {"format": 1, "size": 4, "views": 1, "shard_rows": 4, "floats": "float32", "identity": {"geometry": "plain"}}
    (tmp_path / "identity.json").write_text(json.dumps(spec))
    (tmp_path / "000000.json").write_text("{}")
    if complete:
        (tmp_path / "manifest.json").write_text(json.dumps(spec | {"columns": {}, "shards": [{}]}))
        with pytest.raises(UserError, match=old()):
            Store.open(tmp_path)
    with pytest.raises(UserError, match=r"the store in .* an earlier version.*: remove the folder and make it again"):
        StoreWriter(tmp_path, 4, 1, 4, {"transform": "plain"})


def test_an_old_reference_is_described(tmp_path):
    from rcg_lightning.evaluation.reference import Reference

    path = tmp_path / "reference.safetensors"
    spec = {"format": 2, "identity": "x", "copy_threshold": None, "train": {"size": None}}
    save_file({"train.features": torch.ones(1, 1)}, path, {"reference": json.dumps(spec)})
    with pytest.raises(UserError, match=old(2)):
        Reference.load(path)


def test_old_caches_are_made_again(tmp_path, monkeypatch):
    from PIL import Image

    from rcg_lightning.data.folder_index import index_folder

    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "a.png")
    os.utime(tmp_path / "images", (0, 0))  # settled
    assert len(index_folder(tmp_path / "images")) == 1
    (path,) = (tmp_path / "cache" / "folders").glob("*/index.json")
    cached = json.loads(path.read_text())
    path.write_text(json.dumps({**cached, "version": 1, "classes": ["old"]}))
    assert index_folder(tmp_path / "images").classes == []
    assert json.loads(path.read_text())["version"] == cached["version"]
