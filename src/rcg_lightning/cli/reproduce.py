"""`rcg reproduce`: published tables next to the metrics measured here."""

from pathlib import Path

from rcg_lightning.artifacts import write_json
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.evaluation.published import find_table, overview
from rcg_lightning.evaluation.reproduction import MAPPING, comparison, lines, measured_of


def reproduce(table: str | None = None, runs: Path | None = None, out: Path | None = None) -> None:
    """List published tables, or show one: published, measured, difference.

    A metric measured with another number of samples, extractor or reference is shown with a warning. Metrics of a
    table's pipeline are read from its results.json.

    Args:
        table: name of a table; without it all tables are listed.
        runs: a YAML or JSON file of ``table/row: metrics.json`` (files that `rcg evaluate --out` wrote), a folder that
            holds it as published.yaml, or a pipeline's results.
        out: JSON file for the comparison.
    """
    if table is None:
        echo(overview())
        echo("\n`rcg reproduce TABLE` shows one table; --runs runs/ adds the metrics measured here")
        return
    chosen = find_table(table)
    found = lines(chosen, {} if runs is None else measured_of(chosen, runs))
    echo(comparison(chosen, found))
    if runs is not None and not any(line.measured for line in found):
        how = f"name metrics in {runs / MAPPING[0]}, as table/row: file"
        if chosen.pipeline:
            how = f"run `rcg pipeline {chosen.pipeline}`"
        echo(f"{runs} holds no metrics of this table yet: {how}")
    if out is not None:
        write_json(out, [line.to_dict() for line in found])


def main(name: str, argv: list[str]) -> None:
    """Parse the command line of `rcg reproduce`; the table needs no --table before it."""
    if argv and not argv[0].startswith("-"):
        argv = ["--table", *argv]
    examples = ["rcg reproduce", "rcg reproduce depth", "rcg reproduce digits --runs runs"]
    call(reproduce, name, argv, examples, names=False)
