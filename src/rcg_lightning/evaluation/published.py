"""Published metrics as data.

Nothing here imports torch, so a table is shown at once.
"""

import difflib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rcg_lightning.errors import UserError

NOT_YET = "not trainable here yet"
FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Protocol:
    """How a metric was measured.

    Attributes:
        name: of the protocol.
        description: in words.
        extractor: makes the features; None where the metric needs none.
        number: of samples.
        reference: split that the samples are compared with; None where it is a file of statistics.
        settings: other known settings, named as in the record of a measured metric: quantisation, resize, neighbours, …
    """

    name: str
    description: str
    extractor: str | None = None
    number: int | None = None
    reference: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One published model.

    Attributes:
        id: ``table/row``.
        name: in the published table.
        metrics: metric to published value.
        protocols: metric to the protocol by which it was measured.
        sources: where the metrics were read, in words.
        config: config that trains the model here; None where there is none yet.
        options: further options of the command that trains it.
        makes: the metrics that ``config`` can give.
        errors: metric to the published uncertainty.
        unconfirmed: metrics whose published value was not found in an available text; they are never compared.
    """

    id: str
    name: str
    metrics: dict[str, float]
    protocols: dict[str, Protocol]
    sources: tuple[str, ...]
    config: str | None = None
    options: str = ""
    makes: frozenset[str] = frozenset()
    errors: dict[str, float] = field(default_factory=dict)
    unconfirmed: frozenset[str] = frozenset()

    def trained_by(self, metric: str) -> str:
        """Return the words after `rcg` that train the model of a metric, or NOT_YET."""
        if self.config is None or metric not in self.makes:
            return NOT_YET
        return f"{self.config} {self.options}".strip()


@dataclass(frozen=True)
class Table:
    """One published table.

    Attributes:
        pipeline: name of the pipeline whose results fill the table; empty where rows are measured one by one.
        orientation: the metrics were measured on other data, for orientation only; differences are not computed.
    """

    name: str
    title: str
    rows: dict[str, Row]
    note: str = ""
    pipeline: str = ""
    orientation: bool = False


@cache
def tables() -> dict[str, Table]:
    """Return every published table by its name."""
    content = yaml.safe_load(FILE.read_text())
    protocols = {name: Protocol(name, **spec) for name, spec in content["protocols"].items()}
    return {name: _table(name, spec, protocols, content["sources"]) for name, spec in content["tables"].items()}


def overview() -> str:
    """Return one line per table: its name, the number of metrics that can be trained here, its title."""
    width = max(map(len, tables()))
    lines = []
    for name, table in tables().items():
        metrics = [(row, metric) for row in table.rows.values() for metric in row.metrics]
        trainable = sum(bool(table.pipeline) or row.trained_by(metric) != NOT_YET for row, metric in metrics)
        lines.append(f"{name:<{width}}  {trainable:>2} of {len(metrics):>2} metrics trainable here   {table.title}")
    return "\n".join(lines)


def find_table(name: str) -> Table:
    """Return a published table, or raise a UserError with the nearest names."""
    known = tables()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)
        raise UserError(f"no published table {name}: there are {', '.join(near)}")
    return known[name]


def find_row(row_id: str) -> Row:
    """Return a published row by its ``table/row``, or raise a UserError with the nearest ids."""
    known = {row.id: row for table in tables().values() for row in table.rows.values()}
    if row_id not in known:
        near = difflib.get_close_matches(row_id, known, n=3)
        hint = (
            f"did you mean {', '.join(near)}?" if near else "rows are named table/row, as `rcg reproduce TABLE` shows"
        )
        raise UserError(f"no published row {row_id}: {hint}")
    return known[row_id]


def _table(name: str, spec: dict[str, Any], protocols: dict[str, Protocol], sources: dict[str, str]) -> Table:
    by_metric, usual = spec.get("protocols", {}), spec["protocol"]
    rows = {}
    for key, row in spec["rows"].items():
        metrics = row["metrics"]
        used = {metric: protocols[by_metric.get(metric, row.get("protocol", usual))] for metric in metrics}
        rows[key] = Row(
            f"{name}/{key}",
            row["name"],
            {metric: float(value) for metric, value in metrics.items()},
            used,
            tuple(sources[source] for source in row["source"]),
            row["config"],
            row.get("options", ""),
            frozenset(row.get("makes", metrics)),
            row.get("errors", {}),
            frozenset(row.get("unconfirmed", ())),
        )
    more = {key: spec[key] for key in ("note", "pipeline", "orientation") if key in spec}
    return Table(name, spec["title"], rows, **more)
