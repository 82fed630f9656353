"""Parts of `rcg check-gpu`, each in its own time: neither a failure nor a time-out of one stops the others."""

import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from rcg_lightning.errors import one_line
from rcg_lightning.gpu_check.results import FAILED, LOG, UNREACHED, Finding, Results, Row

GRACE = 30.0  # seconds after its budget until the process of a part is killed: a kernel that hangs ignores signals
START = 180.0  # seconds until a new process must have begun its first part


@dataclass(frozen=True)
class Trial:
    """One check: a function that returns its findings.

    Attributes:
        name: of the check, where it fails without findings.
        run: the check.
        required: whether the run has failed where there is no time for it.
    """

    name: str
    run: Callable[[], Iterable[Finding]]
    required: bool = True


@dataclass(frozen=True)
class Part:
    """Some checks with a common budget.

    Attributes:
        name: for ``--only``.
        title: one line on what it checks.
        seconds: its budget.
        trials: prepares the checks, in order of worth.
    """

    name: str
    title: str
    seconds: float
    trials: Callable[[], Iterable[Trial]]


class TimeUp(BaseException):
    """The budget of a part is spent. Libraries that ignore errors do not ignore it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeUp`` in the block after some seconds, in the main thread, on a system that has such a signal."""

    def end(*_: Any) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_part(part: Part, report: Callable[[Row], None], usable: Callable[[], bool]) -> bool:
    """Run the checks of a part until its time is spent, and report each; return whether the device is still usable."""
    deadline = time.monotonic() + part.seconds
    for trial in _prepared(part, deadline):
        start = time.monotonic()
        if start >= deadline:
            if trial.required:
                report(
                    Row(
                        part.name, trial.name, "", "", UNREACHED, 0.0, f"the {part.seconds:.0f} s of the part are spent"
                    )
                )
            continue
        for found in _outcome(trial, deadline - start):
            report(Row.of(part.name, found, time.monotonic() - start))
        if not usable():
            report(Row(part.name, "device", "", "", FAILED, 0.0, "the device is unusable after this check"))
            return False
    return True


def _prepared(part: Part, deadline: float) -> Sequence[Trial]:
    """Return the checks of a part; one that fails if their preparation does."""
    found: list[Trial] = []

    def prepare() -> Iterable[Finding]:
        found.extend(part.trials())
        return []

    failures = _outcome(Trial("preparation", prepare), deadline - time.monotonic())
    return [Trial("preparation", lambda: failures)] if failures else found


def _outcome(trial: Trial, seconds: float) -> list[Finding]:
    """Return the findings of a check, or its failure as one."""
    try:
        with time_limit(seconds):
            return list(trial.run())
    except TimeUp:
        late = None if not trial.required else False
        return [Finding(trial.name, "", passed=late, note="stopped: the time of the part is spent")]
    except Exception as error:
        return [
            Finding(
                trial.name, "", passed=False, note=f"{type(error).__name__}: {one_line(error, 300)} ({line_of(error)})"
            )
        ]


def line_of(error: BaseException) -> str:
    """Return the last line of this package that an error passed through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "rcg_lightning" in frame.filename]
    return f"{frames[-1].filename.rpartition('rcg_lightning/')[2]}:{frames[-1].lineno}" if frames else "no line of rcg"


def work_on(parts: Iterable[Part], connection: Connection, usable: Callable[[], bool]) -> None:
    """Run parts in this process, and send its rows: (name, None) at the start of a part, (name, row), then None."""
    for part in parts:
        connection.send((part.name, None))
        name = part.name
        if not run_part(part, lambda row, name=name: connection.send((name, row)), usable):
            return
    connection.send(None)


class Supervisor:
    """Runs parts in a process that is replaced where it dies, hangs or loses the device.

    Args:
        budgets: seconds of each part, by its name, in order.
        start: starts the process for the parts of these names; returns it with the end that its rows come from.
        results: where the rows go.
        say: shows a line to the user.
    """

    def __init__(
        self,
        budgets: dict[str, float],
        start: Callable[[list[str]], tuple[BaseProcess, Connection]],
        results: Results,
        say: Callable[[str], None],
        grace: float = GRACE,
    ) -> None:
        self.budgets, self.start, self.results, self.say, self.grace = budgets, start, results, say, grace

    def run(self) -> None:
        """Run all parts."""
        todo = list(self.budgets)
        while todo:
            process, connection = self.start(todo)
            wait = 1.0
            try:
                current = self._follow(connection, todo)
                wait = self.grace if current is None else wait
            finally:  # an interruption too leaves nothing on the device
                process.join(wait)
                if process.is_alive():
                    process.kill()
                    process.join()
            todo = [] if current is None else todo[todo.index(current) + 1 :]
            self.results.write_table()

    def _follow(self, connection: Connection, todo: list[str]) -> str | None:
        """Collect rows until the process is done, and return None; else the part in which it ended or hung."""
        current, deadline = "", time.monotonic() + START
        while connection.poll(max(deadline - time.monotonic(), 0)):
            try:
                message = connection.recv()
            except EOFError:
                return self._lost(current or todo[0], f"the process ended, see {LOG}")
            if message is None:
                self.results.write_table()
                return None
            name, row = message
            if row is None:
                self.results.write_table()
                current, deadline = name, time.monotonic() + self.budgets[name] + self.grace
                self.say(f"{name} (at most {self.budgets[name]:.0f} s)")
            else:
                self.results.add(row)
                self.say(f"  {row.verdict}: {row.name} {row.value} {row.note}".rstrip())
        return self._lost(current or todo[0], f"the process hung and was ended, see {LOG}")

    def _lost(self, part: str, reason: str) -> str:
        last = self.results.rows[-1] if self.results.rows else None
        explained = last is not None and last.part == part and last.name == "device"
        if not explained:
            self.results.add(Row(part, "process", "", "", FAILED, 0.0, reason))
            self.say(f"  failed: {reason}")
        return part
