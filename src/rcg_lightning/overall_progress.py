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
        begun: ``time.monotonic()`` when this stage began.
        seconds: that this stage is expected to take.
        later: seconds that the stages after it are expected to take.
    """

    number: int
    count: int
    name: str
    started: float
    begun: float
    seconds: float
    later: float

    def line(self, done: float = 0, left: float = 1) -> str:
        """Describe where the command stands, when ``done`` of this stage took what it took, and ``left`` is left."""
        now = time.monotonic()
        mine = (now - self.begun) * left / done if done else max(self.seconds - (now - self.begun), 0)
        times = f"{clock(now - self.started)} elapsed, {clock(mine + self.later)} left"
        return f"[{self.number}/{self.count}] {self.name}, {times}"


_current: list[Overall] = []


@contextmanager
def stage_of(overall: Overall) -> Iterator[None]:
    """Show ``overall`` in the progress bars inside the block."""
    _current.append(overall)
    try:
        yield
    finally:
        _current.pop()


def overall() -> Overall | None:
    """Return where the running command stands; None where it runs no stages."""
    return _current[-1] if _current else None


def clock(seconds: float) -> str:
    """Return seconds as 4:05 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
