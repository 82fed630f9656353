"""The layout of a store: shards, whose bounds depend on the data set's size and the rows of a shard only."""

from dataclasses import dataclass

FORMAT = 2
REMEDY = "make it again with the command that made it, such as rcg extract"
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
