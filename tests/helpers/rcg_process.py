"""Run `rcg` in processes that can be killed; they fork from a server that has imported torch."""

import multiprocessing
import os
import socket
import sys
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["rcg_lightning.class_modules", "lightning.pytorch.cli", "sklearn.datasets"])


def start(argv, folder: Path, environment=None):
    """Start `rcg` with ``argv`` in ``folder`` and return the process; its output goes to ``folder/output.txt``."""
    process = _CONTEXT.Process(target=_run, args=([str(word) for word in argv], folder, environment or {}))
    process.start()
    return process


def pair(argv, folder: Path, option="--devices"):
    """Run `rcg` as two processes of one job, as torchrun starts them; return both exit codes.

    ``option`` sets the number of processes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    job["TORCHELASTIC_RUN_ID"] = "test"
    argv = [*argv, option, 2, *(["--accelerator", "cpu"] if option == "--devices" else [])]
    processes = [start(argv, folder, {**job, "RANK": rank, "LOCAL_RANK": rank}) for rank in range(2)]
    return [finish(process) for process in processes]


def finish(process, seconds=120):
    """Wait for a process and return its exit code."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"rcg did not finish within {seconds} seconds")
    return process.exitcode


def _run(argv, folder, environment):
    os.environ.update({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"})
    os.environ.update({name: str(value) for name, value in environment.items()})
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import torch

    torch.set_num_threads(1)
    from rcg_lightning.cli.main import main

    sys.exit(main(argv))
