"""A case: one fault, what should follow, and what did; each runs in a process of its own."""

import contextlib
import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .process import Ended


@dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        kind: of the fault, a row of the table.
        name: within its kind.
        expected: in words.
        check: injects the fault in an empty folder; raises ``Deviation`` where something else follows.
        needs: names of the undisturbed runs that it reads.
    """

    kind: str
    name: str
    expected: str
    check: Callable[[Path], None]
    needs: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.kind}/{self.name}"


class Deviation(Exception):
    """What was seen instead of what a case expects, in one line."""


@dataclass(frozen=True)
class Outcome:
    """What a case showed: ``seen`` is empty where it is as expected."""

    kind: str
    name: str
    expected: str
    seen: str
    seconds: float


def expect(condition: bool, seen: str) -> None:
    """Raise a Deviation with what was seen unless the condition holds."""
    if not condition:
        raise Deviation(" ".join(seen.split())[:600])


def expect_code(ended: Ended, code: int, what: str) -> None:
    """Raise a Deviation unless a command ended with the exit code."""
    expect(ended.code == code, f"{what} ended with rc {ended.code}: {last_lines(ended.output)}")


def expect_one_line(ended: Ended, mentions: Sequence[str] = ()) -> None:
    """Raise a Deviation unless a command ended with rc 2 and one line, which holds one of the words."""
    expect_code(ended, 2, "the command")
    lines = re.findall(r"\brcg [\w-]+: .*", ended.output)
    expect(len(lines) == 1 and "Traceback" not in ended.output, f"not one line: {ended.output[-300:]}")
    expect(not mentions or any(word in lines[0] for word in mentions), f"the line names no file or option: {lines[0]}")


def last_lines(output: str) -> str:
    """Return the end of a command's output, in one line."""
    return " | ".join(line.strip() for line in output.strip().splitlines()[-3:])[-400:]


def share_of(cases: Sequence[Case], share: float) -> list[Case]:
    """Return a fixed share of the cases of each kind, evenly spaced, at least one."""
    chosen: list[Case] = []
    for kind in dict.fromkeys(case.kind for case in cases):
        own = [case for case in cases if case.kind == kind]
        picked = [case for i, case in enumerate(own) if int((i + 1) * share) > int(i * share)]
        chosen += picked or own[:1]
    return chosen


def run_cases(cases: Sequence[Case], folder: Path, jobs: int) -> Iterator[Outcome]:
    """Run cases, ``jobs`` at a time, and yield what they showed, in the order in which they end."""
    waiting, running = list(cases), dict[int, tuple[Case, Path, float]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            case = waiting.pop(0)
            own = folder / re.sub(r"\W+", "-", case.title)[:80]
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir(parents=True)
            running[_fork(case, own)] = case, own, time.monotonic()
        pid, _ = os.wait()
        case, own, start = running.pop(pid)
        seen = "the case itself died"
        with contextlib.suppress(OSError, ValueError):
            seen = json.loads((own / "seen.json").read_text())
        if not seen:
            shutil.rmtree(own, ignore_errors=True)
        yield Outcome(case.kind, case.name, case.expected, seen, round(time.monotonic() - start, 1))


def _fork(case: Case, folder: Path) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            case.check(folder)
            seen = ""
        except Deviation as deviation:
            seen = str(deviation)
        except BaseException:
            seen = "the case itself failed: " + " | ".join(traceback.format_exc().splitlines()[-4:])
        (folder / "seen.json").write_text(json.dumps(seen))
        os._exit(0)
    return pid


def as_plain(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """Return outcomes as plain data."""
    return [asdict(outcome) for outcome in outcomes]
