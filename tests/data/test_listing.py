"""Which files of a folder are images, and which folders are splits: the same for training and for samples."""

import io
import logging
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.decode import SUFFIXES, Unreadable, decode
from rcg_lightning.data.folder_index import index_folder, scan_folder
from rcg_lightning.data.image_folders import FlatFolder, ImageFolder, ImageNet, TarShards
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.sample_readers import open_samples


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path_factory.mktemp("cache")))


def image(path, mode="L", size=(8, 8), **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **settings)


def with_hidden_files(folder):
    """Six images, and the hidden files of macOS and of notebooks under names of images."""
    for i in range(6):
        image(folder / f"{i}.png")
    (folder / "._0.png").write_bytes(bytes.fromhex("00051607000200004d6163204f532058") + bytes(80))
    image(folder / ".ipynb_checkpoints" / "1-checkpoint.png")
    (folder / "notes.txt").write_text("none")
    return folder


def test_hidden_files_are_left_out_and_counted_in_one_line(tmp_path, caplog):
    folder = with_hidden_files(tmp_path / "images")
    with caplog.at_level(logging.WARNING):
        samples, images = open_samples(folder), FlatFolder(folder, channels=1, eval_share=0).train()
    assert len(samples) == len(images) == 6
    assert torch.equal(samples.first(6), torch.stack([images.load(i) for i in range(6)]))
    lines = [record.message for record in caplog.records]
    assert lines == [f"{folder}: left out 3 files that are no images (1 .txt, 2 hidden)"]


def test_the_cached_index_reports_what_is_left_out_too(tmp_path, monkeypatch, caplog):
    folder = with_hidden_files(tmp_path / "images")
    monkeypatch.setattr("rcg_lightning.data.folder_index._SETTLED", -1)
    index_folder(folder)
    monkeypatch.setattr("rcg_lightning.data.folder_index._scan", None)
    monkeypatch.setattr("rcg_lightning.data.folder_index._reported", set())
    with caplog.at_level(logging.WARNING):
        assert len(index_folder(folder)) == 6
    assert "left out 3 files that" in caplog.text


def test_the_cached_index_ends_when_pillow_reads_other_suffixes(tmp_path, monkeypatch):
    image(tmp_path / "images" / "0.png")
    image(tmp_path / "images" / "1.bmp")
    monkeypatch.setattr("rcg_lightning.data.folder_index._SETTLED", -1)
    assert len(index_folder(tmp_path / "images")) == 2
    monkeypatch.setattr("rcg_lightning.data.folder_index.SUFFIXES", (".png",))
    assert len(index_folder(tmp_path / "images")) == 1


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("jfif", "JPEG"), ("jpe", "JPEG"), ("JPEG", "JPEG"), ("avif", "AVIF"), ("jp2", "JPEG2000"), ("qoi", "QOI")],
)
def test_every_suffix_that_pillow_reads_is_an_image(tmp_path, suffix, kind):
    image(tmp_path / f"one.{suffix}", "RGB", format=kind)
    samples, images = open_samples(tmp_path), FlatFolder(tmp_path, eval_share=0).train()
    assert torch.equal(samples.first(1)[0], images.load(0))
    assert samples.format == kind.lower()


def test_formats_that_run_programs_are_no_images(tmp_path):
    assert not {".eps", ".ps", ".wmf", ".pdf", ".h5"} & set(SUFFIXES)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "EPS")
    with pytest.raises(Unreadable, match="not in any image format"):
        decode(buffer.getvalue(), 3)  # whatever the file's name is


def test_a_broken_link_is_left_out(tmp_path):
    image(tmp_path / "one.png")
    (tmp_path / "two.png").symlink_to(tmp_path / "absent.png")
    index = scan_folder(tmp_path)
    assert (len(index), index.left_out) == (1, {"broken link": 1})


# the number of channels of samples


