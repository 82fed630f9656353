"""Repeated images by a perceptual hash: the signs of the differences between neighbouring pixels of a tiny version."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 9, 8
_BITS = 3  # of 64 that may differ
_GREY = 6.0  # mean difference of the tiny versions, of 255: flat images have almost random signs
_CHUNK = 512


@dataclass(frozen=True)
class Repeats:
    """How many images repeat an earlier one: to the byte, and nearly."""

    exact: int
    near: int


def tiny(image: Image.Image) -> np.ndarray:
    """Return an image's tiny grey version, (8, 9) uint8."""
    return np.asarray(image.convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BOX))


def difference_hash(versions: np.ndarray) -> np.ndarray:
    """Return the hashes (N,) uint64 of tiny versions (N, 8, 9) uint8."""
    signs = versions[:, :, 1:] > versions[:, :, :-1]  # (N, 8, 8)
    return np.packbits(signs.reshape(len(versions), 64), axis=1).view(np.uint64)[:, 0]


def count_repeats(versions: np.ndarray, digests: list[bytes]) -> Repeats:
    """Count the images that repeat an earlier one.

    Args:
        versions: (N, 8, 9) uint8, by ``tiny``.
        digests: a hash of each file's bytes.
    """
    count = len(digests)
    exact = count - len(set(digests))
    hashes, flat = difference_hash(versions), versions.reshape(count, -1).astype(np.float32)
    near = 0
    for start in range(0, count, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, count))
        differing = np.bitwise_count(hashes[rows, None] ^ hashes[None, : rows[-1] + 1])  # (R, E)
        first, second = np.nonzero(differing <= _BITS)
        earlier = second < rows[first]
        first, second = rows[first[earlier]], second[earlier]
        alike = np.abs(flat[first] - flat[second]).mean(1) <= _GREY if len(first) < 5_000_000 else slice(None)
        near += len(np.unique(first[alike]))
    return Repeats(exact, max(near - exact, 0))
