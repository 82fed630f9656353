"""The index of a folder's images: scanned once, cached, in arrays that the loader's workers share.

This is the one place that decides which files of a folder are images: training, evaluation and samples agree on it.
"""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rcg_lightning.array_files import mapped
from rcg_lightning.artifacts import cache_folder, fingerprint, write_json
from rcg_lightning.data.decode import SUFFIXES, image_bytes
from rcg_lightning.errors import UserError

log = logging.getLogger(__name__)
_VERSION = 3
_SETTLED = 2.0  # seconds after which another change of a folder is certain to change its time stamp
_reported: set[tuple[Path, str]] = set()  # what this process has reported as left out, once for each folder


@dataclass
class FolderIndex:
    """Names and sizes of the images below ``root``, sorted by name.

    Attributes:
        text: (bytes,) uint8, all relative names, concatenated.
        ends: (N + 1,) int64, the positions in ``text`` where the names begin, and where the last one ends.
        sizes: (N,) int64, bytes of each file.
        folders: (N,) int64, position in ``classes`` of the first folder of the name; -1 for files directly in root.
        classes: names of the folders directly in root, sorted.
        left_out: number of files that are no images, by the reason: a suffix, ``hidden`` or ``broken link``.
    """

    root: Path
    text: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray
    folders: np.ndarray
    classes: list[str]
    left_out: dict[str, int] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return len(self.sizes)

    def name(self, row: int) -> str:
        """Return the name of file ``row`` relative to root, with forward slashes."""
        return os.fsdecode(self.text[self.ends[row] : self.ends[row + 1]].tobytes())

    def read(self, row: int) -> bytes:
        """Return the content of file ``row``, as ``image_bytes`` does."""
        return image_bytes(self.root / self.name(row))

    def fingerprint(self, rows: np.ndarray) -> str:
        """Return a hash of the names and sizes of ``rows``, ascending."""
        lengths = np.diff(self.ends)
        chosen = np.zeros(len(self), bool)
        chosen[rows] = True
        parts = self.text[np.repeat(chosen, lengths)], lengths[rows], self.sizes[rows]
        return fingerprint(None, (part.tobytes() for part in parts))


def index_folder(root: Path) -> FolderIndex:
    """Return the index of ``root``, from the cache where no folder below it has changed since.

    A file rewritten in place does not change its folder's time stamp: then remove the cache, whose path the log names.
    """
    root = _existing(root)
    path = cache_folder("folders", fingerprint(str(root.resolve())))
    index = _read(path, root)
    if index is None:
        started = time.time()
        index, stamps = _scan(root)
        seconds = time.time() - started
        log.info("found %d images below %s in %.1f s (index cached in %s)", len(index), root, seconds, path)
        if started - max(stamp for _, stamp in stamps) / 1e9 > _SETTLED:
            _write(path, index, stamps)
    report_left_out(root, index.left_out)
    return index


def scan_folder(root: Path) -> FolderIndex:
    """Return the index of ``root`` without the cache: for folders of samples, which change often."""
    index, _ = _scan(_existing(root))
    report_left_out(root, index.left_out)
    return index


def _existing(root: Path) -> Path:
    root = root.expanduser()
    if not root.is_dir():
        raise UserError(f"no folder of images at {root}: correct the path")
    return root


def report_left_out(root: Path, left_out: Mapping[str, int]) -> None:
    """Report in one line, once, how many files in ``root`` are not used, by the reason."""
    found = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    if found and (root, found) not in _reported:
        _reported.add((root, found))
        total = sum(left_out.values())
        files = "1 file that is no image" if total == 1 else f"{total} files that are no images"
        log.warning("%s: left out %s (%s)", root, files, found)


def reason_left_out(name: str) -> str | None:
    """Return why a file called ``name`` is no image; None where it is one by its name.

    Hidden files are left out because macOS, notebooks and synchronisation keep their own under names of images.
    """
    if name.startswith("."):
        return "hidden"
    return None if name.lower().endswith(SUFFIXES) else Path(name).suffix.lower()[:16] or "without suffix"


