"""The index of the images in tar shards: file and byte position of each, scanned once, cached."""

import logging
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rcg_lightning.artifacts import cache_folder, fingerprint, replacing
from rcg_lightning.data.decode import SUFFIXES
from rcg_lightning.data.folder_index import FolderIndex, join_names
from rcg_lightning.errors import UserError

log = logging.getLogger(__name__)
_ARRAYS = ("text", "ends", "sizes", "folders", "shards", "offsets")


@dataclass
class TarIndex(FolderIndex):
    """Images in the ``*.tar`` of a folder, in webdataset's layout: ``key.jpg``, with its class number in ``key.cls``.

    Names are ``shard.tar/key.jpg``; ``folders`` holds class numbers, -1 for no class; ``classes`` holds these numbers
    as names, and is empty where no image has a class.

    Attributes:
        shards: (N,) int64, position in ``files`` of each image's tar.
        offsets: (N,) int64, position of the image's first byte in its tar.
        files: names of the tars, sorted.
    """

    shards: np.ndarray
    offsets: np.ndarray
    files: list[str]

    def read(self, row: int) -> bytes:
        with open(self.root / self.files[self.shards[row]], "rb") as file:
            return os.pread(file.fileno(), int(self.sizes[row]), int(self.offsets[row]))


def index_tars(root: Path) -> TarIndex:
    """Return the index of the tars in ``root``, from the cache where none of them has changed.

    Raises:
        UserError: there is no tar, one cannot be read or is compressed, or a class is not a number.
    """
    files = sorted(path.name for path in root.glob("*.tar"))
    if not files:
        raise UserError(f"no .tar files in {root}: give the folder of the shards, or sort them into train/ and val/")
    stamps = [[name, os.stat(root / name).st_size, os.stat(root / name).st_mtime_ns] for name in files]
    path = cache_folder("tars", f"{fingerprint([str(root.resolve()), stamps])}.npz")
    arrays = _cached(path) or _scan(root, files)
    if not path.exists():
        _store(path, arrays)
    count = int(arrays["folders"].max(initial=-1)) + 1
    classes = [str(number) for number in range(count)]
    return TarIndex(root=root, classes=classes, files=files, **arrays)


def _scan(root: Path, files: list[str]) -> dict[str, np.ndarray]:
    found = sorted(entry for number, name in enumerate(files) for entry in _entries(root / name, number))
    text, ends = join_names([entry[0] for entry in found])
    columns = np.asarray([entry[1:] for entry in found], np.int64).reshape(-1, 4)
    sizes, folders, shards, offsets = columns.T.copy()
    log.info("found %d images in %d tars of %s", len(found), len(files), root)
    return {"text": text, "ends": ends, "sizes": sizes, "folders": folders, "shards": shards, "offsets": offsets}


def _entries(path: Path, number: int) -> Iterator[tuple[bytes, int, int, int, int]]:
    """Yield (name, size, class, shard, offset) of the images of one tar."""
    images: dict[str, tarfile.TarInfo] = {}
    classes: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, last = member.name.removeprefix("./").rpartition("/")
                key = f"{folder}/{last.partition('.')[0]}"
                if not member.isfile():
                    continue
                if member.name.lower().endswith(SUFFIXES):
                    images[key] = member
                elif member.name.endswith(".cls"):
                    classes[key] = int(tar.extractfile(member).read())  # type: ignore[union-attr]
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} cannot be read as an uncompressed tar ({error}): make it again") from error
    except ValueError as error:
        raise UserError(f"{path}: the class of {member.name} is not a whole number ({error})") from error
    for key, member in images.items():
        name = os.fsencode(f"{path.name}/{member.name.removeprefix('./')}")
        yield name, member.size, classes.get(key, -1), number, member.offset_data


def _cached(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError):
        return None


def _store(path: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        with replacing(path, shared=True) as draft, open(draft, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        log.info("the index of the tars is not cached: %s", error)
