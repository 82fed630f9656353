"""Run `rcg` in children forked from this process, which has imported torch; measure, signal and kill them."""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

SECONDS = 120  # after which a child counts as hanging
SPARE = 3 * 2**30  # bytes of address space that a child may take: a bomb must not reach the machine


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: exit code; negative for a signal.
        output: stdout and stderr.
        cpu: seconds of CPU time.
        peak: largest resident memory, in bytes.
    """

    code: int
    output: str
    cpu: float
    peak: int


class Running:
    """A child process; its output goes to ``output``."""

    def __init__(self, pid: int, output: Path) -> None:
        self.pid, self.output = pid, output
        self._clock = (~pid << 3) | 2  # Linux: the CPU clock of another process
        self._status: tuple[int, resource.struct_rusage] | None = None

    def poll(self) -> bool:
        """Whether the child has ended."""
        if self._status is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status), usage
        return self._status is not None

    def cpu(self) -> float:
        """CPU seconds so far: unlike the time, these do not depend on how busy the machine is."""
        return time.clock_gettime(self._clock)

    def signal_at(self, cpu: float, number: int) -> bool:
        """Send a signal once the child has used ``cpu`` CPU seconds; return False if it ended before."""
        while not self.poll():
            if self.cpu() >= cpu:
                os.kill(self.pid, number)
                return True
            time.sleep(0.001)
        return False

    def wait(self, seconds: float = SECONDS) -> Ended:
        """Wait for the end; a child that hangs is killed, and its code is -9."""
        until = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                until = float("inf")
            time.sleep(0.005)
        assert self._status is not None
        code, usage = self._status
        text = self.output.read_text(errors="replace")
        return Ended(code, text, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)

    def terminate(self, seconds: float) -> Ended:
        """Send SIGTERM, and SIGKILL after ``seconds``, as torchrun and SLURM do."""
        if not self.poll():
            os.kill(self.pid, signal.SIGTERM)
        return self.wait(seconds)


def start(
    argv: Sequence[object],
    folder: Path,
    before: Callable[[], Any] | None = None,
    environment: Mapping[str, object] | None = None,
) -> Running:
    """Start `rcg` with ``argv`` in ``folder``; ``before`` runs in the child first, to inject a fault."""
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"output-{time.monotonic_ns()}.txt"
    output.touch()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os._exit(_child([str(word) for word in argv], folder, output, before, environment or {}))
    return Running(pid, output)


def rcg(argv: Sequence[object], folder: Path, before: Callable[[], Any] | None = None) -> Ended:
    """Run `rcg` to its end."""
    return start(argv, folder, before).wait()


def _child(
    argv: list[str], folder: Path, output: Path, before: Callable[[], Any] | None, environment: Mapping[str, object]
) -> int:
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for processes in the background
        os.environ.update({name: str(value) for name, value in environment.items()})
        os.chdir(folder)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + SPARE, size + SPARE))
        if before is not None:
            before()
        from rcg_lightning.cli.main import main

        return main(argv)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def preload() -> None:
    """Import all that a command needs; nothing here may start a thread, which a forked child would lack."""
    os.environ.update({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "MPLBACKEND": "agg"})
    import torch

    torch.set_num_threads(1)
    from PIL import Image

    Image.init()
    from rcg_lightning.cli.main import COMMANDS

    for place, _ in COMMANDS.values():
        import_module(place.partition(":")[0])
    for name in ("rcg_lightning.class_modules", "sklearn.datasets", "tensorboard", "lightning.pytorch.cli"):
        import_module(name)
