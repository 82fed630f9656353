"""SIGTERM and the keyboard: remembered, raised at once outside of loops, and the end of a main process noticed."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rcg_lightning import interruption
from rcg_lightning.interruption import Terminated


def test_sigterm_ends_a_command_at_once_but_a_loop_only_between_batches():
    with interruption.remembered():
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Terminated):
            interruption.check()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with interruption.remembered():
        interruption.check()  # the earlier one is forgotten
        interruption.begin_loop()
        signal.raise_signal(signal.SIGTERM)
        interruption.check_keyboard()
        assert interruption.was_terminated()
        with pytest.raises(Terminated):
            interruption.check()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_finaliser_that_sigterm_interrupts_prints_no_traceback(capsys):
    class Closing:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with interruption.remembered():
        closing = Closing()
        del closing
        with pytest.raises(Terminated):
            interruption.check()
    assert capsys.readouterr().err == ""


def test_a_forked_process_dies_of_sigterm_as_usual():
    with interruption.remembered():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_another_thread_may_run_a_command():
    found = []

    def run():
        with interruption.remembered():
            found.append(threading.current_thread())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(found) == 1


RANK = """
import os, signal, sys, time
from rcg_lightning import interruption
interruption.end_with_main_process(every=0.05, grace=0.2)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # as in a library that waits for the other processes
print(os.getpid(), flush=True)
time.sleep(100)
"""
MAIN = """
import subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(rank.stdout.readline(), flush=True)
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_of_a_job_ends_with_the_one_that_started_it(rank):
    environment = {**os.environ, "LOCAL_RANK": str(rank)}
    main = subprocess.Popen([sys.executable, "-c", MAIN, RANK], stdout=subprocess.PIPE, text=True, env=environment)
    child = int(main.stdout.readline())
    main.wait()

    def is_alive():
        try:
            with open(f"/proc/{child}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    until = time.monotonic() + (20 if rank else 1)
    while is_alive() and time.monotonic() < until:
        time.sleep(0.05)
    assert is_alive() == (rank == 0)  # the main process may well outlive the shell that started it
    if rank == 0:
        os.kill(child, signal.SIGKILL)