def test_one_grey_image_does_not_make_a_colour_folder_grey(tmp_path):
    image(tmp_path / "0.png", "L")
    image(tmp_path / "1.png", "RGB")
    assert open_samples(tmp_path).shape == (3, 8, 8)


def test_a_colour_image_between_those_looked_at_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr("rcg_lightning.evaluation.sample_readers._LOOKED_AT", 2)
    for i, mode in enumerate(("L", "L", "RGB", "L")):
        image(tmp_path / f"{i}.png", mode)
    monkeypatch.setattr("rcg_lightning.evaluation.sample_readers._LOOKED_AT", 1)
    with pytest.raises(UserError, match=r"2\.png is in colour"):
        list(open_samples(tmp_path))


# splits


def folders(root, *names, each=4):
    for name in names:
        for i in range(each):
            image(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("name", ["test", "train", "val", "Training"])
def test_a_class_may_have_the_name_of_a_split(tmp_path, name, caplog):
    with caplog.at_level(logging.WARNING):
        images = ImageFolder(folders(tmp_path, "cat", name, "wolf"), eval_share=0).train()
    assert images.classes == 3
    assert np.bincount(images.labels).tolist() == [4, 4, 4]
    assert ("none of them is taken for a split" in caplog.text) == name.lower().startswith("train")


def test_images_next_to_folders_of_splits_belong_to_the_data(tmp_path):
    folders(tmp_path, "train", "val")
    image(tmp_path / "one.png")
    assert len(FlatFolder(tmp_path, eval_share=0).train()) == 9


@pytest.mark.parametrize(("train", "evaluation"), [("train", "validation"), ("Train", "Test"), ("training", "testing")])
def test_the_usual_names_of_splits_are_known(tmp_path, train, evaluation):
    folders(tmp_path, f"{train}/a", f"{train}/b", f"{evaluation}/a")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "list.txt").write_text("")  # holds no image, so it does not disagree
    source = ImageFolder(tmp_path)
    assert (len(source.train()), len(source.evaluation()), source.train().classes) == (8, 4, 2)


def test_training_images_alone_are_split_by_a_hash(tmp_path):
    source = ImageFolder(folders(tmp_path, "train/a", "train/b"), eval_share=0.3)
    assert len(source.train()) + len(source.evaluation()) == 8
    assert source.train().classes == 2


def test_imagenets_layout_is_not_guessed(tmp_path):
    folders(tmp_path, "train/n01", "val/n01", "samples")
    assert (len(ImageNet(tmp_path).train()), len(ImageNet(tmp_path).evaluation())) == (4, 4)


