"""Sources of tags: MIR-Flickr's layout, a table, and the digits."""

import numpy as np
import pytest
from PIL import Image

from rcg_lightning.data.image_folders import FlatFolder
from rcg_lightning.data.tagged_datasets import DigitTags, MIRFlickr, TagTable
from rcg_lightning.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))


def images(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), len(name), np.uint8)).save(root / name)


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def flickr(tmp_path):
    """Four images, the third without tags; sky is annotated in 1 and 4, clouds in 2."""
    root = tmp_path / "mirflickr"
    images(root, "im1.jpg", "im2.jpg", "im3.jpg", "im10.jpg")
    for number, words in {1: ("sea", "new york", "sea"), 2: ("sky", "sea"), 10: ("cat",)}.items():
        text(root / "meta" / "tags" / f"tags{number}.txt", *words, "")
    text(tmp_path / "notes" / "sky.txt", "1", "10")
    text(tmp_path / "notes" / "clouds.txt", "2")
    text(tmp_path / "notes" / "clouds_r1.txt", "2", "10")
    text(tmp_path / "notes" / "README.txt", "who did this")
    return root


def named(source, split="train"):
    found = getattr(source, split)()
    return {found.name(i).rpartition("/")[2]: tags for i, tags in enumerate(source.tags(found))}


def test_tag_files_belong_to_images_by_their_number(flickr):
    assert named(MIRFlickr(flickr, eval_share=0)) == {
        "im1.jpg": ("sea", "new_york"),
        "im2.jpg": ("sky", "sea"),
        "im3.jpg": (),
        "im10.jpg": ("cat",),
    }


def test_annotations_are_extra_tags_as_published(flickr):
    notes = flickr.parent / "notes"
    source = MIRFlickr(flickr, annotation_folder=notes, eval_share=0)
    assert named(source) == {
        "im1.jpg": ("sea", "new_york", "sky"),
        "im2.jpg": ("sky", "sea", "clouds"),
        "im3.jpg": (),
        "im10.jpg": ("cat", "sky"),
    }
    assert source.annotations(source.train()) == [("sky",), ("sky",), ("clouds",), ()]  # im1, im10, im2, im3
    alone = MIRFlickr(flickr, annotation_folder=notes, extra=False, eval_share=0)
    assert named(alone)["im2.jpg"] == ("sky", "sea")
    assert alone.annotations(alone.train()) == source.annotations(source.train())


def test_the_published_split_is_by_the_number_of_examples(flickr):
    source = MIRFlickr(flickr, examples=4)
    assert set(named(source)) == {"im1.jpg", "im2.jpg", "im3.jpg"}  # 2 + 2 + 0 tags; the order is that of numbers
    assert set(named(source, "evaluation")) == {"im10.jpg"}
    with pytest.raises(UserError, match="more than 1 tags"):
        MIRFlickr(flickr, examples=1).train()


def test_images_are_those_of_the_folder_without_tags(flickr):
    tagged, untagged = MIRFlickr(flickr, eval_share=0.5), FlatFolder(flickr, eval_share=0.5)
    assert tagged.train().fingerprint == untagged.train().fingerprint
    assert tagged.evaluation().fingerprint == untagged.evaluation().fingerprint


def test_missing_folders_are_named(flickr, tmp_path):
    source = MIRFlickr(flickr, tag_folder=tmp_path / "notes", eval_share=0)
    with pytest.raises(UserError, match=r"no tags .*tags1\.txt"):
        source.tags(source.train())
    with pytest.raises(UserError, match="folder of tags"):
        named(MIRFlickr(flickr, tag_folder=tmp_path / "nowhere", eval_share=0))
    with pytest.raises(UserError, match="no annotations"):
        MIRFlickr(flickr, eval_share=0).annotations(MIRFlickr(flickr, eval_share=0).train())
    with pytest.raises(UserError, match="folder of annotations"):
        named(MIRFlickr(flickr, annotation_folder=tmp_path / "nowhere", eval_share=0))
    text(tmp_path / "notes" / "sea.txt", "1", "two")
    with pytest.raises(UserError, match=r"sea\.txt .*'two'"):
        named(MIRFlickr(flickr, annotation_folder=tmp_path / "notes", eval_share=0))


@pytest.mark.parametrize("heading", [(), ("file,tags",)])
def test_a_table_of_tags(heading, tmp_path):
    images(tmp_path / "it", "a.png", "deep/b.png", "c.png")
    text(tmp_path / "it" / "tags.csv", *heading, "a.png,sky  sea sky", 'deep/b.png,"new york; sea;"')
    assert named(TagTable(tmp_path / "it", eval_share=0)) == {
        "a.png": ("sky", "sea"),
        "b.png": ("new_york", "sea"),
        "c.png": (),
    }
    with pytest.raises(UserError, match="third column"):
        TagTable(tmp_path / "it", eval_share=0).annotations(TagTable(tmp_path / "it", eval_share=0).train())


def test_a_table_of_two_splits_with_annotations(tmp_path):
    images(tmp_path, "train/a.png", "val/b.png")
    text(tmp_path / "mine.csv", "train/a.png,sky,outdoor", "val/b.png,sea,water;outdoor")
    source = TagTable(tmp_path, tmp_path / "mine.csv")
    assert (named(source), named(source, "evaluation")) == ({"a.png": ("sky",)}, {"b.png": ("sea",)})
    assert source.annotations(source.evaluation()) == [("water", "outdoor")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.png"], "line 1 .*1 columns"),
        (["a.png,sky", "b.png,sea"], "b.png"),
        (["a.png,sky", "a.png,sea"], "line 2 repeats a.png"),
        (None, "cannot be read"),
    ],
)
def test_a_broken_table_is_rejected(lines, message, tmp_path):
    images(tmp_path / "it", "a.png")
    if lines:
        text(tmp_path / "it" / "tags.csv", *lines)
    source = TagTable(tmp_path / "it", eval_share=0)
    with pytest.raises(UserError, match=message):
        source.tags(source.train())


def test_every_digit_has_its_own_tags():
    source = DigitTags(limit=40)
    found = source.train()
    assert all(source.tags(found)[i] == DigitTags.class_tags[label] for i, label in enumerate(found.labels))
    assert len(set(DigitTags.class_tags)) == 10
    assert all(("even" in tags) == (number % 2 == 0) for number, tags in enumerate(DigitTags.class_tags))
    assert all(("prime" in tags) == (number in (2, 3, 5, 7)) for number, tags in enumerate(DigitTags.class_tags))
    with pytest.raises(UserError, match="no annotations"):
        source.annotations(found)
