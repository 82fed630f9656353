"""Metrics measured here, read from files, next to the published ones."""

import json
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcg_lightning.config_files import read_config
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.published import Protocol, Row, Table, find_row
from rcg_lightning.evaluation.records import differences

MAPPING = ("published.yaml", "published.json")  # in a folder of runs: maps each row to its file of metrics
# published metric -> its names here
MEASURED_AS = {
    "fid": ("fid", "fd"),
    "log_likelihood": ("log_likelihood", "parzen", "parzen_log_likelihood"),
    "linear_probe": ("linear_probe", "probe", "linear_accuracy"),
}
PER_CENT = frozenset({"linear_accuracy"})  # published in per cent, measured as a fraction
_NAME = re.compile(r"(?P<kind>\w+)/(?:(?P<extractor>[a-z][\w-]*?)_)?(?P<size>\d+k?)(?:_(?P<reference>\w+))?$")
_WITHOUT_REFERENCE = frozenset({"is", "uniformity"})
_EVALUATION = frozenset({"val", "eval", "test"})  # names of the images on which nothing was trained


@dataclass(frozen=True)
class Measured:
    """A metric measured here, over one or more seeds.

    Attributes:
        values: one for each seed.
        metric: its short name here.
        extractor, number, reference, protocol: how it was measured, as far as the file describes it.
        path: the file.
        record: the whole description in the file.
    """

    values: tuple[float, ...]
    metric: str
    extractor: str | None
    number: int | None
    reference: str | None
    protocol: str | None
    path: Path
    record: Mapping[str, Any] | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    def differs(self, protocol: Protocol) -> list[str]:
        """Describe how this measurement differs from ``protocol``."""
        found = []
        if protocol.number is not None and self.number != protocol.number:
            found.append(f"{self.number or 'an unknown number of'} samples, not {protocol.number}")
        if protocol.extractor is not None and self.extractor != protocol.extractor:
            found.append(f"features of {self.extractor or 'an unnamed extractor'}, not {protocol.extractor}")
        named = self.protocol not in (None, "own")
        if named and self.protocol != protocol.name:
            found.append(f"protocol {self.protocol}, not {protocol.name}")
        compared = not named and self.metric not in _WITHOUT_REFERENCE
        if compared and _split(self.reference) != (_split(protocol.reference) or "statistics"):
            found.append(f"reference {self.reference or 'unnamed'}, not {protocol.reference or protocol.description}")
        if self.record is not None:
            found += differences(self.record, protocol.settings)
        if not found and self.protocol is None:
            found.append(f"its file names no protocol, so it may not be {protocol.name}")
        return found


@dataclass(frozen=True)
class Line:
    """One metric of a table, published and measured."""

    row: Row
    metric: str
    measured: Measured | None
    orientation: bool = False

    @property
    def difference(self) -> float | None:
        """Measured minus published; None where either is missing, unconfirmed, or of other data."""
        if self.measured is None or self.metric in self.row.unconfirmed or self.orientation:
            return None
        return self.measured.mean - self.row.metrics[self.metric]

    @property
    def warnings(self) -> list[str]:
        """How the measured metric departs from the published protocol."""
        return [] if self.measured is None else self.measured.differs(self.row.protocols[self.metric])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for a JSON file."""
        measured = None if self.measured is None else {"values": list(self.measured.values), "n": self.measured.number}
        return {
            "row": self.row.id,
            "metric": self.metric,
            "published": self.row.metrics[self.metric],
            "confirmed": self.metric not in self.row.unconfirmed,
            "protocol": self.row.protocols[self.metric].name,
            "sources": list(self.row.sources),
            "measured": measured,
            "difference": self.difference,
            "warnings": self.warnings,
            "trained_by": self.row.trained_by(self.metric),
        }


def read_metrics(path: Path) -> list[Measured]:
    """Read the metrics of a JSON file: full names as `rcg evaluate` writes them, or short ones under ``metrics``.

    Raises:
        UserError: the file is missing or holds no metrics.
    """
    content = _read(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} should hold metrics by name, as `rcg evaluate --out` writes them")
    metrics = content["metrics"] if isinstance(content.get("metrics"), Mapping) else content
    found = [
        _measured(name, (float(value),), content, path)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("n", "number", "seed")
    ]
    if not found:
        raise UserError(f"{path} holds no metrics: give a file that `rcg evaluate --out` wrote")
    return found


def read_results(path: Path) -> dict[str, list[Measured]]:
    """Read the metrics of a pipeline's results.json by condition, with all seeds together."""
    content = _read(path)
    if not isinstance(content, list) or not all(isinstance(row, dict) and "metrics" in row for row in content):
        raise UserError(f"{path} should be the results.json of a pipeline: a list of rows with condition and metrics")
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in content:
        groups.setdefault(str(row.get("condition")), []).append(row)
    found: dict[str, list[Measured]] = {}
    for condition, rows in groups.items():
        names = [name for name in rows[0]["metrics"] if all(name in row["metrics"] for row in rows)]
        values = {name: tuple(float(row["metrics"][name]) for row in rows) for name in names}
        found[condition] = [_measured(name, values[name], rows[0], path) for name in names]
    return found


def measured_of(table: Table, runs: Path) -> dict[str, list[Measured]]:
    """Return the metrics of a table's rows, by row.

    Args:
        runs: a file of ``table/row: metrics.json``, a folder that holds it (``MAPPING``), or a pipeline's results.

    Raises:
        UserError: there are no runs, a file is damaged, or a row does not exist.
    """
    if not runs.exists():
        raise UserError(f"no runs at {runs}: give a folder of runs, or a file of table/row: metrics.json")
    mapping = next((runs / name for name in MAPPING if (runs / name).is_file()), None) if runs.is_dir() else runs
    found: dict[str, list[Measured]] = {}
    if table.pipeline and runs.is_dir():
        paths = [folder / "results.json" for folder in (runs, runs / table.pipeline)]
        results = next((path for path in paths if path.is_file()), None)
        found |= read_results(results) if results else {}
    if mapping is not None:
        found |= _mapped(table, mapping)
    return found


