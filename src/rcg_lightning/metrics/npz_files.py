"""Read .npz files of arrays without unpickling; every error is one line."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rcg_lightning.errors import UserError
from rcg_lightning.types import require


def npz_names(path: Path, what: str) -> set[str]:
    """Return the names of the arrays in an .npz; errors name ``what`` it should hold."""
    with _opened(path, what) as arrays:
        return set(arrays.files)


def read_npz(path: Path, names: Iterable[str], what: str) -> dict[str, np.ndarray]:
    """Return the arrays ``names`` of an .npz, as far as it has them.

    Raises:
        UserError: the file is not an .npz, or it is damaged.
    """
    try:
        with _opened(path, what) as arrays:
            return {name: arrays[name] for name in names if name in arrays}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): download or make it again") from error


def _opened(path: Path, what: str) -> np.lib.npyio.NpzFile:
    require(zipfile.is_zipfile(path), f"{path} cannot be read as an .npz of {what}: it is another file, or cut short")
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as an .npz of {what}: {error}") from error
