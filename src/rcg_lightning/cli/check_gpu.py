"""`rcg check-gpu`: is this GPU computing right and fast, in eight minutes?"""

import os
import platform
import shlex
import sys
import tempfile
from datetime import date
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from rcg_lightning.arguments import PositiveFloat
from rcg_lightning.cli.main import quiet, run
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.gpu_check.parts import Supervisor, work_on
from rcg_lightning.gpu_check.results import LOG, TABLE, Results
from rcg_lightning.gpu_check.suite import TITLES, Settings, budgets, chosen, parts
from rcg_lightning.gpu_check.target import Target


def check_gpu(
    only: list[str] | None = None,
    out: Path = Path("runs/gpu"),
    rehearse: bool = False,
    minutes: PositiveFloat = 0.35,
    images: Path | None = None,
) -> None:
    """Check in eight minutes that everything here is right and fast on this machine's GPU; needs no network connection.

    The parts are environment, agreement, waits, resumption, throughput, cifar10 (with --images) and commands. Each has
    its own time; neither a failure nor a time-out of one stops the others. Every result is a line of checks.jsonl at
    once, and a row of checks.md; checks.log has what the checks themselves print. The exit code is 0 only if every
    check passed; goals of speed are shown and fail nothing.

    Args:
        only: names of the parts to run, separated by commas; all by default.
        out: folder to write.
        rehearse: run every line on the CPU at tiny sizes, to find mistakes before there is a GPU.
        minutes: length of each training on CIFAR-10.
        images: folder of CIFAR-10: cifar-10-batches-py, or train and test with one folder for each class.
    """
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings(rehearse, minutes, images, Path(scratch), out)
        seconds = budgets(chosen(only or [], settings), settings)
        target = Target.choose(rehearse)
        command = shlex.join(["rcg", "check-gpu", *sys.argv[2:]])
        versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}"
        driver = target.driver
        results = Results(out, [f"# {driver}", "", f"{date.today()}, {versions}: `{command}`"])
        echo(f"checks {driver}: {', '.join(TITLES[name] for name in seconds)}")
        echo(f"at most {sum(seconds.values()) / 60:.1f} minutes; results appear in {out}")
        Supervisor(seconds, partial(started, settings), results, echo).run()
    echo(f"\n{results.table()}\n\n{results.summary()}: {out / TABLE}")
    if not results.passed:
        raise SystemExit(1)


def started(settings: Settings, names: list[str]) -> tuple[BaseProcess, Connection]:
    """Start the process that runs the parts ``names``; return it and the end that its rows come from."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matmuls; read once, before the first
    pipe: tuple[Any, Any] = get_context("spawn").Pipe(duplex=False)
    receiver, sender = pipe
    process = get_context("spawn").Process(target=work, args=(settings, names, sender))
    process.start()
    sender.close()  # so that the end of the process is the end of its rows
    return process, receiver


def work(settings: Settings, names: list[str], sender: Connection) -> None:
    """Run parts in a process of their own, which prints to a file."""
    with open(settings.out / LOG, "a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    quiet()
    target = Target.choose(settings.rehearse)
    work_on(parts(names, settings, target, run), sender, target.usable)


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg check-gpu --out runs/gpu",
        "rcg check-gpu --only throughput",
        "rcg check-gpu --only cifar10 --images data --minutes 2",
        "rcg check-gpu --rehearse",
    ]
    call(check_gpu, name, argv, examples, names=False)
