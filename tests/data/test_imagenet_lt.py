"""ImageNet-LT: the format of the official lists, strata by the number of training images, errors."""

import numpy as np
import pytest
from PIL import Image

from rcg_lightning.data.imagenet_lt import ImageNetLT
from rcg_lightning.errors import UserError

COUNTS = {"n01440764": 101, "n01443537": 100, "n01484850": 20, "n01491361": 19}  # many, medium, medium, few


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def root(tmp_path):
    """ImageNet with more images than the lists name, and labels in reverse order of the folders."""
    lines = {"train": [], "val": [], "test": []}
    for label, (wnid, count) in enumerate(COUNTS.items()):
        number = len(COUNTS) - 1 - label
        for folder, size in (("train", count + 2), ("val", 3)):
            (tmp_path / folder / wnid).mkdir(parents=True)
            for i in range(size):
                Image.new("RGB", (4, 4), (i, number, 0)).save(tmp_path / folder / wnid / f"{wnid}_{i}.png")
        lines["train"] += [f"train/{wnid}/{wnid}_{i}.png {number}" for i in reversed(range(count))]
        lines["val"] += [f"train/{wnid}/{wnid}_{count}.png {number}"]
        lines["test"] += [f"val/{wnid}/{wnid}_{i}.png {number}" for i in range(2)]
    for split, named in lines.items():
        (tmp_path / f"ImageNet_LT_{split}.txt").write_text("\n".join(named) + "\n")
    return tmp_path


def test_lists_give_images_and_labels(root):
    source = ImageNetLT(root)
    train, evaluation = source.train(), source.evaluation()
    assert (len(train), len(evaluation)) == (240, 8)
    assert train.classes == evaluation.classes == 4
    assert np.bincount(train.labels).tolist() == [19, 20, 100, 101]
    for images in (train, evaluation):
        for i in (0, 5, len(images) - 1):
            assert images.load(i)[1, 0, 0] == images.labels[i]  # the green channel is the label
    assert "/val/" in evaluation.name(0)
    other = ImageNetLT(root, eval_list="val").evaluation()
    assert len(other) == 4
    assert "/train/" in other.name(0)


@pytest.mark.parametrize(("stratum", "labels"), [("many", {3}), ("medium", {1, 2}), ("few", {0})])
def test_strata_are_by_the_number_of_training_images(root, stratum, labels):
    source = ImageNetLT(root, stratum=stratum)
    for images in (source.train(), source.evaluation()):
        assert set(images.labels.tolist()) == labels
        assert images.classes == 4  # labels keep their meaning
    assert source.train().fingerprint != ImageNetLT(root).train().fingerprint


def test_labels_are_part_of_the_data_sets_identity(root, tmp_path):
    first = ImageNetLT(root)
    (tmp_path / "other").mkdir()
    for split in ("train", "test"):
        text = (root / f"ImageNet_LT_{split}.txt").read_text()
        swapped = text.replace(" 0\n", " x\n").replace(" 1\n", " 0\n").replace(" x\n", " 1\n")
        (tmp_path / "other" / f"ImageNet_LT_{split}.txt").write_text(swapped)
    assert ImageNetLT(root, tmp_path / "other").train().fingerprint != first.train().fingerprint
    assert ImageNetLT(root, root).train().fingerprint == first.train().fingerprint


def test_a_limit_keeps_labels_with_their_images(root):
    few = ImageNetLT(root, limit=9).train()
    assert len(few) == 9
    assert all(few.load(i)[1, 0, 0] == few.labels[i] for i in range(9))


def test_wrong_arguments_and_lists_are_rejected(root):
    with pytest.raises(UserError, match="many, medium, few or null, not 'fewer'"):
        ImageNetLT(root, stratum="fewer")
    with pytest.raises(UserError, match="test or val, not 'eval'"):
        ImageNetLT(root, eval_list="eval")
    with pytest.raises(UserError, match=r"no list .*ImageNet_LT_train\.txt"):
        ImageNetLT(root, root / "nowhere").train()
    train = root / "ImageNet_LT_train.txt"
    good = train.read_text()
    train.write_text(good + "train/n01440764/n01440764_1.png\n")
    with pytest.raises(UserError, match=r"train\.txt, line 241 .*'train/n01440764"):
        ImageNetLT(root).train()
    train.write_text(good + "train/n01440764/gone.png 3\n")
    with pytest.raises(UserError, match=r"1 of 241 images .* n01440764/gone\.png"):
        ImageNetLT(root).train()
    train.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        ImageNetLT(root).train()
    train.write_text(good)
    (root / "ImageNet_LT_test.txt").write_text("val/n01440764/n01440764_0.png 7\n")
    with pytest.raises(UserError, match="has class 7"):
        ImageNetLT(root).evaluation()
    (root / "ImageNet_LT_test.txt").write_text("val/n01440764/n01440764_0.png 3\ntrain/n01440764/n01440764_0.png 3\n")
    with pytest.raises(UserError, match="several folders"):
        ImageNetLT(root).evaluation()
