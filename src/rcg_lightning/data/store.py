"""A store: named columns with a row for every view of every image of a data set.

Rows are cut into shards, whose bounds depend on the data set's size and ``shard_rows`` only. A shard is complete once
its ``.json`` exists, which is written last; a store is complete once its ``manifest.json`` exists. So any number of
processes can write a store (store_writer.py), and they can be stopped and continued at any moment.
"""

import os
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rcg_lightning.array_files import mapped
from rcg_lightning.data.manifest import check_manifest
from rcg_lightning.data.shard_files import fault, size_fault
from rcg_lightning.data.shards import FORMAT, IDENTITY, MANIFEST, REMEDY, Shard, cut
from rcg_lightning.data.store_writer import ShardCollector, StoreWriter
from rcg_lightning.errors import UserError
from rcg_lightning.integrity import read_sealed, unless_verified
from rcg_lightning.types import require

__all__ = ["Shard", "ShardCollector", "Store", "StoreWriter"]


_ENTRIES = {"size", "views", "shard_rows", "floats", "identity", "columns", "shards"}  # of the manifest


class Store:
    """A complete store, memory-mapped; ``Store.open`` opens one.

    Attributes:
        path: its folder.
        size: number of images N.
        views: number of views V of each image.
        columns: the spec of each column: ``shape`` of one row, ``dtype``, and what the maker of the store added.
        identity: the store's origin: ``dataset`` (fingerprint), ``split``, ``transform`` (description of the views),
            and an entry for each column, such as the encoder's identity.
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
        """Open the complete store in folder ``path``; this needs no write permission.

        Its first opening in a process reads every file once, at the speed of the disk or of SHA-256, about 1.5 GB/s for
        each core. That a large store passed is remembered until a file changes; see ``integrity.unless_verified``.

        Raises:
            UserError: there is no store; it is incomplete or of another format; a file is missing or damaged, or holds
                a value that is not finite.
        """
        store = cls.described(Path(path).expanduser())
        for file, column, shard in store._columns_of_shards():
            wrong = size_fault(file, store._files[shard.number][column]["bytes"])
            require(wrong is None, store._line(file, shard, wrong))
        unless_verified([file for file, _, _ in store._columns_of_shards()], store.verify, "store")
        return store

    @classmethod
    def described(cls, path: Path) -> "Store":
        """Return the complete store in folder ``path`` by its description; its other files are not looked at."""
        require(path.is_dir(), f"no store at {path}: make it with rcg extract")
        if not (path / MANIFEST).exists():
            if (path / IDENTITY).exists():
                raise UserError(f"the store at {path} is incomplete: run extract again to continue")
            raise UserError(f"{path} is not a store (no {MANIFEST}): give the folder that rcg extract made")
        manifest = read_sealed(path / MANIFEST, _ENTRIES, FORMAT, f"the store at {path}", REMEDY)
        try:
            check_manifest(manifest, path / MANIFEST)
            store = cls(path, manifest)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path / MANIFEST} is damaged ({error}): remove it and run extract again") from error
        return store

    def __len__(self) -> int:
        return self.size

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # each process maps the files itself

    def read(self, column: str, index: np.ndarray, view: int | np.ndarray = 0) -> np.ndarray:
        """Return the rows (n, *shape) of ``column`` for images ``index`` (n,) and ``view``, an int or (n,)."""
        index = np.asarray(index)
        view = np.broadcast_to(np.asarray(view), index.shape)
        self._require_column(column)
        if len(index) and not (index.min() >= 0 and index.max() < self.size):
            raise IndexError(f"index {index.min()} to {index.max()} in a store of {self.size} images")
        out = np.empty((len(index), *self.columns[column]["shape"]), self.columns[column]["dtype"])
        shards = index // self.shard_rows
        for number in np.unique(shards):
            inside = np.flatnonzero(shards == number)
            rows = index[inside] - number * self.shard_rows
            out[inside] = self._map(column, int(number))[rows, view[inside]]
            self._check_values(column, int(number), out[inside])
        return out

    def whole(self, column: str) -> np.ndarray:
        """Return all rows of ``column``, (N, V, *shape), in memory."""
        self._require_column(column)
        spec = self.columns[column]
        out = np.empty((self.size, self.views, *spec["shape"]), spec["dtype"])
        for shard in self._shards:
            out[shard.start : shard.stop] = self._map(column, shard.number)
            self._check_values(column, shard.number, out[shard.start : shard.stop])
        return out

    def verify(self) -> None:
        """Read every file; raise a UserError for the first that has changed or holds a value that is not finite."""
        with closing(self.examined()) as found:
            for _, line in found:
                require(line is None, str(line))

    def examined(self) -> Generator[tuple[Path, str | None], None, None]:
        """Read every file, and yield it with what is wrong with it: it has changed, or a value is not finite."""

        def line(file: tuple[Path, str, Shard]) -> str | None:
            path, column, shard = file
            spec, recorded = self.columns[column], self._files[shard.number][column]
            shape = (shard.stop - shard.start, self.views, *spec["shape"])
            wrong = size_fault(path, recorded["bytes"])
            wrong = wrong or fault(path, recorded["sha256"], spec["dtype"], shape, shard.start)
            return wrong and self._line(path, shard, wrong)

        files = list(self._columns_of_shards())
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # reading and hashing release the interpreter's lock
        try:
            found = tqdm(pool.map(line, files), f"checking {self.path}", len(files), delay=3, leave=False)
            yield from zip((path for path, _, _ in files), found)
        finally:
            pool.shutdown(cancel_futures=True)

    def _line(self, path: Path, shard: Shard, wrong: str | None) -> str:
        return f"{path} {wrong}: remove it with {shard.stem}.json and {MANIFEST}, and run extract again"

    def check(self, **expected: Any) -> None:
        """Raise a UserError unless the identity has these entries; the message gives both values."""
        for name, value in expected.items():
            if self.identity.get(name) != value:
                raise UserError(
                    f"the store at {self.path} does not fit: its {name} is {self.identity.get(name)!r}, not {value!r}; "
                    "extract one for these data and settings, or give the settings that it was made with"
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
            found = self._maps[column, number] = mapped(path)
        return found

    def _check_values(self, column: str, number: int, values: np.ndarray) -> None:
        """Raise a UserError where a value of an integer column is none of its ``count``: it indexes a table."""
        count = self.columns[column].get("count")
        if count is None or not values.size or (values.min() >= 0 and values.max() < count):
            return
        path = self._path(column, self._shards[number])
        raise UserError(f"{path} holds {values.min()} to {values.max()}, not 0 to {count - 1}: make the store again")

    def files(self) -> list[Path]:
        """Return the files that a copy of the store needs: manifest, identity and shards."""
        arrays = [path for path, _, _ in self._columns_of_shards()]
        records = [self.path / f"{shard.stem}.json" for shard in self._shards]
        described = [self.path / IDENTITY, *records]  # without them a copy can be read, but not continued
        return [self.path / MANIFEST, *(path for path in described if path.is_file()), *arrays]

    def _columns_of_shards(self) -> Iterator[tuple[Path, str, Shard]]:
        """Yield every file with its column and shard."""
        for shard, files in zip(self._shards, self._files):
            for column in files:
                yield self._path(column, shard), column, shard


def representation_store(path: Path) -> Store:
    """Open a store of representations, or raise UserError where it holds none."""
    store = Store.open(path)
    require("representation" in store.columns, f"{path} holds no representations: give a store of `rcg extract`")
    return store
