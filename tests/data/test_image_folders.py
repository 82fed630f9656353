"""Folders: every kind of image, broken files, splits, the cached index."""

import io
import logging
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from rcg_lightning.data import folder_index
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.decode import Unreadable, decode
from rcg_lightning.data.image_folders import BadImage, FlatFolder, ImageFolder, ImageNet
from rcg_lightning.data.transforms import CenterCrop
from rcg_lightning.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RCG_CACHE", str(folder))
    return folder


def image(path, value=100, mode="RGB", size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    fill = {"RGB": (value, 0, 0), "L": value, "CMYK": (0, 255, 255, 0), "RGBA": (value, 0, 0, 0)}[mode]
    Image.new(mode, size, fill).save(path)


def folder_of(root, classes=("a", "b"), each=10):
    for number, name in enumerate(classes):
        for i in range(each):
            image(root / name / f"{i:03d}.png", 10 * number + i)
    return root


def settle(root):
    """Make the folders look as if they had not changed for a while."""
    for path, _, _ in os.walk(root):
        os.utime(path, (1e9, 1e9))


# every kind of image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "RGBA", "LA", "P", "1", "I;16"])
def test_every_mode_is_converted(tmp_path, mode, channels):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("L", (6, 4), 255).convert(mode if mode != "I;16" else "L").save(path)
    if mode == "I;16":
        Image.fromarray(np.full((4, 6), 65535, np.uint16)).save(path)
    result = decode(path.read_bytes(), channels)
    assert result.shape == (channels, 4, 6)
    assert (result >= 254).all()  # white stays white


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.asarray([[0, 257 * 100, 257 * 200, 65535]], np.uint16)).save(tmp_path / "x.png")
    assert decode((tmp_path / "x.png").read_bytes(), 1).tolist() == [[[0, 100, 200, 255]]]


def test_floating_point_images_are_rejected(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(Unreadable, match="range"):
        decode((tmp_path / "x.tif").read_bytes(), 3)


def test_the_cameras_orientation_is_applied_on_request_only(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    Image.new("RGB", (8, 4)).save(tmp_path / "x.jpg", exif=exif)
    content = (tmp_path / "x.jpg").read_bytes()
    for channels in (1, 3):
        assert decode(content, channels).shape == (channels, 4, 8)
        assert decode(content, channels, orient=True).shape == (channels, 8, 4)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_fast_jpeg_decoder_gives_pillows_pixels(mode, progressive):
    bands = len(Image.new(mode, (1, 1)).getbands())
    coarse = np.random.default_rng(0).integers(0, 256, (6, 9, bands), dtype=np.uint8)
    image = Image.fromarray(coarse.squeeze(), mode).resize((70, 50))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, progressive=progressive)
    expected = np.asarray(Image.open(buffer).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode(buffer.getvalue(), 3).numpy(), expected)


@pytest.mark.parametrize("fraction", [0.2, 0.99])
def test_a_truncated_jpeg_is_unreadable(fraction):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, "JPEG")
    with pytest.raises(Unreadable):
        decode(buffer.getvalue()[: int(fraction * len(buffer.getvalue()))], 3)


# files that cannot be read


def broken_folder(root):
    folder_of(root)
    whole = root / "a" / "003.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole)
    whole.write_bytes(whole.read_bytes()[:900])  # truncated
    (root / "a" / "004.png").write_bytes(b"")
    (root / "b" / "009.png").write_bytes(b"not an image")
    return root


def test_broken_files_are_replaced_by_the_next_of_their_class(tmp_path, caplog):
    images = ImageFolder(broken_folder(tmp_path), eval_share=0).train()
    names = [images.name(i)[len(str(tmp_path)) + 1 :] for i in range(len(images))]
    with caplog.at_level(logging.WARNING):
        for bad, good in {"a/003.jpg": "a/003.png", "a/004.png": "a/005.png", "b/009.png": "b/000.png"}.items():
            for _ in range(2):
                assert torch.equal(images.load(names.index(bad)), images.load(names.index(good)))
    assert images.skipped == 3
    assert len([r for r in caplog.records if "skipped" in r.message]) == 3  # once for each
    assert all(images.load(i).shape == (3, 10, 12) for i in range(len(images)))


def test_stop_names_the_file(tmp_path):
    images = ImageFolder(broken_folder(tmp_path), eval_share=0, on_bad="stop").train()
    with pytest.raises(UserError, match=r"a/004\.png.*on_bad"):
        images.load(5)


@pytest.mark.parametrize("on_bad", ["skip", "stop"])
def test_broken_files_inside_a_loaders_workers(tmp_path, on_bad):
    data = ImageDataModule(
        ImageFolder(broken_folder(tmp_path), eval_share=0, on_bad=on_bad), CenterCrop(8), batch_size=21, workers=1
    )
    data.needs = {"image"}
    loader = data.train_dataloader()
    if on_bad == "skip":
        assert next(iter(loader))["image"].shape == (21, 3, 8, 8)
        assert data.images("train").skipped == 3  # counted across processes
        return
    with pytest.raises(BadImage) as caught:
        next(iter(loader))
    assert str(caught.value).startswith("cannot read image")
    assert "\n" not in str(caught.value)


def test_no_image_of_another_class_replaces_a_broken_one(tmp_path):
    folder_of(tmp_path, each=2)
    for i in range(2):
        (tmp_path / "b" / f"{i:03d}.png").write_bytes(b"x")
    images = ImageFolder(tmp_path, eval_share=0).train()
    with pytest.raises(UserError, match=r"none of the images with the class of .*b/001\.png"):
        images.load(3)


