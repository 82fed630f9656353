"""Tar shards: the same images as in a folder, in any order, and errors about broken ones."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.image_folders import FlatFolder, TarShards
from rcg_lightning.data.image_split import ArraySplit, Source
from rcg_lightning.data.transforms import CenterCrop
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
        ({"0.jpg": jpeg(0), "0.cls": b"-1"}, "w", "0.cls is not a whole number from 0"),
        ({"0.jpg": jpeg(0), "0.cls": b"99999999999"}, "w", r"0.cls claims 100,000,000,000 classes.*RCG_LIMIT_CLASSES"),
        ({"0.jpg": jpeg(0), "0.cls": b"1" * 100}, "w", "0.cls is not a whole number"),
        ({"a.cat.jpg": jpeg(0), "a.dog.jpg": jpeg(1)}, "w", r"a\.cat\.jpg and a\.dog\.jpg share the key a"),
        ({"a.jpg": jpeg(0), "a.png": jpeg(1)}, "w", r"a\.jpg and a\.png share the key a"),
        ({"./a.jpg": jpeg(0), "a.jpg": jpeg(1)}, "w", r"a\.jpg and a\.jpg share the key a"),
        ({"a.jpg": jpeg(0), "a.cls": b"0", "./a.cls": b"1"}, "w", r"a\.cls and a\.cls share the key a"),
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


@pytest.fixture
def one(tmp_path, monkeypatch):
    """The path of a tar of 20 images with the classes 0 to 2."""
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    content = {f"{i:03d}.jpg": jpeg(i) for i in range(20)} | {f"{i:03d}.cls": b"%d" % (i % 3) for i in range(20)}
    write(tmp_path / "one" / "shard.tar", dict(sorted(content.items())))
    return tmp_path / "one" / "shard.tar"


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("block", [1, 512])
def test_a_torn_tar_is_rejected(one, fraction, block):
    content = one.read_bytes()
    one.write_bytes(content[: int(fraction * 20 * 2048) // block * block])
    with pytest.raises(UserError, match=r"shard\.tar"):
        TarShards(one.parent).train()


def test_a_tar_that_ends_after_a_whole_member_is_torn_too(one):
    with tarfile.open(one) as tar:
        last = tar.getmembers()[-2]
    one.write_bytes(one.read_bytes()[: last.offset])
    with pytest.raises(UserError, match="cut short"):
        TarShards(one.parent).train()


def test_damage_inside_a_tar_is_found(one):
    with tarfile.open(one) as tar:
        middle = tar.getmembers()[10]
    content = bytearray(one.read_bytes())
    content[middle.offset : middle.offset + 100] = b"x" * 100  # Python takes a damaged header for the end
    one.write_bytes(bytes(content))
    with pytest.raises(UserError, match="damaged or cut short"):
        TarShards(one.parent).train()


def test_two_tars_in_one_file_are_rejected(one):
    one.write_bytes(one.read_bytes() * 2)
    with pytest.raises(UserError, match="holds more after its end"):
        TarShards(one.parent).train()


def test_numbers_after_a_dot_belong_to_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    content = {f"scan.{i:04d}.jpg": jpeg(i) for i in range(20)} | {
        f"scan.{i:04d}.cls": b"%d" % (i % 2) for i in range(20)
    }
    write(tmp_path / "scans" / "shard.tar", content)
    images = TarShards(tmp_path / "scans", eval_share=0).train()
    assert images.labels.tolist() == [0, 1] * 10
    assert len({images.load(i).numpy().tobytes() for i in range(20)}) == 20


def test_hidden_tars_and_members_are_left_out(one, caplog):
    content = {f"{i}.jpg": jpeg(i) for i in range(3)} | {"._0.jpg": b"x", "._0.cls": b"x", "a.txt": b"x", "9.cls": b"1"}
    write(one.parent / "._shard.tar", {})
    write(one, content | {f"{i}.cls": b"0" for i in range(3)})
    with caplog.at_level("WARNING"):
        assert len(TarShards(one.parent, eval_share=0).train()) == 3
    assert "left out 4 files that are no images (1 .txt, 1 class without an image, 2 hidden)" in caplog.text


def test_links_in_a_tar_are_rejected(one):
    with tarfile.open(one, "w") as tar:
        entry = tarfile.TarInfo("0.jpg")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    with pytest.raises(UserError, match=r"0\.jpg is a link"):
        TarShards(one.parent).train()


# classes


def split_tars(root, train, evaluation):
    for name, labels in (("train", train), ("val", evaluation)):
        content = {f"{i}.jpg": jpeg(i) for i in range(len(labels))}
        write(root / name / "a.tar", content | {f"{i}.cls": b"%d" % label for i, label in enumerate(labels)})
    return ImageDataModule(TarShards(root), CenterCrop(8))


def test_classes_that_training_lacks_are_rejected_at_start(tmp_path, monkeypatch):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    data = split_tars(tmp_path / "shards", [0, 1, 2], [0, 5])
    data.needs = {"image", "label"}
    with pytest.raises(UserError, match=r"val/a\.tar/1\.jpg has class 5, but the training images have 3 classes"):
        data.setup("fit")


def test_fewer_classes_in_evaluation_fit(tmp_path, monkeypatch):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    data = split_tars(tmp_path / "shards", [0, 1, 2], [0, 1])
    assert data.images("eval").classes == data.images("train").classes == 3


class Labelled(Source):
    """A user's own data set, with the labels given."""

    def __init__(self, train, evaluation, classes):
        self.labels, self.classes = (train, evaluation), classes

    def _split(self, labels):
        return ArraySplit(np.zeros((len(labels), 1, 4, 4), np.uint8), labels, self.classes, "mine")

    def train(self):
        return self._split(self.labels[0])

    def evaluation(self):
        return self._split(self.labels[1])


@pytest.mark.parametrize(
    ("train", "evaluation", "classes", "message"),
    [
        ([0, 3], [0], 3, "has class 3, but"),  # the row of the null condition
        ([0, -1], [0], 3, "has class -1, but"),
        ([0, 1], [7], 3, "has class 7, but"),
        ([0, 1], [1], None, "have none"),
        ([0, 1], [1], 10**9, "RCG_LIMIT_CLASSES"),
    ],
)
def test_the_labels_of_every_source_are_checked(train, evaluation, classes, message):
    data = ImageDataModule(Labelled(train, evaluation, classes))
    with pytest.raises(UserError, match=message):
        data.setup("fit")
