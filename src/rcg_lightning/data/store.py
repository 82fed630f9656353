"""A store: named columns over the views of a data set's images, made once by any number of processes.

Rows are cut into shards whose bounds depend on the data set's size and ``shard_rows`` only. A shard is complete when
its ``.json``, written last, is there; a store is when its ``manifest.json`` is. So making one can be stopped at any
moment and continued. store_writer.py makes them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rcg_lightning.artifacts import check_format, file_sha256
from rcg_lightning.data.shards import FORMAT, IDENTITY, MANIFEST, REMEDY, Shard, cut
from rcg_lightning.data.store_writer import ShardCollector, StoreWriter
from rcg_lightning.errors import UserError
from rcg_lightning.types import require

__all__ = ["Shard", "ShardCollector", "Store", "StoreWriter"]


class Store:
    """A complete store, memory-mapped; made by ``Store.open``.

    Attributes:
        path: its folder.
        size: number of images N.
        views: number of views V of each image.
        columns: name to data spec: ``shape`` of one row, ``dtype``, and what the maker added.
        identity: what made it: ``dataset`` (fingerprint), ``split``, ``transform`` (what the views are), and one for
            each column, such as the encoder's.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.size: int = manifest["size"]
        self.views: int = manifest["views"]
        self.shard_rows: int = manifest["shard_rows"]
        self.columns: dict[str, dict[str, Any]] = manifest["columns"]
        self.identity: dict[str, Any] = manifest["identity"]
        self._files: list[dict[str, dict[str, Any]]] = manifest["shards"]
        self._shards = cut(self.size, self.shard_rows)
        self._maps: dict[tuple[str, int], np.ndarray] = {}

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open the complete store in folder ``path``; needs no right to write there.

        Raises:
            UserError: there is none, it is not complete, of another format, or files are missing or cut short.
        """
        path = Path(path).expanduser()
        require(path.is_dir(), f"no store at {path}: make it with rcg extract")
        if not (path / MANIFEST).exists():
            if (path / IDENTITY).exists():
                raise UserError(f"the store at {path} is incomplete: run extract again to continue")
            raise UserError(f"{path} is not a store (no {MANIFEST}): give the folder that rcg extract made")
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            check_format(manifest["format"], FORMAT, f"the store at {path}", REMEDY)
            store = cls(path, manifest)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path / MANIFEST} is damaged ({error}): remove it and run extract again") from error
        store._check_files()
        return store

    def __len__(self) -> int:
        return self.size

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # each process maps the files itself

    def read(self, column: str, index: np.ndarray, view: int | np.ndarray = 0) -> np.ndarray:
        """Return rows (n, *shape) of ``column`` for images ``index`` (n,) and ``view``, one for all or (n,)."""
        index = np.asarray(index)
        view = np.broadcast_to(np.asarray(view), index.shape)
        self._require_column(column)
        if len(index) and not (index.min() >= 0 and index.max() < self.size):
            raise IndexError(f"index {index.min()} to {index.max()} in a store of {self.size} images")
        out = np.empty((len(index), *self.columns[column]["shape"]), self.columns[column]["dtype"])
        numbers = index // self.shard_rows
        for number in np.unique(numbers):
            here = np.flatnonzero(numbers == number)
            rows = index[here] - number * self.shard_rows
            out[here] = self._map(column, int(number))[rows, view[here]]
        return out

    def whole(self, column: str) -> np.ndarray:
        """Return all of ``column``, (N, V, *shape), in memory."""
        self._require_column(column)
        spec = self.columns[column]
        out = np.empty((self.size, self.views, *spec["shape"]), spec["dtype"])
        for shard in self._shards:
            out[shard.start : shard.stop] = self._map(column, shard.number)
        return out

    def verify(self) -> None:
        """Read every file again and compare its SHA-256.

        Raises:
            UserError: names the first file that is not what was written.
        """
        for shard, files in zip(self._shards, self._files):
            for column, spec in files.items():
                path = self._path(column, shard)
                if file_sha256(path) != spec["sha256"]:
                    raise UserError(
                        f"{path} is damaged: remove it with {shard.stem}.json and {MANIFEST}, extract again"
                    )

    def check(self, **expected: Any) -> None:
        """Raise a UserError unless the identity has these entries; says what is wanted and what is there."""
        for name, value in expected.items():
            if self.identity.get(name) != value:
                raise UserError(
                    f"the store at {self.path} does not belong here: its {name} is {self.identity.get(name)!r}, "
                    f"not {value!r}; extract one for these data and settings, or give the settings it was made with"
                )

    def _require_column(self, column: str) -> None:
        require(column in self.columns, f"the store at {self.path} has no {column!r}, only {sorted(self.columns)}")

    def _path(self, column: str, shard: Shard) -> Path:
        return self.path / f"{shard.stem}.{column}.npy"

    def _map(self, column: str, number: int) -> np.ndarray:
        """Return shard ``number`` of ``column``, (rows, V, *shape)."""
        found = self._maps.get((column, number))
        if found is None:
            path = self._path(column, self._shards[number])
            found = self._maps[column, number] = np.load(path, mmap_mode="r", allow_pickle=False)
        return found

    def _check_files(self) -> None:
        require(
            len(self._files) == len(self._shards), f"{self.path / MANIFEST} does not list all shards: extract again"
        )
        for shard, files in zip(self._shards, self._files):
            for column, spec in files.items():
                path = self._path(column, shard)
                found = path.stat().st_size if path.exists() else 0
                if found != spec["bytes"]:
                    raise UserError(
                        f"{path} has {found} bytes, not {spec['bytes']}: "
                        f"remove {shard.stem}.json and {MANIFEST} there and run extract again"
                    )


def representation_store(path: Path) -> Store:
    """Open a store of representations, or raise UserError where it holds none."""
    store = Store.open(path)
    require("representation" in store.columns, f"{path} holds no representations: give a store of `rcg extract`")
    return store
