"""The layout of a store: shards, whose bounds depend on the data set's size and the rows of a shard only."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1
MANIFEST = "manifest.json"
IDENTITY = "identity.json"


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``stop`` (not included) of a store."""

    number: int
    start: int
    stop: int

    @property
    def stem(self) -> str:
        """The beginning of the names of its files."""
        return f"{self.number:06d}"


def cut(size: int, shard_rows: int) -> list[Shard]:
    """Cut ``size`` rows into shards of ``shard_rows``; the last one may be shorter."""
    starts = range(0, size, shard_rows)
    return [Shard(number, start, min(start + shard_rows, size)) for number, start in enumerate(starts)]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