def test_a_folder_without_a_readable_image_is_rejected(tmp_path):
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(UserError, match="can be read"):
        FlatFolder(tmp_path, eval_share=0).train().load(0)


# splits


def test_the_folders_train_and_val_are_the_splits(tmp_path):
    folder_of(tmp_path / "train", each=3)
    folder_of(tmp_path / "val", classes=["b"], each=2)
    source = ImageFolder(tmp_path)
    assert source.train().labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.evaluation().labels.tolist() == [1, 1]  # numbered as in training
    assert source.evaluation().classes == 2


def test_the_hashed_split_is_exact_and_stays_when_images_are_added(tmp_path):
    folder_of(tmp_path, each=100)
    before = ImageFolder(tmp_path, eval_share=0.2)
    names = {split: {p.name(i) for i in range(len(p))} for split, p in parts(before).items()}
    assert not names["train"] & names["eval"]
    assert len(names["train"] | names["eval"]) == 200
    assert 20 < len(names["eval"]) < 60
    folder_of(tmp_path, classes=["c"], each=30)
    after = {
        split: {p.name(i) for i in range(len(p))} for split, p in parts(ImageFolder(tmp_path, eval_share=0.2)).items()
    }
    assert names["train"] <= after["train"]
    assert names["eval"] <= after["eval"]


def parts(source):
    return {"train": source.train(), "eval": source.evaluation()}


def test_even_few_images_have_one_for_evaluation(tmp_path):
    folder_of(tmp_path, each=2)
    assert len(ImageFolder(tmp_path, eval_share=0.01).evaluation()) == 1
    assert len(ImageFolder(tmp_path, eval_share=0).evaluation()) == 0


def test_a_flat_folder_has_no_labels(tmp_path):
    image(tmp_path / "one.png")
    image(tmp_path / "deep" / "er" / "two.JPG")
    image(tmp_path / "._hidden.png")
    images = FlatFolder(tmp_path, eval_share=0).train()
    assert len(images) == 2
    assert images.labels is None
    assert images.classes is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: ImageFolder(root / "nowhere").train(), "no folder of images at"),
        (lambda root: FlatFolder(root).train(), "no images in"),
        (lambda root: (image(root / "stray.png"), ImageFolder(root, eval_share=0).train()), "class folder"),
        (lambda root: ImageNet(root).train(), "no .*train"),
        (lambda root: ImageFolder(root, on_bad="ignore"), "on_bad"),
        (lambda root: ImageFolder(root, eval_share=1.0), "eval_share"),
    ],
)
def test_errors_are_one_line(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value)


def test_images_of_unknown_size_need_a_transform(tmp_path):
    data = ImageDataModule(ImageFolder(folder_of(tmp_path)))
    with pytest.raises(UserError, match="CenterCrop"):
        data.setup()


# the index


def test_the_index_is_scanned_once_until_a_folder_changes(tmp_path, monkeypatch):
    scans = []
    scan = folder_index._scan
    monkeypatch.setattr(folder_index, "_scan", lambda root: scans.append(root) or scan(root))
    folder_of(tmp_path)
    settle(tmp_path)
    first = ImageFolder(tmp_path, eval_share=0).train()
    second = ImageFolder(tmp_path, eval_share=0).train()
    assert len(scans) == 1
    assert first.fingerprint == second.fingerprint
    assert second.labels.tolist() == [0] * 10 + [1] * 10
    assert second.name(11) == str(tmp_path / "b" / "001.png")
    image(tmp_path / "b" / "010.png")
    third = ImageFolder(tmp_path, eval_share=0).train()
    assert len(scans) == 2
    assert len(third) == 21
    assert third.fingerprint != first.fingerprint
    shutil.rmtree(tmp_path / "a")
    assert len(ImageFolder(tmp_path, eval_share=0).train()) == 11


def test_a_folder_with_a_broken_cache_is_scanned_again(tmp_path, cache):
    folder_of(tmp_path)
    settle(tmp_path)
    ImageFolder(tmp_path, eval_share=0).train()
    (index,) = cache.rglob("index.json")
    for array in cache.rglob("text.npy"):
        array.write_bytes(array.read_bytes()[:-5])
    assert len(ImageFolder(tmp_path, eval_share=0).train()) == 20
    index.write_text("{")
    assert len(ImageFolder(tmp_path, eval_share=0).train()) == 20


def test_a_read_only_cache_is_not_an_error(tmp_path, monkeypatch, caplog):
    folder_of(tmp_path)
    settle(tmp_path)
    (tmp_path / "file").write_text("")
    settle(tmp_path)
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO):
        assert len(ImageFolder(tmp_path, eval_share=0).train()) == 20
    assert "not cached" in caplog.text


def test_the_fingerprint_depends_on_names_sizes_and_channels_and_not_on_the_path(tmp_path):
    folder_of(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (ImageFolder(tmp_path / name, eval_share=0).train() for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert ImageFolder(tmp_path / "one", eval_share=0, channels=1).train().fingerprint != one.fingerprint


def test_circular_links_are_followed_once(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert len(ImageFolder(tmp_path, eval_share=0).train()) == 20


def test_images_can_be_pickled_for_spawned_workers(tmp_path):
    images = ImageFolder(folder_of(tmp_path, each=2), eval_share=0).train()
    copy = pickle.loads(pickle.dumps(images))
    assert torch.equal(copy.load(3), images.load(3))
