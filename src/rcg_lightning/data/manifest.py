"""The check of a store's manifest: plain data, possibly a stranger's, from which sizes and file names follow."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from rcg_lightning.errors import UserError
from rcg_lightning.limits import ENTRIES
from rcg_lightning.types import require


def check_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """Raise a UserError where a manifest contradicts itself or claims too much, before anything is made of it.

    Args:
        manifest: as ``StoreWriter.finish`` writes it.
        path: of its file, for messages.
    """
    counts = [manifest[name] for name in ("size", "views", "shard_rows")]
    fits = all(_is_count(count) for count in counts)
    require(fits, f"{path} is damaged: size, views and shard_rows are {counts}, not whole numbers from 1")
    identity = manifest["identity"]
    require(isinstance(identity, dict), f"{path} is damaged: its identity is {str(identity)[:40]!r}, no dictionary")
    size, views, shard_rows = counts
    ENTRIES.check(size * views, str(path))
    columns, shards = manifest["columns"], manifest["shards"]
    for name, spec in columns.items():
        _check_column(name, spec, path)
    needed = -(-size // shard_rows)
    require(len(shards) == needed, f"{path} does not list all shards, but {len(shards)} of {needed}: extract again")
    bytes_of_row = {
        name: views * prod(spec["shape"]) * np.dtype(spec["dtype"]).itemsize for name, spec in columns.items()
    }
    for number, files in enumerate(shards):
        same = files.keys() == columns.keys()
        require(same, f"{path} is damaged: shard {number} has columns {sorted(files)}, not {sorted(columns)}")
        rows = min(shard_rows, size - number * shard_rows)
        for name, file in files.items():
            fits = isinstance(file["sha256"], str) and file["bytes"] >= rows * bytes_of_row[name]
            require(fits, f"{path} is damaged: {file['bytes']} bytes hold no {rows} rows of {name} in shard {number}")


def check_column_name(name: str, where: object) -> None:
    """Raise a UserError unless a column's name is a word: it becomes part of a file's name."""
    if not name.isidentifier():
        raise UserError(f"{where}: {name!r} is no name of a column: give one word of letters, digits and _")


def _check_column(name: str, spec: Mapping[str, Any], path: Path) -> None:
    check_column_name(name, path)
    try:
        kind = np.dtype(spec["dtype"]).kind
    except TypeError:
        kind = "?"
    shape, count = spec["shape"], spec.get("count", 1)
    fits = kind in "fiu" and isinstance(shape, list) and all(_is_count(length) for length in shape) and _is_count(count)
    require(fits, f"{path} is damaged: column {name} is {spec['dtype']} of shape {shape} and count {count}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
