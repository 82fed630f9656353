"""`rcg instances`: the chosen instances, their labels, and mistakes."""

import numpy as np
import pytest
import torch

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.instance import InstanceCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.data.kmeans import kmeans
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import StoreWriter

DATA = ["instances", "--config", "digits/data"]


@pytest.fixture
def stores(rcg, digits, tmp_path):
    """Paths of the digits' representations and neighbours, and both as an option."""
    digits(tmp_path)
    source, near = tmp_path / "train-encoder-1", tmp_path / "near"
    assert rcg("neighbours", "--store", source, "--k", 7, "--out", near, "--accelerator", "cpu")[0] == 0
    return source, near, ["--data.stores", f"[{source},{near}]"]


def test_without_a_count_every_image_is_an_instance(rcg, stores, digits, tmp_path):
    source, near, words = stores
    code, output, error = rcg(*DATA, *words, "--out", tmp_path / "bank")
    assert code == 0, error
    made, images = Store.open(tmp_path / "bank"), digits().images("train")
    assert f"{made.size} of {made.size} images as instances, with the labels of 7 neighbours" in output
    np.testing.assert_array_equal(made.whole("representation"), Store.open(source).whole("representation"))
    found = Store.open(near).whole("neighbours")[:, 0]
    np.testing.assert_array_equal(made.whole("labels")[:, 0], images.labels[found])
    np.testing.assert_array_equal(made.whole("labels")[:, 0, 0], images.labels)
    assert made.columns["labels"]["count"] == 10
    assert {made.identity[name] for name in ("split", "instances")} == {"instances", "all"}
    assert made.identity["representation"] == "encoder-1"
    assert made.identity["dataset"] == images.fingerprint


def test_images_nearest_to_the_centres_are_chosen_and_can_be_sampled(rcg, stores, digits, tmp_path):
    source, _, words = stores
    code, output, error = rcg(*DATA, *words, "--count", 12, "--seed", 3, "--out", tmp_path / "bank")
    assert code == 0, error
    assert "12 of" in output
    made, points = Store.open(tmp_path / "bank"), torch.from_numpy(Store.open(source).whole("representation")[:, 0])
    chosen = made.whole("image")[:, 0]
    centres = kmeans(points, 12, 3).centroids
    nearest = torch.cdist(centres.double(), points.double()).argmin(1)
    assert len(nearest.unique()) == 12
    assert sorted(chosen.tolist()) == sorted(nearest.tolist())
    np.testing.assert_array_equal(made.whole("representation")[:, 0], points[chosen].numpy())
    assert made.identity["instances"] == "k12/seed3/most200000"
    condition, data = JointCondition([ClassCondition(), InstanceCondition(unit=False)]), digits(tmp_path)
    data.store_paths["train"].append(tmp_path / "near")
    condition.parts(data.spec)
    condition.use_instances(tmp_path / "bank")
    label, representation = condition.sample({"seed": torch.arange(40)})
    bank = made.whole("representation")[:, 0]
    rows = [int(np.flatnonzero((bank == row).all(1))[0]) for row in representation.numpy()]
    assert all(number in made.whole("labels")[row, 0] for number, row in zip(label.tolist(), rows, strict=True))


def test_no_labels_without_neighbours_and_every_view_is_stored(rcg, digits, tmp_path):
    data = digits()
    rows = np.random.default_rng(0).normal(size=(len(data.images("train")), 2, 5)).astype(np.float16)
    identity = {**data.store_identity("train"), "representation": "encoder-2"}
    writer = StoreWriter(tmp_path / "store", len(rows), 2, 512, identity, "float16")
    for shard in writer.pending():
        writer.write(shard, {"representation": rows[shard.start : shard.stop]})
    writer.finish()
    words = ["--data.stores", f"[{tmp_path / 'store'}]", "--count", 5, "--out", tmp_path / "bank"]
    code, _, error = rcg(*DATA, *words)
    assert code == 0, error
    made = Store.open(tmp_path / "bank")
    assert sorted(made.columns) == ["image", "representation"]
    assert made.columns["representation"]["dtype"] == "float16"
    image = made.whole("image")
    np.testing.assert_array_equal(image[:, 0], image[:, 1])
    np.testing.assert_array_equal(made.whole("representation"), rows[image[:, 0]])


def test_mistakes_are_rejected(raised, stores, digits, tmp_path):
    _, near, words = stores
    out = ["--out", tmp_path / "bank"]
    assert "5000 instances were asked for" in raised(*DATA, *words, *out, "--count", 5000)
    assert "--count should be at least 1" in raised(*DATA, *words, *out, "--count", 0)
    assert "no representations to choose from" in raised(*DATA, *out)
    assert "no representations to choose from" in raised(*DATA, "--data.stores", f"[{near}]", *out)
    digits(tmp_path, encoder="encoder-2")
    other = raised(*DATA, "--data.stores", f"[{tmp_path / 'train-encoder-2'},{near}]", *out)
    assert "neighbours by representations encoder-1" in other
    assert not (tmp_path / "bank").exists()
