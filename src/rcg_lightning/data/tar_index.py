"""The index of the images in tar shards: file and byte position of each, scanned once, cached."""

import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rcg_lightning.artifacts import cache_folder, fingerprint, replacing
from rcg_lightning.data.decode import SUFFIXES, check_bytes
from rcg_lightning.data.folder_index import FolderIndex, join_names, reason_left_out, report_left_out
from rcg_lightning.errors import UserError
from rcg_lightning.limits import CLASSES
from rcg_lightning.types import require

log = logging.getLogger(__name__)
_ARRAYS = ("text", "ends", "sizes", "folders", "shards", "offsets")
_VERSION = 2
_PADDING = 2**20  # the largest number of zero bytes at the end of a tar that some program writes


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
        check_bytes(int(self.sizes[row]))
        with open(self.root / self.files[self.shards[row]], "rb") as file:
            return os.pread(file.fileno(), int(self.sizes[row]), int(self.offsets[row]))


def tar_names(root: Path) -> list[str]:
    """Return the names of the tars in ``root``, sorted, without hidden ones."""
    return sorted(path.name for path in root.glob("*.tar") if not path.name.startswith("."))


def index_tars(root: Path) -> TarIndex:
    """Return the index of the tars in ``root``, from the cache where none of them has changed.

    Raises:
        UserError: there is no tar, one is torn, compressed or cannot be read, two images share a key, or a class is not
            a number from 0.
    """
    files = tar_names(root)
    if not files:
        raise UserError(f"no .tar files in {root}: give the folder of the shards, or sort them into train/ and val/")
    stamps = [[name, os.stat(root / name).st_size, os.stat(root / name).st_mtime_ns] for name in files]
    path = cache_folder("tars", f"{fingerprint([_VERSION, SUFFIXES, str(root.resolve()), stamps])}.npz")
    arrays: dict[str, Any] = _cached(path) or _scan(root, files)
    if not path.exists():
        _store(path, arrays)
    count = int(arrays["folders"].max(initial=-1)) + 1
    CLASSES.check(count, f"{root}: a class in its tars")
    classes = [str(number) for number in range(count)]
    return TarIndex(root=root, classes=classes, files=files, **arrays)


def _scan(root: Path, files: list[str]) -> dict[str, np.ndarray]:
    left_out: Counter[str] = Counter()
    found = sorted(entry for number, name in enumerate(files) for entry in _entries(root / name, number, left_out))
    text, ends = join_names([entry[0] for entry in found])
    columns = np.asarray([entry[1:] for entry in found], np.int64).reshape(-1, 4)
    sizes, folders, shards, offsets = columns.T.copy()
    log.info("found %d images in %d tars of %s", len(found), len(files), root)
    report_left_out(root, +left_out)
    return {"text": text, "ends": ends, "sizes": sizes, "folders": folders, "shards": shards, "offsets": offsets}


def _entries(path: Path, number: int, left_out: Counter[str]) -> Iterator[tuple[bytes, int, int, int, int]]:
    """Yield (name, size, class, shard, offset) of the images of one tar; count what is left out."""
    images: list[tarfile.TarInfo] = []
    classes: list[tuple[str, int]] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                last = member.name.rpartition("/")[2]
                if member.isdir():
                    continue
                if last.endswith(".cls") and not last.startswith("."):
                    classes.append((_plain(member.name), _class_in(tar, member, path)))
                elif reason := reason_left_out(last):
                    left_out[reason] += 1
                else:
                    fits = member.isreg() and not member.issparse()
                    require(fits, f"{path}: {member.name} is a link or a sparse file: make the tar with plain files")
                    images.append(member)
            _check_end(path, tar.offset)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} cannot be read as an uncompressed tar ({error}): make it again") from error
    names = [_plain(member.name) for member in images]
    numbered = len({_key(name) for name in names}) < len(names)
    class_of = _by_key(path, classes, numbered)
    keys = _by_key(path, zip(names, range(len(names))), numbered)
    left_out["class without an image"] += len(class_of.keys() - keys.keys())
    for key, row in keys.items():
        member = images[row]
        name = os.fsencode(f"{path.name}/{names[row]}")
        yield name, member.size, class_of.get(key, -1), number, member.offset_data


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _key(name: str, numbered: bool = False) -> str:
    """Return the key that a file shares with its class: webdataset's, the name up to its first dot.

    Args:
        numbered: a number after a dot belongs to the key too: ``scan.0001.jpg`` has the key ``scan.0001``.
    """
    folder, _, last = name.rpartition("/")
    first, *rest = last.split(".")
    while numbered and len(rest) > 1 and rest[0].isdecimal():
        first = f"{first}.{rest.pop(0)}"
    return f"{folder}/{first}"


def _by_key(path: Path, named: Iterable[tuple[str, int]], numbered: bool) -> dict[str, int]:
    """Return values by the keys of their names; raise a UserError where two names share a key."""
    found: dict[str, tuple[str, int]] = {}
    for name, value in named:
        key = _key(name, numbered)
        if key in found:
            raise UserError(
                f"{path}: {found[key][0]} and {name} share the key {key.removeprefix('/')}, the name up to its first "
                "dot: give each image a key of its own"
            )
        found[key] = name, value
    return {key: value for key, (_, value) in found.items()}


def _class_in(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    """Read the number of a class, or raise a UserError that names the file."""
    file = tar.extractfile(member)
    content = file.read(32).strip() if file is not None and member.size <= 32 else b""
    fits = content.isdigit()
    require(
        fits,
        f"{path}: the class in {member.name} is not a whole number from 0, but {content.decode(errors='replace')!r}",
    )
    CLASSES.check(int(content) + 1, f"{path}: {member.name}")
    return int(content)


def _check_end(path: Path, offset: int) -> None:
    """Raise a UserError unless a tar ends after its last member, at ``offset``: Python takes damage for the end."""
    with open(path, "rb") as file:
        file.seek(offset)
        rest = file.read(_PADDING + 1)
    torn = f"{path} is damaged or cut short after byte {offset:,}: download or make it again"
    require(len(rest) >= tarfile.BLOCKSIZE and not any(rest[: tarfile.BLOCKSIZE]), torn)
    more = f"{path} holds more after its end, at byte {offset:,}, such as a second tar: make it again as one tar"
    require(len(rest) <= _PADDING and not any(rest), more)


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
