"""What `rcg check-gpu` finds: one JSON line for each check as soon as it is known, and a Markdown table."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rcg_lightning.artifacts import write_text
from rcg_lightning.bench.report import markdown

LINES, TABLE, LOG = "checks.jsonl", "checks.md", "checks.log"  # the log has what the checks themselves print
PASSED, FAILED, MEASURED, UNREACHED = "passed", "failed", "measured", "not reached"
Verdict = Literal["passed", "failed", "measured", "not reached"]


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        name: of the result.
        value: what was found, with its unit.
        limit: the tolerance or goal that it is held against; empty for none.
        passed: whether it is within its tolerance; None where it is only measured.
        note: what a reader needs to know of it, such as the error of a failure.
    """

    name: str
    value: str
    limit: str = ""
    passed: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A finding with the part it belongs to, its verdict and the seconds that its check took."""

    part: str
    name: str
    value: str
    limit: str
    verdict: Verdict
    seconds: float
    note: str = ""

    @classmethod
    def of(cls, part: str, found: Finding, seconds: float) -> "Row":
        """Give a finding its verdict."""
        verdict: Verdict = MEASURED if found.passed is None else PASSED if found.passed else FAILED
        return cls(part, found.name, found.value, found.limit, verdict, round(seconds, 2), found.note)


class Results:
    """Writes the rows to ``checks.jsonl`` one by one, and ``checks.md`` after each part.

    Args:
        folder: to write to; files of an earlier run are replaced.
        head: lines above the table, such as the command.
    """

    def __init__(self, folder: Path, head: Iterable[str]) -> None:
        self.folder, self.head = folder, list(head)
        self.rows: list[Row] = []
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LINES).write_text("")

    def add(self, row: Row) -> None:
        """Add a row, and append it to the file."""
        self.rows.append(row)
        with open(self.folder / LINES, "a") as file:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")

    def write_table(self) -> None:
        """Write the Markdown file with all rows so far."""
        write_text(self.folder / TABLE, "\n".join([*self.head, "", self.table(), "", self.summary(), ""]))

    def table(self) -> str:
        """Return all rows as a Markdown table."""
        head = ["part", "check", "value", "tolerance or goal", "verdict", "s", "note"]
        cells = [
            [row.part, row.name, row.value, row.limit, row.verdict, f"{row.seconds:.1f}", row.note] for row in self.rows
        ]
        return markdown([head, *([cell.replace("|", "/") for cell in line] for line in cells)])

    def summary(self) -> str:
        """Return how many checks have which verdict, in one line."""
        counts = {
            verdict: sum(row.verdict == verdict for row in self.rows)
            for verdict in (PASSED, FAILED, MEASURED, UNREACHED)
        }
        return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "no checks"

    @property
    def passed(self) -> bool:
        """Whether there are checks and none has failed or was not reached."""
        return bool(self.rows) and not any(row.verdict in (FAILED, UNREACHED) for row in self.rows)
