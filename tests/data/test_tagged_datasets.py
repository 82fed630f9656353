"""Where tags come from: MIR-Flickr's layout, a table, and the digits."""

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
    return {found.name(i).rpartition("/")[2]: words for i, words in enumerate(source.tags(found))}


def test_tag_files_belong_to_images_by_their_number(flickr):
    assert named(MIRFlickr(flickr, evaluation=0)) == {
        "im1.jpg": ("sea", "new_york"),
        "im2.jpg": ("sky", "sea"),
        "im3.jpg": (),
        "im10.jpg": ("cat",),
    }


def test_annotations_are_extra_tags_as_published(flickr):
    notes = flickr.parent / "notes"
    source = MIRFlickr(flickr, annotation_folder=notes, evaluation=0)
    assert named(source) == {
        "im1.jpg": ("sea", "new_york", "sky"),
        "im2.jpg": ("sky", "sea", "clouds"),
        "im3.jpg": (),
        "im10.jpg": ("cat", "sky"),
    }
    assert source.annotations(source.train()) == [("sky",), ("sky",), ("clouds",), ()]  # im1, im10, im2, im3
    alone = MIRFlickr(flickr, annotation_folder=notes, extra=False, evaluation=0)
    assert named(alone)["im2.jpg"] == ("sky", "sea")
    assert alone.annotations(alone.train()) == source.annotations(source.train())


def test_the_published_split_is_by_the_number_of_examples(flickr):
    source = MIRFlickr(flickr, examples=4)
    assert set(named(source)) == {"im1.jpg", "im2.jpg", "im3.jpg"}  # 2 + 2 + 0 tags; the order is that of numbers
    assert set(named(source, "evaluation")) == {"im10.jpg"}
    with pytest.raises(UserError, match="the first image has more than 1 tags"):
        MIRFlickr(flickr, examples=1).train()


def test_images_are_those_of_the_folder_without_tags(flickr):
    for mine, plain in ((MIRFlickr(flickr, evaluation=0.5), FlatFolder(flickr, evaluation=0.5)),):
        assert mine.train().fingerprint == plain.train().fingerprint
        assert mine.evaluation().fingerprint == plain.evaluation().fingerprint


def test_what_a_flickr_folder_lacks_is_named(flickr, tmp_path):
    source = MIRFlickr(flickr, tag_folder=tmp_path / "notes", evaluation=0)
    with pytest.raises(UserError, match=r"no tags in .*notes, such as tags1\.txt: give their folder as tag_folder"):
        source.tags(source.train())
    with pytest.raises(UserError, match="no folder of tags at"):
        named(MIRFlickr(flickr, tag_folder=tmp_path / "nowhere", evaluation=0))
    with pytest.raises(UserError, match="this set has no annotations: give their folder as annotation_folder"):
        MIRFlickr(flickr, evaluation=0).annotations(MIRFlickr(flickr, evaluation=0).train())
    with pytest.raises(UserError, match="no folder of annotations at"):
        named(MIRFlickr(flickr, annotation_folder=tmp_path / "nowhere", evaluation=0))
    text(tmp_path / "notes" / "sea.txt", "1", "two")
    with pytest.raises(UserError, match=r"sea\.txt should list numbers of images, one a line, and holds 'two'"):
        named(MIRFlickr(flickr, annotation_folder=tmp_path / "notes", evaluation=0))


@pytest.mark.parametrize("heading", [(), ("file,tags",)])
def test_a_table_of_tags(heading, tmp_path):
    images(tmp_path / "it", "a.png", "deep/b.png", "c.png")
    text(tmp_path / "it" / "tags.csv", *heading, "a.png,sky  sea sky", 'deep/b.png,"new york; sea;"')
    assert named(TagTable(tmp_path / "it", evaluation=0)) == {
        "a.png": ("sky", "sea"),
        "b.png": ("new_york", "sea"),
        "c.png": (),
    }
    with pytest.raises(UserError, match="has no third column of annotations"):
        TagTable(tmp_path / "it", evaluation=0).annotations(TagTable(tmp_path / "it", evaluation=0).train())


def test_a_table_of_two_splits_with_annotations(tmp_path):
    images(tmp_path, "train/a.png", "val/b.png")
    text(tmp_path / "mine.csv", "train/a.png,sky,outdoor", "val/b.png,sea,water;outdoor")
    source = TagTable(tmp_path, tmp_path / "mine.csv")
    assert (named(source), named(source, "evaluation")) == ({"a.png": ("sky",)}, {"b.png": ("sea",)})
    assert source.annotations(source.evaluation()) == [("water", "outdoor")]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["a.png"], "line 1: should be file,tags or file,tags,annotations, and has 1 columns"),
        (["a.png,sky", "b.png,sea"], "names b.png, which is not below"),
        (["a.png,sky", "a.png,sea"], "line 2: a.png stands there a second time"),
        (None, "the table of tags .* cannot be read"),
    ],
)
def test_a_broken_table_is_named(lines, says, tmp_path):
    images(tmp_path / "it", "a.png")
    if lines:
        text(tmp_path / "it" / "tags.csv", *lines)
    source = TagTable(tmp_path / "it", evaluation=0)
    with pytest.raises(UserError, match=says):
        source.tags(source.train())


def test_every_digit_has_words_that_tell_it_apart():
    source = DigitTags(limit=40)
    found = source.train()
    assert all(source.tags(found)[i] == DigitTags.words[label] for i, label in enumerate(found.labels))
    assert len(set(DigitTags.words)) == 10
    assert all(("even" in words) == (number % 2 == 0) for number, words in enumerate(DigitTags.words))
    assert all(("prime" in words) == (number in (2, 3, 5, 7)) for number, words in enumerate(DigitTags.words))
    with pytest.raises(UserError, match="DigitTags has no annotations"):
        source.annotations(found)
