"""Signals that end a command, and are never lost: SIGINT (the keyboard) and SIGTERM (kill, SLURM, torchrun).

Python raises KeyboardInterrupt wherever the program happens to be. In a finaliser, or in a library that ignores errors,
it would vanish and the run would go on. So it is remembered, and raised again before the next step. SIGTERM ends a
command in the same way, except that a running batch is finished first. So is a training step after SIGINT, to save a
checkpoint; a second SIGINT ends it at once.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_interrupted, _terminated, _in_loop = threading.Event(), threading.Event(), threading.Event()
_saves_first = threading.Event()  # a training that saves when it is interrupted
_owner = 0  # process that handles the signals; processes that it forks do not


class Terminated(BaseException):
    """SIGTERM asked this process to end."""

    @classmethod
    def of(cls, error: BaseException) -> "Terminated":
        """Return ``error``, raised after SIGTERM, as what it is: such as by the end of another process of the job."""
        if isinstance(error, cls):
            return error
        found = cls()
        found.__cause__ = error
        for note in getattr(error, "__notes__", []):
            found.add_note(note)
        return found


@contextmanager
def remembered() -> Iterator[None]:
    """Remember interruptions inside the block; forget earlier ones."""
    global _owner
    for event in (_interrupted, _terminated, _in_loop, _saves_first):
        event.clear()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    _owner = os.getpid()
    handlers = {signal.SIGINT: _remember, signal.SIGTERM: terminate}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    report, sys.unraisablehook = sys.unraisablehook, _report_unless_remembered
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _report_unless_remembered(unraisable: Any) -> None:
    """Python's report of an error in a finaliser, without interruptions, which are raised again later."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt | Terminated):
        sys.__unraisablehook__(unraisable)


def check() -> None:
    """Raise KeyboardInterrupt or Terminated if an interruption was remembered."""
    check_keyboard()
    if _terminated.is_set():
        raise Terminated


def check_keyboard() -> None:
    """Raise KeyboardInterrupt if an interruption from the keyboard was remembered."""
    if _interrupted.is_set():
        raise KeyboardInterrupt


def was_terminated() -> bool:
    """Whether SIGTERM has asked the running command to end."""
    return _terminated.is_set()


def begin_loop() -> None:
    """From now on SIGTERM is only remembered: the loop over batches ends itself after the current one."""
    _in_loop.set()


def end_loop() -> None:
    """From now on SIGTERM ends the command at once."""
    _in_loop.clear()


def terminate(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM: remember it, and raise Terminated outside of a loop over batches."""
    if os.getpid() != _owner:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _terminated.set()
    if not _in_loop.is_set():
        raise Terminated


def begin_training() -> None:
    """From now on the first SIGINT is only remembered: the training finishes its step, saves and ends itself."""
    _saves_first.set()


def end_training() -> None:
    """From now on SIGINT ends the command at once."""
    _saves_first.clear()


def was_interrupted() -> bool:
    """Whether the keyboard has interrupted the running command."""
    return _interrupted.is_set()


def _remember(number: int, frame: FrameType | None) -> None:
    again = _interrupted.is_set()
    _interrupted.set()
    if again or not _saves_first.is_set():
        raise KeyboardInterrupt


def end_with_main_process(every: float = 2, grace: float = 20) -> None:
    """In a further process of a job, end when the process that started it ends; else it would wait for that one.

    Args:
        every: seconds between two looks.
        grace: seconds for an orderly end. Who waits for the others of its job in a library handles no signal.
    """
    parent = os.getppid()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        print("rcg: the main process of this job has ended, so this one ends too", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os._exit(143)

    threading.Thread(target=watch, daemon=True, name="end-with-main-process").start()
