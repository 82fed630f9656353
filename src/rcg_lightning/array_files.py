"""Read .npy and .npz files without unpickling and without trusting what they claim; every error is one line."""

import zipfile
import zlib
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from rcg_lightning.errors import UserError, one_line
from rcg_lightning.limits import EXPANSION
from rcg_lightning.types import require

_SMALL = 2**26  # bytes of unpacked arrays that need no comparison with the file: constant ones shrink a thousandfold
_DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def mapped(path: Path) -> np.memmap:
    """Return the array of an .npy, mapped into memory; numpy's errors are the caller's to name."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except SystemError:  # seen on Python 3.11.2, where two threads parse headers; the file is whole
        return np.load(path, mmap_mode="r", allow_pickle=False)


def npz_names(path: Path, what: str) -> set[str]:
    """Return the names of the arrays in an .npz; errors name ``what`` it should hold."""
    with _opened(path, what) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def read_npz(path: Path, names: Iterable[str], what: str) -> dict[str, np.ndarray]:
    """Return the arrays ``names`` of an .npz, as far as it has them.

    Raises:
        UserError: the file is not an .npz, it is damaged, or its arrays are far larger than the file.
    """
    with _opened(path, what) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        wanted = {name: members[name] for name in names if name in members}
        unpacked = sum(info.file_size for info in wanted.values())
        if unpacked > _SMALL:
            EXPANSION.check(unpacked // max(1, path.stat().st_size), f"{path} ({unpacked:,} bytes unpacked)")
        return {name: _member(archive, info, path) for name, info in wanted.items()}


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    try:
        with archive.open(info) as file:
            _check_header(file, info.file_size)
        with archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except _DAMAGED as error:
        raise UserError(
            f"{path} is damaged ({info.filename}: {one_line(error, 200)}): download or make it again"
        ) from error


def _check_header(file: IO[bytes], size: int) -> None:
    """Raise a ValueError unless the header of an .npy of ``size`` bytes describes numbers of exactly that size."""
    try:
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
    except Exception as error:  # numpy parses the header as Python, whose errors are of many types
        raise ValueError("it has no header of an array of numbers") from error
    if dtype.hasobject or dtype.kind not in "biufSU":
        raise ValueError(f"it holds {dtype}, not numbers")
    needed = prod(shape) * dtype.itemsize
    if any(length < 0 for length in shape) or needed != size - file.tell():
        raise ValueError(f"its header claims {dtype} {shape}, {needed:,} bytes, but {size - file.tell():,} follow")


def _opened(path: Path, what: str) -> zipfile.ZipFile:
    require(zipfile.is_zipfile(path), f"{path} cannot be read as an .npz of {what}: it is another file, or cut short")
    try:
        return zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise UserError(f"{path} cannot be read as an .npz of {what}: {one_line(error, 200)}") from error
