"""The `rcg` command itself: help without torch, exit codes, and one line for every error."""

import contextlib
import errno
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from rcg_lightning import __version__
from rcg_lightning.cli import main as cli
from rcg_lightning.cli.messages import NOTHING_SAVED
from rcg_lightning.errors import UserError


@pytest.fixture
def ending(monkeypatch, capsys):
    """Run a command that raises an error; return its exit code and stderr."""

    def end(error, *argv):
        def raises(*_):
            raise error

        monkeypatch.setattr(cli, "run", raises)
        code = cli.main(["fit", *argv])
        return code, capsys.readouterr().err

    return end


def test_help_is_quick_and_needs_no_torch():
    line = "import sys; from rcg_lightning.cli.main import main; main(['--help']); "
    start = time.monotonic()
    output = subprocess.run(
        [sys.executable, "-c", line + "assert not {'torch', 'lightning', 'jsonargparse'} & sys.modules.keys()"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert time.monotonic() - start < 2
    assert all(f"\n  {name} " in output for name in cli.COMMANDS)


def test_every_command_exists():
    for target, text in cli.COMMANDS.values():
        module, _, function = target.partition(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))
        assert len(text) < 80


def test_version_and_unknown_commands(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"rcg {__version__}"
    assert cli.main(["sampel"]) == 2
    assert capsys.readouterr().err == "rcg: no command sampel: did you mean sample?\n"
    assert cli.main(["xyzzy"]) == 2
    assert "`rcg --help`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no store at x:\n make it"), 2, "no store at x: make it"),
        (RuntimeError("sizes differ"), 1, "RuntimeError: sizes differ (--traceback shows where)"),
        (OSError(errno.ENOSPC, "No space left on device", "x/last.ckpt"), 2, "the disk of x/last.ckpt is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "the disk is full"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x/images"), 2, "x/images: no such file"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", cli.__file__), 1, "FileNotFoundError"),
        (OSError(errno.EIO, "Input/output error", "x/images"), 1, "OSError"),
        (ModuleNotFoundError("No module named 'wandb'", name="wandb"), 2, "this needs the package wandb"),
        (ModuleNotFoundError("No module named 'rcg_lightning.x'", name="rcg_lightning.x"), 1, "ModuleNotFoundError"),
        (MisconfigurationException("No supported gpu\nbackend"), 2, "the trainer's settings: No supported gpu backend"),
        (MemoryError(), 2, "this machine is out of memory"),
        (KeyboardInterrupt(), 130, "interrupted; what was saved stays; continue with: rcg fit --ckpt_path last"),
    ],
)
def test_every_end_is_one_line(ending, error, code, line):
    found, output = ending(error)
    assert found == code
    assert output.startswith(f"rcg fit: {line}")
    assert output.count("\n") == 1


def test_lightnings_exit_after_an_interruption_is_one(ending):
    error = SystemExit(1)
    error.__context__ = KeyboardInterrupt()
    assert ending(error)[0] == 130
    assert ending(SystemExit(0)) == (0, "")


def test_the_traceback_is_shown_on_request(ending):
    assert "Traceback" not in ending(RuntimeError("x"))[1]
    code, output = ending(RuntimeError("x"), "--traceback")
    assert code == 1
    assert "Traceback" in output
    assert output.endswith("rcg fit: RuntimeError: x (--traceback shows where)\n")


@pytest.mark.parametrize(
    ("argv", "code", "line"),
    [
        (["--config", "my runs/a.yaml"], 130, "rcg fit --config 'my runs/a.yaml' --ckpt_path last"),
        (["--ckpt_path", "old.ckpt", "--model.seed=2"], 130, "rcg fit --model.seed=2 --ckpt_path last"),
        (["--ckpt-path=old.ckpt", "--config", "a"], 130, "rcg fit --config a --ckpt_path last"),
    ],
)
def test_the_command_that_continues_can_be_copied(ending, argv, code, line):
    found, output = ending(KeyboardInterrupt(), *argv)
    assert found == code
    assert output.endswith(f"; continue with: {line}\n")
    fresh = KeyboardInterrupt()
    fresh.add_note(NOTHING_SAVED)
    assert ending(fresh, *argv)[1].endswith(f"; continue with: {shlex.join(['rcg', 'fit', *argv])}\n")


RCG = f"{sys.executable} -m rcg_lightning.cli"


@pytest.mark.parametrize("words", ["pipeline --help", "--help", "reproduce"])
def test_a_closed_pipe_is_no_error(words):
    """The reader is gone before the first line: nothing depends on who is faster."""
    read, write = os.pipe()
    os.close(read)
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # else the argparse of Python 3.11.2 raises, which ends with 141
    command = [*RCG.split(), *words.split()]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=buffered, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", ["--help", "reproduce"])
def test_an_output_that_cannot_be_written_is_an_error(words):
    done = subprocess.run(f"{RCG} {words} > /dev/full", shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith(": the standard output cannot be written: No space left on device\n")
    assert done.stderr.count("\n") == 1


def test_a_command_without_standard_output_works():
    done = subprocess.run(f"{RCG} reproduce >&-", shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interruption_that_a_library_swallows_still_ends_the_command(monkeypatch, capsys):
    def swallowing(name, argv):
        with contextlib.suppress(KeyboardInterrupt):  # like a finaliser or a careless library
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(cli, "run", swallowing)
    assert cli.main(["sample"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(cli, "run", lambda name, argv: None)
    assert cli.main(["sample"]) == 0  # the interruption does not outlive its command