def test_tars_next_to_folders_of_splits_are_rejected(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "more.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"more\.tar.* next to train/"):
        TarShards(tmp_path).train()


# images that claim to be huge


def bomb(kind):
    """A small file that claims 65500 x 65500 pixels (JPEG) or 30000 x 30000 (PNG)."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    if kind == "PNG":
        content[16:24] = (30000).to_bytes(4, "big") * 2
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    else:
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = (65500).to_bytes(2, "big") * 2
    return bytes(content)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kind", "pixels"), [("JPEG", "4,290,250,000"), ("PNG", "900,000,000")])
def test_huge_images_are_rejected_before_they_are_decoded(tmp_path, kind, pixels, channels, recwarn, monkeypatch):
    for name in ("rcg_lightning.data.decode.decode_jpeg", "PIL.ImageFile.ImageFile.load"):
        monkeypatch.setattr(name, None)  # nothing may decode
    (tmp_path / "bomb.jpg").write_bytes(bomb(kind))
    for read in (
        lambda: FlatFolder(tmp_path, channels, "stop", eval_share=0).train().load(0),
        lambda: open_samples(tmp_path, channels),
        lambda: open_samples(tmp_path),
    ):
        with pytest.raises(UserError, match=rf"bomb\.jpg.*claims {pixels} pixels.*RCG_LIMIT_PIXELS"):
            read()
    assert not [warning for warning in recwarn if "DecompressionBomb" in warning.category.__name__]


def test_one_huge_image_is_skipped_and_named(tmp_path, caplog):
    for i in range(4):
        image(tmp_path / f"good{i}.jpg", "RGB")
    (tmp_path / "bomb.jpg").write_bytes(bomb("JPEG"))
    images = FlatFolder(tmp_path, eval_share=0).train()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(images.load(0), images.load(1))
    assert "bomb.jpg" in caplog.text
    assert "RCG_LIMIT_PIXELS" in caplog.text


def test_a_file_larger_than_any_image_is_not_read(tmp_path, caplog):
    image(tmp_path / "good.png", "RGB")
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(10**12)  # sparse: it takes no room
    images = FlatFolder(tmp_path, eval_share=0).train()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(images.load(1), images.load(0))
    assert "large.png" in caplog.text
    with pytest.raises(UserError, match=r"large\.png is broken \(its 1,000,000,000,000 bytes"):
        list(open_samples(tmp_path, 3))


MEMORY = """
import resource, sys, time
from pathlib import Path
from rcg_lightning.data.image_folders import FlatFolder
from rcg_lightning.evaluation.sample_readers import open_samples
from rcg_lightning.errors import UserError
folder = Path(sys.argv[1])
list(open_samples(folder / "good"))
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
for read in (
    lambda: FlatFolder(folder / "jpeg", on_bad="stop", eval_share=0).train().load(0),
    lambda: FlatFolder(folder / "png", on_bad="stop", eval_share=0).train().load(0),
    lambda: open_samples(folder / "bomb.npz"),
):
    try:
        read()
    except UserError as error:
        print(error)
print(time.process_time() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_bombs_take_neither_time_nor_memory(tmp_path):
    image(tmp_path / "good" / "0.png")
    for kind in ("JPEG", "PNG"):
        (tmp_path / kind.lower()).mkdir()
        (tmp_path / kind.lower() / "bomb.jpg").write_bytes(bomb(kind))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (800, 512, 512, 1)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("arr_0.npy", head.getvalue() + bytes(800 * 512 * 512))
    run = [sys.executable, "-c", MEMORY, str(tmp_path)]
    *messages, last = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(messages) == 3
    assert all("RCG_LIMIT_" in message for message in messages)
    seconds, megabytes = map(float, last.split())
    assert seconds < 4  # for all three
    assert megabytes < 200


def test_the_limit_of_pixels_can_be_set(tmp_path, monkeypatch, recwarn):
    image(tmp_path / "one.png", "RGB", (20, 20))
    content = (tmp_path / "one.png").read_bytes()
    monkeypatch.setenv("RCG_LIMIT_PIXELS", "399")
    with pytest.raises(Unreadable, match="claims 400 pixels, the limit is 399"):
        decode(content, 3)
    monkeypatch.setenv("RCG_LIMIT_PIXELS", "400")
    assert decode(content, 3).shape == (3, 20, 20)
    monkeypatch.setenv("RCG_LIMIT_PIXELS", "many")
    with pytest.raises(UserError, match="RCG_LIMIT_PIXELS is 'many'"):
        decode(content, 3)
    assert not [warning for warning in recwarn if warning.category is Image.DecompressionBombWarning]
    assert Image.MAX_IMAGE_PIXELS == 89_478_485  # Pillow's own limit stays for others


def test_samples_of_a_mac_score_like_clean_ones(tmp_path):
    clean, mac = tmp_path / "clean", with_hidden_files(tmp_path / "mac")
    for i in range(6):
        image(clean / f"{i}.png")
    assert torch.equal(open_samples(clean).first(9), open_samples(mac).first(9))


def test_data_module_and_samples_agree(tmp_path):
    data = ImageDataModule(FlatFolder(with_hidden_files(tmp_path / "x"), channels=1, eval_share=0))
    assert len(data.images("train")) == len(open_samples(tmp_path / "x"))
