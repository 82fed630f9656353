"""Samples and statistics as .npz files: bombs, objects, wrong shapes; and records of results as JSON."""

import io
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..hostile import Given
from ..world import DATA, World
from .checkpoints import Evil
from .images import good
from .networks import TEXTS
from .stores import saved, with_header

FILE = "x.npz"
CLASSIFIER = "--extractor ClassifierExtractor --extractor.folder {classifier}/classifier"
SCORE = f"evaluate --samples {{at}}/{FILE} --data.source Digits {DATA} {CLASSIFIER}"
STATISTICS = f"evaluate --samples {{samples}} --statistics {{at}}/{FILE} {CLASSIFIER}"
AGAINST = f"evaluate --samples {{samples}} --data.source Digits {DATA} {CLASSIFIER} --against {{at}}/x.json"
COMPARE = f"compare --config digits/data {DATA} {CLASSIFIER} --rows {{at}}/x.json --out {{out}}"
REFERENCE = "--reference_samples {at}"
ROWS = {
    "a row of nothing": b"[{}]",
    "a row of numbers": b"[1, 2]",
    "samples a number": b'[{"condition": "a", "seed": 0, "samples": 7, "seconds": 1}]',
    "samples missing": b'[{"condition": "a", "seed": 0, "samples": "/nothing/here", "seconds": 1}]',
}


def inputs() -> Iterator[Given]:
    for name, make in _SAMPLES.items():
        yield Given("npz", name, make, SCORE, (FILE, "0x8"))
    for name, make in _STATISTICS.items():
        yield Given("statistics", name, make, STATISTICS, (FILE,))
    for name, content in TEXTS.items():
        yield Given("JSON", f"results {name}", _json(content), AGAINST, ("x.json",))
    for name, content in (TEXTS | ROWS).items():
        yield Given("JSON", f"rows {name}", _json(content), COMPARE, ("x.json", "/nothing/here"))
    for name, seed in {"of another size": 16, "of one pixel": 1}.items():
        make = lambda world, at, s=seed: good(at) or _sized(at, s)  # noqa: E731
        yield Given("image", f"reference {name}", make, f"{SCORE.split(' --')[0]} --samples {{samples}} "
                    f"{REFERENCE} {CLASSIFIER}", ("bad.png", "8x8"))  # fmt: skip


def _sized(at: Path, size: int) -> None:
    from PIL import Image

    Image.new("L", (size, size)).save(at / "bad.png")


def _json(content: bytes) -> Callable[[World, Path], Any]:
    return lambda world, at: (at / "x.json").write_bytes(content)


def _npz(**arrays: Any) -> Callable[[World, Path], Any]:
    return lambda world, at: np.savez(at / FILE, **{name: value() for name, value in arrays.items()})


def _raw(**entries: Callable[[], bytes]) -> Callable[[World, Path], Any]:
    """Return a maker of an .npz from the bytes of its entries."""

    def make(world: World, at: Path) -> None:
        with zipfile.ZipFile(at / FILE, "w") as archive:
            for name, content in entries.items():
                archive.writestr(f"{name}.npy", content())

    return make


def _bomb(world: World, at: Path) -> None:
    """A gigabyte of black images, compressed to a few megabytes."""
    shape = (2**20, 32, 32, 1)
    archive = zipfile.ZipFile(at / FILE, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("arr_0.npy", "w", force_zip64=True) as entry:
        entry.write(with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"))
        for _ in range(256):
            entry.write(bytes(2**22))


def _bytes(content: bytes) -> Callable[[World, Path], Any]:
    return lambda world, at: (at / FILE).write_bytes(content)


def _half(world: World, at: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=np.zeros((20, 8, 8, 1), np.uint8))
    (at / FILE).write_bytes(buffer.getvalue()[:800])


def _images(shape: tuple[int, ...], dtype: Any = np.uint8) -> Callable[[], np.ndarray]:
    return lambda: np.zeros(shape, dtype)


_HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 8, 8, 1), }"
_SAMPLES: dict[str, Callable[[World, Path], Any]] = {
    "a gigabyte of zeros": _bomb,
    "objects": _raw(arr_0=lambda: saved(np.array([Evil()] * 20, dtype=object), allow_pickle=True)),
    "10^12 images": _raw(arr_0=lambda: with_header(_HUGE, bytes(640))),
    "header of code": _raw(arr_0=lambda: with_header("__import__('os').system('touch touched')")),
    "no array": _raw(arr_0=lambda: b"no array"),
    "other name": _npz(images_of_mine=_images((20, 8, 8, 1))),
    "floats": _npz(arr_0=_images((20, 8, 8, 1), np.float32)),
    "three dimensions": _npz(arr_0=_images((20, 8, 8))),
    "five channels": _npz(arr_0=_images((20, 8, 8, 5))),
    "no image": _npz(arr_0=_images((0, 8, 8, 1))),
    "images of no pixel": _npz(arr_0=_images((20, 0, 8, 1))),
    "a number": _npz(arr_0=lambda: np.uint8(3)),
    "empty": _bytes(b""),
    "text": _bytes(b"no archive"),
    "half": _half,
    "a folder": lambda world, at: (at / FILE).mkdir(),
    "missing": lambda world, at: None,
    "endless zeros": lambda world, at: (at / FILE).symlink_to("/dev/zero"),
}


def _moments(mu: Any = None, sigma: Any = None, dim: int = 64) -> Callable[[World, Path], Any]:
    """Return a maker of published statistics."""
    mean, covariance = np.zeros(dim), np.eye(dim)
    return _npz(mu=lambda: mean if mu is None else mu, sigma=lambda: covariance if sigma is None else sigma)


_STATISTICS: dict[str, Callable[[World, Path], Any]] = {
    "NaN mean": _moments(np.full(64, math.nan)),
    "infinite covariance": _moments(sigma=np.full((64, 64), math.inf)),
    "mean of another length": _moments(np.zeros(7)),
    "covariance not square": _moments(sigma=np.zeros((64, 7))),
    "covariance not symmetric": _moments(sigma=np.triu(np.ones((64, 64)))),
    "negative covariance": _moments(sigma=-np.eye(64)),
    "other dimension": _moments(dim=9),
    "no sigma": _npz(mu=lambda: np.zeros(64)),
    "text arrays": _npz(mu=lambda: np.array(["x"] * 64), sigma=lambda: np.eye(64)),
    "complex numbers": _moments(np.zeros(64, complex)),
    "objects": _raw(mu=lambda: saved(np.array([Evil()] * 64, dtype=object), allow_pickle=True)),
    "empty": _bytes(b""),
}
