"""Write a store: shard by shard, each complete or absent, by any number of processes."""

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rcg_lightning.artifacts import check_format, file_sha256, read_state, replacing, write_json
from rcg_lightning.data.manifest import check_column_name
from rcg_lightning.data.shard_files import size_fault
from rcg_lightning.data.shards import FORMAT, IDENTITY, MANIFEST, REMEDY, Shard, cut
from rcg_lightning.errors import UserError
from rcg_lightning.integrity import sealed
from rcg_lightning.types import require

_FULL = (errno.ENOSPC, errno.EDQUOT)


class StoreWriter:
    """Writes the store of ``size`` images with ``views`` views each into ``folder``.

    Args:
        folder: created if needed; if it holds the beginning of the same store, that is continued.
        shard_rows: images in a shard; together with ``size`` it determines the bounds of the shards.
        identity: the store's origin, as plain data; see ``Store.identity``.
        floats: type of floating-point columns.

    Raises:
        UserError: the folder holds something else, or cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        views: int,
        shard_rows: int,
        identity: Mapping[str, Any],
        floats: Literal["float16", "float32"] = "float32",
    ) -> None:
        require(size > 0 and views > 0 and shard_rows > 0, "a store needs at least one image, view and row in a shard")
        self.folder = Path(folder).expanduser()
        self.views = views
        self.floats = floats
        self.shards = cut(size, shard_rows)
        spec = {"size": size, "views": views, "shard_rows": shard_rows, "floats": floats, "identity": dict(identity)}
        self._spec = json.loads(json.dumps({"format": FORMAT, **spec}))
        self._space_checked = False
        self._begin()

    def pending(self, rank: int = 0, world: int = 1) -> list[Shard]:
        """Return the missing shards of process ``rank`` of ``world``, which writes shards rank, rank + world, …"""
        return [shard for shard in self.shards[rank::world] if not self._written(shard)]

    def write(self, shard: Shard, columns: Mapping[str, np.ndarray]) -> None:
        """Write a shard's columns, each (rows, V, *shape); after a crash the shard is complete or absent.

        Raises:
            UserError: a column has the wrong number of rows or views, holds NaN or infinity, or the disk is full.
        """
        arrays = {name: self._checked(name, array, shard) for name, array in columns.items()}
        self._require_space(shard, sum(array.nbytes for array in arrays.values()))
        spec = {}
        for name, array in arrays.items():
            path = self.folder / f"{shard.stem}.{name}.npy"
            with self._reported(path, array.nbytes), replacing(path, shared=True) as draft:
                with open(draft, "wb") as file:
                    np.save(file, array, allow_pickle=False)
                checksum = file_sha256(draft)
            spec[name] = {
                "sha256": checksum,
                "bytes": path.stat().st_size,
                "dtype": str(array.dtype),
                "shape": list(array.shape[2:]),
            }
        self._write_json(self._done(shard), {"start": shard.start, "stop": shard.stop, "columns": spec})

    def finish(self, columns_meta: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Write the manifest, in one process, once every shard is written.

        ``columns_meta`` adds plain data to the spec of columns, such as ``count``, the number of values of an integer
        column.
        """
        missing = self.pending()
        if missing:
            raise UserError(f"{len(missing)} of {len(self.shards)} shards of {self.folder} are missing: extract again")
        done = [self._written(shard) for shard in self.shards]
        columns = {name: {"shape": spec["shape"], "dtype": spec["dtype"]} for name, spec in done[0].items()}
        for shard, files in zip(self.shards, done):
            found = {name: {"shape": spec["shape"], "dtype": spec["dtype"]} for name, spec in files.items()}
            require(found == columns, f"shard {shard.stem} of {self.folder} has columns {found}, the first {columns}")
        for name, meta in (columns_meta or {}).items():
            require(name in columns, f"a spec for column {name!r}, but {self.folder} has only {sorted(columns)}")
            columns[name] = {**meta, **columns[name]}
        shards = [
            {name: {"sha256": spec["sha256"], "bytes": spec["bytes"]} for name, spec in files.items()} for files in done
        ]
        self._write_json(self.folder / MANIFEST, sealed({**self._spec, "columns": columns, "shards": shards}))
        for draft in self.folder.glob(".*.draft"):  # left by processes that were killed
            draft.unlink(missing_ok=True)

    def _begin(self) -> None:
        """Claim the folder for this store, or check that it holds this store."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make a store at {self.folder}: {error.strerror}") from error
        path = self.folder / IDENTITY
        records = [record for record in self.folder.glob("[0-9]*.json") if record.stem.isdigit()]
        if not path.exists() or not records:  # an identity without shards is replaced
            others = [entry.name for entry in self.folder.iterdir() if not entry.name.startswith(".")]
            if others and not path.exists():
                raise UserError(f"{self.folder} holds {others[0]!r} but no store: give an empty or new folder")
            self._write_json(path, self._spec)
            return
        own = read_state(path, _is_identity)
        found = own or read_state(self.folder / MANIFEST, _is_identity)
        if found:
            self._require_same(found)
        else:  # whose shards these are is unknown
            for record in records:
                record.unlink(missing_ok=True)
        if not own:
            self._write_json(path, self._spec)

    def _require_same(self, found: Mapping[str, Any]) -> None:
        """Raise a UserError unless the identity found in the folder is that of this store."""
        check_format(found.get("format"), FORMAT, f"the store in {self.folder}", f"remove the folder and {REMEDY}")
        for name, expected in _flat(self._spec).items():
            if _flat(found).get(name) != expected:
                raise UserError(
                    f"{self.folder} holds a store whose {name} is {_flat(found).get(name)!r}, not {expected!r}: "
                    "give another folder, or the settings of that store"
                )

    def _checked(self, name: str, array: np.ndarray, shard: Shard) -> np.ndarray:
        expected = (shard.stop - shard.start, self.views)
        require(
            array.shape[:2] == expected,
            f"column {name!r} of shard {shard.stem} has shape {array.shape}, not {expected} …",
        )
        check_column_name(name, self.folder)
        require(array.dtype.kind in "fiu", f"column {name!r} of type {array.dtype} cannot be stored")
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                array = array.astype(self.floats)
            finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
            if not finite.all():
                row = shard.start + int(np.argmin(finite))
                raise UserError(f"{name!r} of image {row} is not finite in {self.floats}: check encoder and precision")
        return np.ascontiguousarray(array)

    def _require_space(self, shard: Shard, bytes_of_shard: int) -> None:
        """Check, before the first shard, that the disk has room for all missing shards."""
        if self._space_checked:
            return
        self._space_checked = True
        rows = sum(other.stop - other.start for other in self.pending())
        needed = bytes_of_shard * rows // (shard.stop - shard.start)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(_no_room(self.folder, needed, free))

    def _written(self, shard: Shard) -> dict[str, dict[str, Any]]:
        """Return the spec of the columns of a shard; empty where it is missing, damaged or cut short."""
        columns: dict[str, dict[str, Any]] = read_state(self._done(shard), _is_record).get("columns", {})
        whole = all(
            size_fault(self.folder / f"{shard.stem}.{name}.npy", spec["bytes"]) is None
            for name, spec in columns.items()
        )
        return columns if whole else {}

    def _done(self, shard: Shard) -> Path:
        return self.folder / f"{shard.stem}.json"

    def _write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        with self._reported(path, 0):
            write_json(path, content, shared=True)

    @contextmanager
    def _reported(self, path: Path, needed: int) -> Iterator[None]:
        """Turn an error while ``needed`` bytes are written to ``path`` into a UserError."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                free = shutil.disk_usage(self.folder).free
                raise UserError(_no_room(self.folder, needed, free)) from error
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error


