"""Stores whose manifests leave their folder or claim what cannot be, and whose arrays hold objects or no numbers."""

import hashlib
import io
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..hostile import ESCAPED, Given
from ..world import FIT, SMALL, STEPS, World
from .checkpoints import Evil
from .networks import TEXTS

TRAIN = f"fit --config digits/rdm {FIT} {STEPS} {SMALL} --data.stores [{{at}}/store] --trainer.default_root_dir {{out}}"
CLUSTER = "cluster --store {at}/store --count 4 --out {out}"
SHARD = "000002.representation.npy"
HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (16, 1, 32), }"
VALUES: dict[str, tuple[Any, ...]] = {
    "size": (10**12, -1, 0, "x", None, 1.5, [1]),
    "views": (10**12, 0, -1, "x"),
    "shard_rows": (10**12, 0, -1, None),
    "shards": ([], None, "x", [1, 2]),
    "columns": ({}, None, [1], {"representation": 7}),
    "identity": (None, [1], "x"),
    "format": (99, None, "x"),
}
COLUMN: dict[str, tuple[Any, ...]] = {
    "dtype": ("object", "nonsense", "O8", 7, None, "float64"),
    "shape": ([10**9], [-1], "x", None, [32, 10**6]),
}


def inputs() -> Iterator[Given]:
    where = ("manifest.json", "store")
    for reader, command in {"fit": TRAIN, "cluster": CLUSTER}.items():
        for name, content in TEXTS.items():
            yield Given("store", f"manifest {name}, {reader}", _text(content), command, where)
        for name in (f"../{ESCAPED}", f"/tmp/rcg-{ESCAPED}", "../../../etc/passwd", "", "a/b", "\0"):
            yield Given("store", f"column {name!r}, {reader}", _renamed(name), command, where)
        for name, make in _ARRAYS.items():
            yield Given("array", f"{name}, {reader}", make, command, (SHARD, *where))
    for key, values in VALUES.items():
        for value in values:
            yield Given("store", f"{key} {value!r}", _changed((key,), value), TRAIN, where)
        yield Given("store", f"{key} missing", _missing(key), TRAIN, where)
    for key, values in COLUMN.items():
        for value in values:
            make = _changed(("columns", "representation", key), value)
            yield Given("store", f"{key} {value!r}", make, TRAIN, (*where, SHARD, "representation"))


def _copy(world: World, at: Path) -> Path:
    return shutil.copytree(world.path("store"), at / "store")


def _edit(world: World, at: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    folder = _copy(world, at)
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    manifest.pop("checksum", None)  # as a stranger would
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _text(content: bytes) -> Callable[[World, Path], Any]:
    return lambda world, at: (_copy(world, at) / "manifest.json").write_bytes(content)


def _changed(path: tuple[str, ...], value: Any) -> Callable[[World, Path], Any]:
    def edit(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return lambda world, at: _edit(world, at, edit)


def _missing(key: str) -> Callable[[World, Path], Any]:
    return lambda world, at: _edit(world, at, lambda manifest: manifest.pop(key))


def _renamed(name: str) -> Callable[[World, Path], Any]:
    def edit(manifest: dict[str, Any]) -> None:
        for columns in (manifest["columns"], *manifest["shards"]):
            columns[name] = columns["representation"]

    return lambda world, at: _edit(world, at, edit)


def _array(content: Callable[[np.ndarray], bytes]) -> Callable[[World, Path], Any]:
    """Return a maker of a store with one shard replaced, with the right size and checksum, as a stranger would."""

    def make(world: World, at: Path) -> None:
        replaced = content(np.load(world.path("store") / SHARD))

        def sign(manifest: dict[str, Any]) -> None:
            spec = manifest["shards"][2]["representation"]
            spec |= {"bytes": len(replaced), "sha256": hashlib.sha256(replaced).hexdigest()}

        (_edit(world, at, sign) / SHARD).write_bytes(replaced)

    return make


def saved(array: np.ndarray, **settings: Any) -> bytes:
    """Return an array as the content of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, **settings)
    return buffer.getvalue()


def with_header(text: str, data: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    """Return an .npy file with the given header."""
    header = text.encode() + b"\n"
    packed = struct.pack("<H" if version == 1 else "<I", len(header) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + packed + header + data


def _spoilt(rows: np.ndarray, value: float) -> bytes:
    rows = rows.copy()
    rows[3, 0, 5] = value
    return saved(rows)


def _replaced_by_link(world: World, at: Path) -> None:
    folder = _copy(world, at)
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to("/dev/zero")


_ARRAYS: dict[str, Callable[[World, Path], Any]] = {
    "objects": _array(lambda rows: saved(np.array([Evil()] * 16, dtype=object), allow_pickle=True)),
    "10^12 rows": _array(lambda rows: with_header(HEADER.replace("16", str(10**12)), rows.tobytes())),
    "negative rows": _array(lambda rows: with_header(HEADER.replace("16", "-16"), rows.tobytes())),
    "header of code": _array(lambda rows: with_header("__import__('os').system('touch touched')", rows.tobytes())),
    "header of brackets": _array(lambda rows: with_header("(" * 9000 + ")" * 9000, rows.tobytes(), 2)),
    "header of 4 GB": _array(lambda rows: with_header(HEADER, rows.tobytes(), 2, 2**32 - 1)),
    "version 9": _array(lambda rows: with_header(HEADER, rows.tobytes(), 9)),
    "empty": _array(lambda rows: b""),
    "text": _array(lambda rows: b"no array"),
    "half": _array(lambda rows: saved(rows)[:700]),
    "NaN row": _array(lambda rows: _spoilt(rows, math.nan)),
    "infinite row": _array(lambda rows: _spoilt(rows, math.inf)),
    "other shape": _array(lambda rows: saved(rows[:, :, :7])),
    "fewer rows": _array(lambda rows: saved(rows[:3])),
    "other dtype": _array(lambda rows: saved(rows.astype("S4"))),
    "missing": lambda world, at: (_copy(world, at) / SHARD).unlink(),
    "endless zeros": _replaced_by_link,
    "a pipe": lambda world, at: (_copy(world, at) / SHARD).unlink() or os.mkfifo(at / "store" / SHARD),
}
