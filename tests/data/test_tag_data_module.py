"""Pairs of images and tags: the vocabulary, omitted tags and images, and the batches."""

from itertools import islice

import numpy as np
import pytest
import torch

from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.data.tag_data_module import TagDataModule, pairs_of
from rcg_lightning.data.tagged_datasets import DigitTags
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.word_vectors import WordVectorTable


class Few(DigitTags):
    """Digits of which only some have tags: these, for every ten images."""

    ten = (("sky", "sea"), ("sea",), ("rare", "sea"), (), ("sky",), ("once",), (), ("sea",), ("sky",), ("sea",))

    def tags(self, images):
        return [self.ten[i % 10] for i in range(len(images))]


def few(**settings):
    datamodule = TagDataModule(Few(limit=10), **{"batch_size": 4, **settings})
    datamodule.needs = {"tag"}
    return datamodule


def test_the_vocabulary_begins_with_the_most_frequent_word():
    assert few().vocabulary == ["sea", "sky", "once", "rare"]
    assert few(min_count=2).vocabulary == ["sea", "sky"]
    with pytest.raises(UserError, match="lower min_count"):
        _ = few(min_count=6).vocabulary


def test_words_without_a_vector_are_not_in_the_vocabulary(tmp_path):
    WordVectorTable(["sky", "sea", "moon"], torch.ones(3, 2)).save(tmp_path / "w.txt")
    assert few(vectors=tmp_path / "w.txt").vocabulary == ["sea", "sky"]
    WordVectorTable(["moon"], torch.ones(1, 2)).save(tmp_path / "w.txt")
    with pytest.raises(UserError, match="none of the tags"):
        _ = few(vectors=tmp_path / "w.txt").vocabulary


def test_omitted_tags_and_images_are_reported_once(caplog):
    datamodule = few(min_count=2)
    pairs = datamodule.pairs("train")
    assert (pairs.index.tolist(), pairs.tag.tolist()) == ([0, 0, 1, 2, 4, 7, 8, 9], [1, 0, 0, 0, 1, 0, 1, 0])
    assert pairs.matrix(10, 2).sum(0).tolist() == [5, 3]
    datamodule.setup("fit")
    (message,) = [line for line in caplog.messages if line.startswith("train")]
    assert "2 of 10 tags" in message
    assert "3 of 10 images" in message
    caplog.clear()
    whole = TagDataModule(DigitTags(limit=50))
    assert len(whole.pairs("train")) == sum(map(len, whole.tags("train")))
    assert not caplog.messages


def test_an_image_without_tags_can_stop_the_run():
    with pytest.raises(UserError, match=r"Digits train\[3\]"):
        few(untagged="stop").setup("fit")


def test_an_example_is_a_pair_and_every_pair_comes_once_in_an_epoch():
    datamodule = few()
    datamodule.needs = {"tag", "image", "label"}
    datamodule.setup("fit")
    train = datamodule.images("train")
    seen = []
    for batch in islice(datamodule.train_dataloader(), 10):  # two epochs of ten pairs, and more
        assert torch.equal(batch["image"], torch.from_numpy(train.array[batch["index"]]))
        assert torch.equal(batch["label"], torch.from_numpy(train.labels[batch["index"]]))
        assert batch["tag"].dtype == torch.int64
        seen += zip(batch["index"].tolist(), batch["tag"].tolist())
    pairs = datamodule.pairs("train")
    everything = sorted(zip(pairs.index.tolist(), pairs.tag.tolist()))
    assert len(everything) == 10
    assert sorted(seen[:10]) == sorted(seen[10:20]) == everything
    found = [
        pair for batch in datamodule.val_dataloader() for pair in zip(batch["index"].tolist(), batch["tag"].tolist())
    ]
    assert found == list(zip(datamodule.pairs("eval").index.tolist(), datamodule.pairs("eval").tag.tolist()))


def test_without_a_need_for_tags_the_examples_are_images():
    datamodule = few()
    datamodule.needs = {"image"}
    assert [len(batch["index"]) for batch in datamodule.val_dataloader()][:2] == [4, 4]
    batch = next(iter(datamodule.train_dataloader()))
    assert "tag" not in batch
    assert sum(len(batch["index"]) for batch in datamodule.predict_dataloader()) == 10


def test_stores_of_the_same_images_are_joined(tmp_path):
    datamodule = few()
    writer = StoreWriter(tmp_path / "s", 10, 1, 10, {**datamodule.store_identity("train"), "representation": "it"})
    rows = np.arange(10, dtype=np.float32)[:, None, None]
    writer.write(writer.shards[0], {"representation": rows, "neighbours": rows.astype(np.int64)})
    writer.finish({"neighbours": {"representation": "it"}})
    datamodule = few(stores=[tmp_path / "s"])
    assert datamodule.images("train").fingerprint == Digits(limit=10).train().fingerprint
    datamodule.needs = {"tag", "representation"}
    batch = next(iter(datamodule.train_dataloader()))
    assert torch.equal(batch["representation"][:, 0].long(), batch["index"])
    conditions = list(datamodule.conditions("train", frozenset({"representation", "tag"})))
    assert torch.equal(torch.cat([batch["index"] for batch in conditions]), torch.arange(10))  # also those without tags
    assert torch.equal(torch.cat([batch["representation"] for batch in conditions])[:, 0], torch.arange(10.0))
    assert datamodule.needs == {"tag", "representation"}
    with pytest.raises(UserError, match="representation"):
        datamodule.conditions("eval", frozenset({"representation"}))
    datamodule.needs = {"tag", "instance"}
    with pytest.raises(UserError, match="tags and instances"):
        datamodule.setup("fit")


def test_the_spec_names_the_words():
    spec, other = few(min_count=2).spec, few(min_count=1).spec
    assert spec.columns["tag"] == {"shape": [], "count": 2, "words": ["sea", "sky"]}
    assert spec.identities["tag"] != other.identities["tag"]
    assert spec.identities["dataset"] == other.identities["dataset"]


def test_tags_outside_the_vocabulary_are_counted():
    pairs = pairs_of([("a", "b"), ("c",)], ["b"])
    assert (pairs.index.tolist(), pairs.tag.tolist(), pairs.outside) == ([0], [0], 2)
    assert len(pairs_of([], ["b"])) == 0


def test_a_source_without_tags_is_rejected():
    datamodule = ImageDataModule(Digits(limit=10))
    datamodule.needs = {"tag"}
    with pytest.raises(UserError, match="TagDataModule"):
        datamodule.setup("fit")


class Untagged(DigitTags):
    def tags(self, images):
        return [()] * len(images)


def test_a_data_set_without_any_tag_is_rejected():
    datamodule = TagDataModule(Untagged(limit=10))
    datamodule.needs = {"tag"}
    with pytest.raises(UserError, match="no training image has a tag"):
        datamodule.setup("fit")