class ShardCollector:
    """Collects the batches of an extraction into shards, and writes each shard once it is complete."""

    def __init__(self, writer: StoreWriter) -> None:
        self.writer = writer
        self._parts: dict[int, dict[str, np.ndarray]] = {}
        self._filled: dict[int, np.ndarray] = {}

    def add(self, index: np.ndarray, view: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        """Add rows (n, *shape) of every column for images ``index`` (n,) and views ``view`` (n,) of one shard."""
        shards = np.unique(index // self.writer.shards[0].stop)
        require(len(shards) == 1, "a batch of extraction spans several shards: use ImageDataModule.extract's loader")
        shard = self.writer.shards[int(shards[0])]
        rows = index - shard.start
        space = (shard.stop - shard.start, self.writer.views)
        part = self._parts.setdefault(shard.number, {})
        filled = self._filled.setdefault(shard.number, np.zeros(space, bool))
        for name, values in columns.items():
            part.setdefault(name, np.empty((*space, *values.shape[1:]), values.dtype))[rows, view] = values
        filled[rows, view] = True
        if filled.all():
            self.writer.write(shard, part)
            del self._parts[shard.number], self._filled[shard.number]


def _is_identity(content: Mapping[str, Any]) -> bool:
    return isinstance(content.get("identity"), dict)


def _is_record(content: Mapping[str, Any]) -> bool:
    """Whether this is the record of a shard, as ``StoreWriter.write`` writes it."""
    columns, keys = content.get("columns"), {"sha256", "bytes", "dtype", "shape"}
    return (
        bool(columns)
        and isinstance(columns, dict)
        and all(isinstance(spec, dict) and keys <= spec.keys() for spec in columns.values())
    )


def _flat(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in spec.items() if name != "identity"}, **spec.get("identity", {})}


def _no_room(folder: Path, needed: int, free: int) -> str:
    return (
        f"no room for the store at {folder}: {_size(needed)} needed, {_size(free)} free; make room or give "
        "another folder, then run extract again to continue"
    )


def _size(count: int) -> str:
    """Format bytes with 3 significant digits and a unit."""
    steps = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    unit, name = next(((unit, name) for unit, name in steps if count >= unit), (1, "bytes"))
    return f"{count / unit:.3g} {name}"
