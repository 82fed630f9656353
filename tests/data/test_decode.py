"""Decoding: the faster decoders give Pillow's pixels, and threads change neither order nor limits."""

import io
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from rcg_lightning.data import decode as module
from rcg_lightning.data.decode import Unreadable, decode, in_threads


def png(image, **settings):
    content = io.BytesIO()
    image.save(content, "PNG", **settings)
    return content.getvalue()


def rgb(seed=0, size=(9, 7)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def by_pillow(content):
    return torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGB"))).permute(2, 0, 1)


PLAIN = {
    "plain": png(rgb()),
    "transparent colour": png(rgb(), transparency=(1, 2, 3)),
    "profile": png(rgb(), icc_profile=b"a colour profile", dpi=(72, 72)),
    "gamma": png(rgb())[:33] + bytes.fromhex("00000004 67414d41 0000b18f 0bfc6105") + png(rgb())[33:],
    "large": png(rgb(1, (300, 200)), compress_level=0),
}


@pytest.mark.parametrize("name", PLAIN)
def test_rgb_png_files_are_decoded_to_pillows_pixels(name, monkeypatch):
    monkeypatch.setattr(module, "_to_eight_bits", lambda image: pytest.fail("decoded by Pillow"))
    assert torch.equal(decode(PLAIN[name], 3), by_pillow(PLAIN[name]))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_other_png_files_are_decoded_by_pillow(mode, monkeypatch):
    monkeypatch.setattr(module, "decode_png", lambda *_, **__: pytest.fail("not to be trusted with these"))
    image = Image.new("I;16", (5, 4), 512) if mode == "I;16" else rgb().convert(mode)
    assert decode(png(image), 3).shape[0] == 3


def test_a_png_file_that_pillow_rejects_is_rejected():
    content = png(rgb())
    for end in range(30, len(content)):
        try:
            Image.open(io.BytesIO(content[:end])).load()
        except (OSError, SyntaxError):
            with pytest.raises(Unreadable):
                decode(content[:end], 3)


def test_threads_keep_the_order_and_raise_the_first_error(monkeypatch):
    monkeypatch.setattr(module, "_THREADS", 4)
    used = set()

    def load(number):
        used.add(threading.get_ident())
        time.sleep(0.002 * (number % 3))
        if number in (17, 18):
            raise ValueError(number)
        return number

    assert in_threads(load, range(17)) == list(range(17))
    assert len(used) > 1
    with pytest.raises(ValueError, match="17"):
        in_threads(load, range(30))


def test_a_loaders_worker_starts_no_threads(monkeypatch):
    monkeypatch.setattr(module, "_THREADS", 4)
    monkeypatch.setattr(module, "get_worker_info", lambda: "a worker")
    assert set(in_threads(lambda _: threading.get_ident(), range(8))) == {threading.get_ident()}


def test_threads_leave_pillows_limit_and_the_filters_of_warnings_as_they_were(monkeypatch):
    monkeypatch.setattr(module, "_THREADS", 8)
    before, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    content = [png(rgb(seed)) for seed in range(100)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        images = in_threads(lambda one: decode(one, 3), content)
    assert all(torch.equal(image, by_pillow(one)) for image, one in zip(images, content))
    assert before == Image.MAX_IMAGE_PIXELS
    assert filters == list(warnings.filters)
