"""Data sets by name: sizes, splits, fingerprints, and messages about missing files."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.offline import COUNT, write_mnist
from rcg_lightning.config import construct, describe
from rcg_lightning.data.datasets import CIFAR10, MNIST, Digits, FashionMNIST
from rcg_lightning.data.decode import to_pil
from rcg_lightning.errors import UserError

SHARED = Path(os.environ.get("RCG_SHARED", Path(__file__).parents[2] / ".." / "shared"))


def test_digits_are_split_as_documented():
    train, evaluation = Digits().train(), Digits().evaluation()
    assert (len(train), len(evaluation)) == (1346, 451)
    assert train.shape == (1, 8, 8)
    assert train.classes == 10
    assert train.load(0).dtype == torch.uint8
    assert int(train.array.max()) == 255  # 16 of 16 is white
    shares = np.bincount(train.labels) / 1346 - np.bincount(evaluation.labels) / 451
    assert np.abs(shares).max() < 0.01  # stratified
    assert train.fingerprint == Digits().train().fingerprint != evaluation.fingerprint


def test_a_limit_gives_a_fixed_subset_with_its_own_fingerprint():
    whole, few = Digits().train(), Digits(limit=100).train()
    assert len(few) == 100
    assert few.fingerprint == Digits(limit=100).train().fingerprint != whole.fingerprint
    assert len(np.unique(few.labels)) == 10  # shuffled, not the first of a sorted list
    assert np.isin(few.array.reshape(100, -1).sum(1), whole.array.reshape(1346, -1).sum(1)).all()
    assert len(Digits(limit=100).evaluation()) == 451


def test_grey_images_can_have_three_channels():
    image = Digits(channels=3).train().load(5)
    assert image.shape == (3, 8, 8)
    assert torch.equal(image[0], Digits().train().load(5)[0])
    assert torch.equal(image[0], image[2])


def test_a_source_is_rebuilt_from_its_description():
    source = construct(describe(Digits(channels=3, limit=7)))
    assert len(source.train()) == 7
    assert source.train().channels == 3


def test_mnist_in_torchvisions_layout():
    root = SHARED / "data"
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST at {root}: set RCG_SHARED to a folder with data/MNIST/raw")
    evaluation = MNIST(root, download=False).evaluation()
    assert len(evaluation) == 10000
    assert evaluation.shape == (1, 28, 28)
    assert evaluation.labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, CIFAR10])
def test_the_message_about_a_missing_data_set_gives_its_layout(kind, tmp_path):
    with pytest.raises(UserError, match=rf"put {kind.layout[:8]}.* into {tmp_path}") as caught:
        kind(tmp_path, download=False).train()
    assert "\n" not in str(caught.value)


def downloads(monkeypatch, write):
    """Mock torchvision's download of MNIST: ``write`` receives the folder of the raw files."""

    def download(data):
        write(Path(data.raw_folder))

    monkeypatch.setattr("torchvision.datasets.MNIST.download", download)
    monkeypatch.setattr("rcg_lightning.data.datasets.require_answer", lambda *urls: None)


def test_a_broken_download_leaves_nothing_and_is_reported(tmp_path, monkeypatch):
    def cut_off(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train-images-idx3-ubyte").write_bytes(b"half")
        raise RuntimeError("no route")

    downloads(monkeypatch, cut_off)
    with pytest.raises(UserError, match=r"downloaded.*no route"):
        MNIST(tmp_path).prepare()
    assert not list(tmp_path.iterdir())


def test_a_download_replaces_damaged_files_once_it_is_whole(tmp_path, monkeypatch):
    def write(folder):
        if not folder.exists():
            write_mnist(folder, np.random.default_rng(0))

    downloads(monkeypatch, write)
    raw = tmp_path / "MNIST" / "raw"
    MNIST(tmp_path).prepare()
    whole = (raw / "train-images-idx3-ubyte").read_bytes()
    (raw / "train-images-idx3-ubyte").write_bytes(whole[:-100])
    with pytest.raises(UserError, match="damaged, and download is off"):
        MNIST(tmp_path, download=False).train()
    assert len(MNIST(tmp_path).train()) == COUNT
    assert (raw / "train-images-idx3-ubyte").read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]


def test_cifar10_is_read_from_torchvisions_layout(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    batch = {"data": pixels.reshape(4, -1), "labels": [3, 1, 4, 1]}
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    source = CIFAR10(tmp_path, download=False)
    assert len(source.train()) == 20
    assert np.array_equal(source.evaluation().array, pixels)
    assert source.evaluation().labels.tolist() == [3, 1, 4, 1]
    assert source.validation() is None
    split = CIFAR10(tmp_path, download=False, validation_size=7)
    assert np.array_equal(split.train().array, source.train().array[:13])
    assert np.array_equal(split.validation().array, source.train().array[13:])
    with pytest.raises(UserError, match="validation_size 20"):
        CIFAR10(tmp_path, download=False, validation_size=20).train()
    grey = CIFAR10(tmp_path, channels=1, download=False).evaluation()
    expected = np.asarray(to_pil(source.evaluation().array[0]).convert("L"))
    assert np.array_equal(grey.array[0, 0], expected)


def test_channels_and_limit_are_checked():
    with pytest.raises(UserError, match="channels"):
        Digits(channels=2)
    with pytest.raises(UserError, match="limit"):
        Digits(limit=0).train()


def test_a_subset_of_classes_keeps_its_labels():
    every, some = Digits(), Digits(classes=[7, 2])
    for split in ("train", "evaluation"):
        whole, part = getattr(every, split)(), getattr(some, split)()
        selected = np.isin(whole.labels, [2, 7])
        assert np.array_equal(part.array, whole.array[selected])
        assert np.array_equal(part.labels, whole.labels[selected])
        assert part.classes == 10
    with pytest.raises(UserError, match=r"classes\[0\] should be in \[0, 9\]"):
        Digits(classes=[10]).train()
