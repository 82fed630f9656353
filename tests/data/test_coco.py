"""COCO-Stuff: selected images, seen and unseen combinations of classes, lists in place of annotations."""

import json

import pytest
from PIL import Image

from rcg_lightning.data import coco
from rcg_lightning.data.coco import CocoStuff
from rcg_lightning.errors import UserError

OTHER = 183  # of the stuff classes
THINGS, STUFF = (1, 2, 3), (92, 93, OTHER)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(root, split, scenes):
    """Write images of 100 x 50 pixels and both files of annotations.

    Args:
        scenes: for each image its objects: a class, or (class, other entries of the annotation).
    """
    (root / f"{split}2017").mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    ids = {number: 1000 - 7 * number for number in range(len(scenes))}  # not in order, as in the official files
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 100, "height": 50} for i in ids.values()]
    for image in images:
        Image.new("RGB", (100, 50)).save(root / f"{split}2017" / image["file_name"])
    for kind, classes in (("instances", THINGS), ("stuff", STUFF)):
        rows = []
        for number, objects in enumerate(scenes):
            for entry in objects:
                category, other = entry if isinstance(entry, tuple) else (entry, {})
                if category in classes:
                    row = {"image_id": ids[number], "category_id": category, "bbox": [0, 0, 50, 25], "iscrowd": 0}
                    rows.append({**row, **other})
        names = {OTHER: "other"}
        categories = [{"id": c, "name": names.get(c, f"class {c}")} for c in classes]
        content = {"images": images, "annotations": rows, "categories": categories}
        (root / "annotations" / f"{kind}_{split}2017.json").write_text(json.dumps(content))
    return [image["file_name"] for image in images]


SMALL, CROWD = {"bbox": [0, 0, 10, 10]}, {"iscrowd": 1}  # 2 % exactly is too small
TRAIN = [
    [1, 2, 92],  # seen: {1, 2, 92}
    [1, 1, 1, 1, 1, 1, 1, 92],  # eight objects, {1, 92}
    [1, 1, 1, 1, 1, 1, 1, 1, 92],  # nine: not used
    [1, 92],  # two: not used
    [1, 2, 3],  # no stuff: not used
    [1, 2, (92, SMALL)],  # two that are large enough: not used
    [1, 2, OTHER],  # two without `other`: not used
    [1, (2, CROWD), 92],  # two without the crowd: not used
    [1, 2, 92, (93, SMALL)],  # {1, 2, 92} again
]
VAL = [
    [3, 3, 93],  # the one for validation
    [2, 1, 92],  # seen
    [1, 1, 92],  # seen, as {1, 92}
    [1, 2, 3, 92],  # a superset of a seen one: unseen
    [2, 2, 92],  # a subset: unseen
    [1, (2, CROWD), 92],  # crowds count in val2017, so it is used, and seen
]


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "train", TRAIN)
    write(tmp_path, "val", VAL)
    return tmp_path


def evaluation(root, names, **settings):
    """Return the positions in VAL of the evaluation images."""
    images = CocoStuff(root, validation=1, **settings).evaluation()
    return sorted(names.index(images.name(i).rpartition("/")[2]) for i in range(len(images)))


def file_names(root, split):
    content = json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())
    return [image["file_name"] for image in content["images"]]


def test_training_images_are_selected_by_their_objects(root):
    images, names = CocoStuff(root).train(), file_names(root, "train")
    used = sorted(names.index(images.name(i).rpartition("/")[2]) for i in range(len(images)))
    assert used == [0, 1, 8]
    assert images.labels is None
    assert images.load(0).shape == (3, 50, 100)
    assert len(CocoStuff(root, limit=2).train()) == 2


@pytest.mark.parametrize(
    ("subset", "expected"),
    [("validation", [0]), ("eval", [1, 2, 3, 4, 5]), ("seen", [1, 2, 5]), ("unseen", [3, 4])],
)
def test_an_image_is_seen_if_a_training_image_has_the_same_classes(root, subset, expected):
    assert evaluation(root, file_names(root, "val"), subset=subset) == expected


def test_lists_replace_annotations(root):
    names = file_names(root, "val")
    (root / "lists").mkdir()
    (root / "lists" / "train.txt").write_text("\n".join(file_names(root, "train")[:4]))
    (root / "lists" / "seen.txt").write_text(f"val2017/{names[3]}\n{names[1]}\n")
    for file in (root / "annotations").iterdir():
        file.unlink()
    assert evaluation(root, names, subset="seen", lists=root / "lists") == [1, 3]
    assert len(CocoStuff(root, lists=root / "lists").train()) == 4
    with pytest.raises(UserError, match=r"no list of images at .*unseen\.txt"):
        CocoStuff(root, "unseen", root / "lists").evaluation()


def test_annotations_are_read_once(root, monkeypatch):
    first = CocoStuff(root).train()
    monkeypatch.setattr(coco, "annotations", None)
    assert CocoStuff(root).train().fingerprint == first.fingerprint
    monkeypatch.undo()
    file = root / "annotations" / "stuff_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"] = content["annotations"][:-2]  # those of the last image
    file.write_text(json.dumps(content))
    assert len(CocoStuff(root).train()) == 2


def test_wrong_arguments_and_files_are_rejected(root):
    with pytest.raises(UserError, match="eval, seen, unseen, validation, not 'test'"):
        CocoStuff(root, "test")
    with pytest.raises(UserError, match="no eval images"):
        CocoStuff(root).evaluation()  # all of these few are for validation
    gone = root / "val2017" / file_names(root, "val")[2]
    gone.unlink()
    with pytest.raises(UserError, match=rf"1 of 5 images .* {gone.name}"):
        CocoStuff(root, validation=1).evaluation()
    file = root / "annotations" / "stuff_train2017.json"
    file.write_text("{")
    with pytest.raises(UserError, match=r"stuff_train2017\.json is not a JSON"):
        CocoStuff(root).train()
    file.write_text("[]")
    with pytest.raises(UserError, match="no annotations"):
        CocoStuff(root).train()
    row = {"image_id": 5, "category_id": 92, "bbox": [0, 0, 9, 9]}
    file.write_text(json.dumps({"images": [], "annotations": [row], "categories": []}))
    with pytest.raises(UserError, match="annotates image 5"):
        CocoStuff(root).train()
    file.unlink()
    with pytest.raises(UserError, match=r"no annotations at .*stuff_train2017\.json"):
        CocoStuff(root).train()