def _mapped(table: Table, mapping: Path) -> dict[str, list[Measured]]:
    """Read the files that a mapping gives for the rows of a table; every row that it names must exist."""
    if table.pipeline and mapping.name == "results.json":
        return dict(read_results(mapping))
    content = read_config(mapping)
    if not isinstance(content, Mapping) or not all(isinstance(path, str) for path in content.values()):
        raise UserError(f"{mapping} should hold lines such as imagenet256/mage-b-rcg: metrics.json")
    rows = {find_row(name).id: mapping.parent / str(path) for name, path in content.items()}
    return {name: read_metrics(path) for name, path in rows.items() if name.startswith(f"{table.name}/")}


def lines(table: Table, measured: Mapping[str, Iterable[Measured]]) -> list[Line]:
    """Return every published metric of a table with its measurement, found by the row's key or id."""
    found = []
    for key, row in table.rows.items():
        candidates = list(measured.get(row.id, measured.get(key, ())))
        for metric in row.metrics:
            found.append(Line(row, metric, _closest(candidates, metric, row.protocols[metric]), table.orientation))
    return found


def comparison(table: Table, found: list[Line]) -> str:
    """Return published and measured metrics as a Markdown table; notes below name every difference in protocol."""
    heads = ["row", "metric", "published", "measured", "difference", "source", "trained by"]
    text = [f"## {table.name}: {table.title}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    notes: dict[str, list[str]] = {}
    for line in found:
        marks = ""
        if line.warnings and not line.orientation:
            marks = " †"
            notes.setdefault("; ".join(line.warnings), []).append(f"{line.row.id} {line.metric}")
        sources = ", ".join(name.split(" (")[0].removeprefix("the text of ") for name in line.row.sources)
        trained = f"pipeline {table.pipeline}" if table.pipeline else line.row.trained_by(line.metric)
        key = line.row.id.partition("/")[2]
        named = key if line.row.name.startswith(key) else f"{key}: {line.row.name}"
        cells = [named, line.metric, _published(line), _shown(line), _difference(line) + marks, sources, trained]
        text.append(f"| {' | '.join(cells)} |")
    protocols = {p.name: p for line in found for p in line.row.protocols.values()}
    text += ["", *(f"{name}: {protocol.description}" for name, protocol in protocols.items())]
    text += [table.note] if table.note else []
    if table.orientation and any(line.measured for line in found):
        text.append(f"warning: another protocol: {'; '.join(_orientation(found))}")
    text += [f"† warning: {', '.join(names)}: {found}" for found, names in notes.items()]
    return "\n".join(text) + "\n"


def _orientation(found: list[Line]) -> list[str]:
    """All differences in protocol of the measured metrics, for a table that serves orientation only."""
    return list(dict.fromkeys(found for line in found for found in line.warnings))


def _published(line: Line) -> str:
    error = line.row.errors.get(line.metric)
    text = f"{line.row.metrics[line.metric]:g}" + (f" ± {error:g}" if error else "")
    return f"{text} (unconfirmed)" if line.metric in line.row.unconfirmed else text


def _shown(line: Line) -> str:
    if line.measured is None:
        return "–"
    spread = f" ± {statistics.stdev(line.measured.values):.3g}" if len(line.measured.values) > 1 else ""
    how = [f"n {line.measured.number}"] if line.measured.number else []
    how += [f"to {line.measured.reference}"] if line.measured.reference else []
    return f"{line.measured.mean:.4g}{spread}" + (f" ({', '.join(how)})" if how else "")


def _difference(line: Line) -> str:
    if line.difference is not None:
        return f"{line.difference:+.3g}"
    return "–" if line.measured is None else "not comparable"


def _closest(found: list[Measured], metric: str, protocol: Protocol) -> Measured | None:
    """Choose, among the measurements of a metric, the one whose protocol is closest to the published one."""
    same = [one for one in found if one.metric in MEASURED_AS.get(metric, (metric,))]
    wanted = _split(protocol.reference)
    return min(same, key=lambda one: (_split(one.reference) != wanted, len(one.differs(protocol))), default=None)


def _measured(name: str, values: tuple[float, ...], about: Mapping[str, Any], path: Path) -> Measured:
    """Parse a metric's name, short or full, and the settings next to it in its file."""
    protocol = about.get("protocol")
    record = protocol if isinstance(protocol, Mapping) else None
    protocol = protocol if record is None else record.get("name")
    extractor = about.get("extractor")
    number = next((about[key] for key in ("n", "number") if isinstance(about.get(key), int)), None)
    full = _NAME.match(name)
    kind, reference = (full["kind"], full["reference"]) if full else (name, None)
    if full:
        size = full["size"]
        number = int(size[:-1]) * 1000 if size.endswith("k") else int(size)
        extractor = full["extractor"] or extractor
    if reference is None and kind.startswith("fd"):
        reference = "eval" if kind.endswith("_eval") else "train"
    kind = kind.removesuffix("_eval")
    values = tuple(100 * value for value in values) if kind in PER_CENT else values
    named = extractor if isinstance(extractor, str) else None
    return Measured(values, kind, named, number, reference, str(protocol) if protocol else None, path, record)


def _split(reference: str | None) -> str | None:
    return "eval" if reference in _EVALUATION else reference


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a JSON file of metrics: {error}") from error
