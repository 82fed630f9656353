"""Tar shards: the same images as in a folder, in any order, and errors about broken ones."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from rcg_lightning.data.image_folders import FlatFolder, TarShards
from rcg_lightning.errors import UserError


def jpeg(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Two shards of four training images and one of two evaluation images, with classes; and the images as files."""
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "shards"
    for split, numbers in {"train": [range(4), range(4, 8)], "val": [range(8, 10)]}.items():
        for shard, seeds in enumerate(numbers):
            files = {}
            for seed in seeds:
                files |= {f"{seed:03d}.jpg": jpeg(seed), f"{seed:03d}.cls": str(seed % 3).encode()}
                (tmp_path / "files" / split).mkdir(parents=True, exist_ok=True)
                (tmp_path / "files" / split / f"{seed:03d}.jpg").write_bytes(jpeg(seed))
            write(root / split / f"part-{shard}.tar", files)
    return root


def test_shards_hold_the_images_of_a_folder(shards):
    source, files = TarShards(shards), FlatFolder(shards.parent / "files")
    for found, expected in ((source.train(), files.train()), (source.evaluation(), files.evaluation())):
        assert len(found) == len(expected)
        for index in reversed(range(len(found))):
            assert torch.equal(found.load(index), expected.load(index))
    assert source.train().labels.tolist() == [seed % 3 for seed in range(8)]
    assert source.train().classes == 3
    assert source.train().name(5).endswith("train/part-1.tar/005.jpg")


def test_the_index_is_cached_until_a_shard_changes(shards, monkeypatch):
    before = TarShards(shards).train().fingerprint
    with monkeypatch.context() as patched:
        patched.setattr("rcg_lightning.data.tar_index.tarfile.open", None)
        assert TarShards(shards).train().fingerprint == before
    write(shards / "train" / "part-0.tar", {"000.jpg": jpeg(0), "000.cls": b"1"})
    assert len(TarShards(shards).train()) == 5


def test_without_classes_there_are_no_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "some.tar", {f"a/{seed}.png.jpg": jpeg(seed) for seed in range(5)} | {"a/notes.txt": b"none"})
    source = TarShards(tmp_path, eval_share=0.2)
    assert source.train().labels is None
    assert len(source.train()) + len(source.evaluation()) == 5


@pytest.mark.parametrize(
    ("files", "mode", "message"),
    [
        ({"0.txt": b"x"}, "w", "no images"),
        ({"0.jpg": b"x", "0.cls": b"cat"}, "w", "whole number"),
        ({"0.jpg": jpeg(0)}, "w:gz", "uncompressed"),
        ({"0.jpg": jpeg(0), "0.cls": b"0", "1.jpg": jpeg(1)}, "w", "has no class"),
    ],
)
def test_wrong_tar_files_are_rejected(tmp_path, monkeypatch, files, mode, message):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "shard.tar", files, mode)
    with pytest.raises(UserError, match=message):
        TarShards(tmp_path, eval_share=0).train()


def test_an_empty_folder_is_rejected(tmp_path):
    with pytest.raises(UserError, match=r"no \.tar files"):
        TarShards(tmp_path).train()
