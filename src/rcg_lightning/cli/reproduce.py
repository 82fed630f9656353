"""`rcg reproduce`: published tables, and next to them what was measured here."""

import json
from collections.abc import Mapping
from pathlib import Path

from rcg_lightning.cli.parsing import call, echo
from rcg_lightning.config_files import read_config
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.published import NOT_YET, Table, find_row, find_table, tables
from rcg_lightning.evaluation.reproduction import Measured, comparison, lines, read_metrics, read_results

MAPPING = ("published.yaml", "published.json")  # in a folder of runs: which row which file of metrics is of


def reproduce(table: str | None = None, runs: Path | None = None, out: Path | None = None) -> None:
    """List published tables, or show one: published, measured, difference.

    A metric that was measured with another number of samples, extractor or reference is shown with a warning that says
    so. Metrics of a table's pipeline are found in its results.json.

    Args:
        table: name of a table; without it all are listed.
        runs: a YAML or JSON file of ``table/row: metrics.json`` (what `rcg evaluate --out` wrote), or a folder that
            holds it as published.yaml, or a pipeline's results.
        out: JSON file to write the comparison to.
    """
    if table is None:
        _overview()
        return
    chosen = find_table(table)
    found = lines(chosen, {} if runs is None else _measured(chosen, runs))
    echo(comparison(chosen, found))
    if runs is not None and not any(line.measured for line in found):
        echo(_how_to_run(chosen, runs))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps([line.plain() for line in found], indent=1))


def _overview() -> None:
    width = max(map(len, tables()))
    for name, table in tables().items():
        metrics = [(row, metric) for row in table.rows.values() for metric in row.metrics]
        here = sum(bool(table.pipeline) or row.trained_by(metric) != NOT_YET for row, metric in metrics)
        echo(f"{name:<{width}}  {here:>2} of {len(metrics):>2} metrics trainable here   {table.title}")
    echo("\n`rcg reproduce TABLE` shows one; --runs runs/ adds what was measured")


def _measured(table: Table, runs: Path) -> dict[str, list[Measured]]:
    """Return what was measured of a table's rows, by row."""
    if not runs.exists():
        raise UserError(f"no runs at {runs}: give a folder of runs, or a file of table/row: metrics.json")
    mapping = next((runs / name for name in MAPPING if (runs / name).is_file()), None) if runs.is_dir() else runs
    found: dict[str, list[Measured]] = {}
    if table.pipeline and runs.is_dir():
        places = [folder / "results.json" for folder in (runs, runs / table.pipeline)]
        results = next((place for place in places if place.is_file()), None)
        found |= read_results(results) if results else {}
    if mapping is not None:
        found |= _mapped(table, mapping)
    return found


def _mapped(table: Table, mapping: Path) -> dict[str, list[Measured]]:
    """Read the files that a mapping names for rows of a table; every row that it names must exist."""
    if table.pipeline and mapping.name == "results.json":
        return dict(read_results(mapping))
    content = read_config(mapping)
    if not isinstance(content, Mapping) or not all(isinstance(path, str) for path in content.values()):
        raise UserError(f"{mapping} should hold lines such as imagenet256/mage-b-rcg: metrics.json")
    rows = {find_row(name).id: mapping.parent / str(path) for name, path in content.items()}
    return {name: read_metrics(path) for name, path in rows.items() if name.startswith(f"{table.name}/")}


def _how_to_run(table: Table, runs: Path) -> str:
    if table.pipeline:
        return f"nothing measured in {runs} yet: run `rcg pipeline {table.pipeline}`"
    return f"nothing measured of this table in {runs} yet: name metrics in {runs / MAPPING[0]}, as table/row: file"


def main(name: str, argv: list[str]) -> None:
    """Parse the command line of `rcg reproduce`; the table may be given without --table."""
    if argv and not argv[0].startswith("-"):
        argv = ["--table", *argv]
    examples = ["rcg reproduce", "rcg reproduce depth", "rcg reproduce digits --runs runs"]
    call(reproduce, name, argv, examples, names=False)
