"""Where a command that runs several stages stands, for the progress bar of each of them. Nothing here imports torch."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Overall:
    """A stage of several.

    Attributes:
        number, count: this is stage ``number`` of ``count``.
        name: of the stage.
        started: ``time.monotonic()`` when the first stage began, minus what earlier runs took.
        seconds: that all stages are expected to take.
    """

    number: int
    count: int
    name: str
    started: float
    seconds: float

    def __str__(self) -> str:
        elapsed = time.monotonic() - self.started
        left = max(self.seconds - elapsed, 0)
        return f"[{self.number}/{self.count}] {self.name}, {clock(elapsed)} elapsed, {clock(left)} left"


_current: list[Overall] = []


@contextmanager
def stage_of(overall: Overall) -> Iterator[None]:
    """Show ``overall`` in the progress bars inside the block."""
    _current.append(overall)
    try:
        yield
    finally:
        _current.pop()


def overall() -> str | None:
    """Return where the running command stands; None where it runs no stages."""
    return str(_current[-1]) if _current else None


def clock(seconds: float) -> str:
    """Return seconds as 4:05 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
