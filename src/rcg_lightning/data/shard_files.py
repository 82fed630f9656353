"""Reading a shard's file once, in pieces, to find damage and values that are not finite."""

import hashlib
from pathlib import Path

import numpy as np

from rcg_lightning.array_files import mapped
from rcg_lightning.errors import one_line

_PIECE = 1 << 24  # bytes in memory at once, a multiple of every item's size


def size_fault(path: Path, size: int) -> str | None:
    """Return what is wrong with the number of bytes of a file; None where nothing is."""
    if not path.is_file():
        return "is missing"
    found = path.stat().st_size
    return None if found == size else f"has {found} bytes, not {size}"


def fault(path: Path, sha256: str, dtype: str, shape: tuple[int, ...], start: int) -> str | None:
    """Return what is wrong with a shard of a column; None where nothing is.

    Args:
        path: its .npy file.
        sha256: recorded checksum of the file.
        dtype: of the column.
        shape: of the shard, (rows, V, *shape of a row).
        start: image of its first row.
    """
    damaged = "is damaged, it does not match its checksum"
    try:
        array = mapped(path)
    except Exception as error:  # numpy parses a header as Python, which fails in many ways
        return f"is damaged, it cannot be read ({one_line(error, 80)})"
    if array.shape != shape or str(array.dtype) != dtype:
        return damaged
    digest, first, at = hashlib.sha256(), None, 0
    with open(path, "rb") as file:
        digest.update(file.read(array.offset))
        while piece := file.read(_PIECE):
            digest.update(piece)
            if array.dtype.kind == "f" and first is None and len(piece) % array.itemsize == 0:
                finite = np.isfinite(np.frombuffer(piece, array.dtype))
                if not finite.all():
                    first = at + int(np.argmin(finite))
            at += len(piece) // array.itemsize
    if digest.hexdigest() != sha256:
        return damaged
    if first is None:
        return None
    row, view = np.unravel_index(first, shape)[:2]
    return f"holds NaN or infinity, first in row {row} (image {start + row}), view {view}"
