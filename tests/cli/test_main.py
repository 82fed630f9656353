"""The `rcg` command itself: help without torch, exit codes, and one line for every error."""

import contextlib
import errno
import signal
import subprocess
import sys
import time

import pytest

from rcg_lightning import __version__
from rcg_lightning.cli import main as cli
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
        (OSError(errno.ENOSPC, "No space left on device", "x/last.ckpt"), 1, "the disk of x/last.ckpt is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "the disk is full"),
        (KeyboardInterrupt(), 130, "interrupted"),
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


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m rcg_lightning.cli pipeline --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("usage: rcg pipeline")
    assert done.stderr == ""


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