def _scan(root: Path) -> tuple[FolderIndex, list[tuple[str, int]]]:
    """Scan all folders below ``root``, also through links; return the index and each folder's time stamp (ns)."""
    names: list[bytes] = []
    sizes: list[int] = []
    stamps: list[tuple[str, int]] = []
    classes: list[str] = []
    left_out: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        folder = pending.pop()
        status = os.stat(root / folder)
        if (status.st_dev, status.st_ino) in seen:  # a circular link
            continue
        seen.add((status.st_dev, status.st_ino))
        stamps.append((folder, status.st_mtime_ns))
        for entry in _entries(root / folder):
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir() and not entry.name.startswith("."):
                pending.append(name)
                if not folder:
                    classes.append(entry.name)
                continue
            reason = reason_left_out(entry.name) or (None if entry.is_file() else "broken link")
            if reason is None:
                names.append(os.fsencode(name))
                sizes.append(entry.stat().st_size)
            else:
                left_out[reason] += 1
    index = _assemble(root, names, sizes, sorted(classes))
    index.left_out = dict(left_out)
    return index, stamps


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except PermissionError as error:
        raise UserError(f"the folder {folder} cannot be read ({error.strerror}): change its permissions") from error


def holds_files(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether there is a file with one of ``suffixes`` anywhere below ``folder``, hidden names aside."""
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(name.lower().endswith(suffixes) and not name.startswith(".") for name in files):
            return True
    return False


def _assemble(root: Path, names: list[bytes], sizes: list[int], classes: list[str]) -> FolderIndex:
    order = sorted(range(len(names)), key=names.__getitem__)
    names = [names[row] for row in order]
    text, ends = join_names(names)
    position = {os.fsencode(name): number for number, name in enumerate(classes)}
    return FolderIndex(
        root=root,
        text=text,
        ends=ends,
        sizes=np.asarray([sizes[row] for row in order], np.int64),
        folders=np.asarray([position[n.split(b"/", 1)[0]] if b"/" in n else -1 for n in names], np.int64),
        classes=classes,
    )


def join_names(names: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return ``text`` and ``ends`` of names: arrays, because worker processes share these but copy lists."""
    return np.frombuffer(b"".join(names), np.uint8), np.cumsum([0, *map(len, names)], dtype=np.int64)


_ARRAYS = ("text", "ends", "sizes", "folders")


def _read(path: Path, root: Path) -> FolderIndex | None:
    """Read the cached index; None where it is missing or broken, or a folder has changed."""
    try:
        spec = json.loads((path / "index.json").read_text())
        if spec["version"] != _VERSION or spec["root"] != str(root.resolve()):
            return None
        if spec["suffixes"] != list(SUFFIXES):  # another Pillow, or another plugin of it
            return None
        if any(os.stat(root / folder).st_mtime_ns != stamp for folder, stamp in spec["stamps"]):
            return None
        folder = path / spec["arrays"]
        arrays = {name: mapped(folder / f"{name}.npy") for name in _ARRAYS}
        if len(arrays["sizes"]) != spec["images"] or arrays["ends"][-1] != len(arrays["text"]):
            return None
        return FolderIndex(root=root, classes=spec["classes"], left_out=spec["left_out"], **arrays)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, index: FolderIndex, stamps: list[tuple[str, int]]) -> None:
    """Cache the index: first the arrays, in a new folder, then index.json, which names that folder, in one step."""
    version = f"{time.time_ns():x}-{os.getpid()}"
    spec = {
        "version": _VERSION,
        "root": str(index.root.resolve()),
        "arrays": version,
        "images": len(index),
        "classes": index.classes,
        "suffixes": SUFFIXES,
        "left_out": index.left_out,
        "stamps": stamps,
    }
    try:
        (path / version).mkdir(parents=True)
        for name in _ARRAYS:
            np.save(path / version / f"{name}.npy", getattr(index, name))
        write_json(path / "index.json", spec, shared=True)
    except OSError as error:
        log.info("the index of %s is not cached: %s", index.root, error)
