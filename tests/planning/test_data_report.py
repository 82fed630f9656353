"""The report of a folder with everything that folders hold."""

import numpy as np
import pytest
from PIL import Image

from rcg_lightning.data.image_folders import FlatFolder
from rcg_lightning.errors import UserError
from rcg_lightning.planning.data_choice import check_apart, check_condition, choose_source
from rcg_lightning.planning.data_report import examine, write_sheet
from rcg_lightning.planning.machine import Machine

MACHINE = Machine("cpu", "1 CPU core", 1, 10**10)


def random_image(seed, width=48, height=32):
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    found = tmp_path / "images"
    found.mkdir()
    for seed in range(60):
        random_image(seed).save(found / f"{seed:02}.png")
    return found


def report_of(folder, **settings):
    source = FlatFolder(folder, orient=True, **settings)
    return examine(source.train(), source.evaluation(), MACHINE)


def test_a_folder_is_described(folder, tmp_path):
    random_image(1).save(folder / "copy.png")
    random_image(2).convert("L").save(folder / "grey.png")
    random_image(100).convert("RGBA").save(folder / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    random_image(101, 200, 30).save(folder / "rotated.jpg", exif=exif)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff and nothing else")
    (folder / "notes.txt").write_text("no image")
    report, sheet = report_of(folder)
    assert (report.images, report.unreadable, report.exact, report.grey) == (65, 1, 1, 1)
    assert (report.rotated, report.transparent, report.left_out) == (1, 1, {".txt": 1})
    assert report.near == 1  # the grey version
    assert not report.is_grey
    text = "\n".join(report.lines(64))
    assert "65 images" in text
    assert "turned upright" in text
    assert "100% are enlarged" in text
    warnings = report.warnings(64)
    assert any("65 images are few" in line for line in warnings)
    assert any("smaller than --size 64" in line for line in warnings)
    assert not any("repeat others" in line for line in warnings)
    report.check(folder)
    write_sheet(tmp_path / "sheet.png", sheet)
    assert Image.open(tmp_path / "sheet.png").size[0] > 500


def test_frames_of_a_video_are_warned_about(folder):
    for frame in range(30):
        pixels = np.asarray(random_image(3)).astype(int) + frame % 3
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"frame{frame}.png")
    report, _ = report_of(folder)
    assert any("repeat others, as the frames of a video do" in line for line in report.warnings(32))


def test_data_that_cannot_work_are_rejected(folder):
    files = sorted(folder.iterdir())
    for path in files[:25]:
        path.write_bytes(b"damaged")
    report_of(folder)[0].check(folder)  # fewer than half
    for path in files[:35]:
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"35 of 60 images cannot be read .*repair or remove"):
        report_of(folder)[0].check(folder)
    for path in files:
        random_image(0).save(path)
    with pytest.raises(UserError, match="all images are the same"):
        report_of(folder)[0].check(folder)
    for path in files[40:]:
        path.unlink()
    with pytest.raises(UserError, match="holds 40 images, too few"):
        report_of(folder)[0].check(folder)


def test_words_that_are_neither_folder_nor_data_set(folder, tmp_path):
    assert type(choose_source("digits", False)).__name__ == "Digits"
    assert type(choose_source("CIFAR10", False)).__name__ == "CIFAR10"
    with pytest.raises(UserError, match="no folder digit: did you mean digits"):
        choose_source("digit", False)
    with pytest.raises(UserError, match="is a file: give the folder"):
        choose_source(str(folder / "00.png"), False)
    source = choose_source(str(folder), False)
    with pytest.raises(UserError, match="--condition class needs labels"):
        check_condition("class", choose_source(str(folder), True))
    check_condition("class", choose_source("digits", True))
    with pytest.raises(UserError, match="lies in the folder of the images"):
        check_apart(source, folder / "runs")
    with pytest.raises(UserError, match="lie in the run's folder"):
        check_apart(source, tmp_path)
    check_apart(source, tmp_path / "runs")
