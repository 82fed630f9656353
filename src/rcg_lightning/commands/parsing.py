"""From the command line to a typed function call, with errors that fit on one line."""

import argparse
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from rcg_lightning.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_FLAGS = ("--config", "-c")


def config_folders() -> list[Path]:
    """Return where the shipped configs lie: inside the wheel, or beside src/ in a checkout."""
    return [folder for folder in (_PACKAGE / "configs", _PACKAGE.parents[1] / "configs") if folder.is_dir()]


def find_config(name: str, kind: str = "experiment") -> Path:
    """Return the config file that ``name`` means: a path, or the name of a shipped one.

    Raises:
        UserError: there is no such file; the nearest shipped names are given.
    """
    if Path(name).is_file():
        return Path(name)
    for folder in config_folders():
        for candidate in (folder / name, folder / f"{name}.yaml", folder / kind / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
    shipped = [path.stem for folder in config_folders() for path in (folder / kind).glob("*.yaml")]
    near = difflib.get_close_matches(Path(name).stem, shipped, n=3) or sorted(set(shipped))
    raise UserError(f"no config {name}: give a file, or one of the shipped ones ({', '.join(near)})")


def with_found_configs(argv: Sequence[str]) -> list[str]:
    """Replace names of shipped configs by their paths."""
    words = list(argv)
    for i, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in CONFIG_FLAGS and value:
            words[i] = f"{flag}={find_config(value)}"
        elif word in CONFIG_FLAGS and i + 1 < len(words):
            words[i + 1] = str(find_config(words[i + 1]))
    return words


def call(
    function: Callable[..., Any],
    name: str,
    argv: Sequence[str],
    examples: Sequence[str] = (),
    names: bool = True,
    config_file: bool = True,
) -> Any:
    """Parse ``argv`` for a typed function and call it. ``--help``, ``--config`` and ``--print_config`` come with it.

    Args:
        names: import every class that a config may name without its path (and with them torch).
        config_file: accept --config files of values; otherwise ``config`` is an argument of the function.
    """
    if names:
        importlib.import_module("rcg_lightning.commands.names")
    parser = ArgumentParser(prog=f"rcg {name}", exit_on_error=False, description=summary(function, examples))
    parser.usage = f"rcg {name} [--config FILE ...] [--key value ...]"
    if config_file:
        parser.add_argument("-c", "--config", action="config", help="YAML file of values; may be given several times")
        argv = with_found_configs(argv)
    parser.add_function_arguments(function, as_positional=False, sub_configs=True)
    with one_line_errors(parser):
        objects = parser.instantiate(parser.parse_args(list(argv)))
    values = {key: value for key, value in vars(objects).items() if key in inspect.signature(function).parameters}
    return function(**values)


def summary(function: Callable[..., Any], examples: Sequence[str]) -> str:
    """Return what stands at the top of a command's help: what it does, and examples."""
    first = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
    return "\n".join([first, *(f"  {example}" for example in examples)])


class one_line_errors:
    """Turns the parser's errors into a UserError that names the key and, for a typo, the nearest right one."""

    def __init__(self, parser: ArgumentParser) -> None:
        self.parser = parser

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, argparse.ArgumentError):
            raise UserError(explain(str(error), self.parser)) from error
        if isinstance(error, TypeError | ValueError) and not isinstance(error, UserError):
            raise UserError(explain(str(error), self.parser)) from error


def explain(message: str, parser: ArgumentParser) -> str:
    """Condense jsonargparse's account of a mistake into one line: key, what is wrong, nearest right key."""
    where = ".".join(dict.fromkeys(re.findall(r'[Kk]ey "([^"]+)"', message)))
    classes = re.findall(r"class_path '([^']+)'", message)
    for pattern, known in (
        (r"Option '([^']+)' is not accepted", lambda: _arguments(classes)),
        (r"unrecognized arguments: (?:--)?([^\s=]+)", lambda: _options(parser)),
        (r"does not accept option '([^']+)'", lambda: _options(parser)),
    ):
        found = re.search(pattern, message)
        if found:
            key = found[1].lstrip("-")
            near = _nearest(key, known())
            prefix = f"{where}." if where and not key.startswith(where) else ""
            return f"unknown key {prefix}{key}" + (f": did you mean {near}?" if near else "")
    wrong = re.findall(r"(Expected [^\n]*Got value: [^\n]*|Expected [^\n]*|not allowed[^\n]*|Import of[^\n]*)", message)
    detail = wrong[0] if wrong else message.strip().splitlines()[-1].strip()
    if "No such file" in message or "Unable to load config" in message:
        detail = next(
            (line.strip() for line in message.splitlines() if "No such file" in line or "load" in line), detail
        )
    required = re.search(r"(?:Key|Option) [\"']([^\"']+)[\"'] is required|required: ([^\n]+)", message)
    if required:
        return f"missing: {required[1] or required[2]}"
    detail = re.sub(r"<class '([^']+)'>", lambda match: match[1].rpartition(".")[2], detail)
    return f"{where}: {detail}" if where else detail


def _arguments(class_paths: Sequence[str]) -> list[str]:
    """Constructor arguments of the innermost class that an error speaks of."""
    from rcg_lightning.described import find_class

    for class_path in reversed(class_paths):
        try:
            return list(inspect.signature(find_class(class_path).__init__).parameters)[1:]
        except UserError:
            continue
    return []


def _options(parser: ArgumentParser) -> list[str]:
    subparsers = [action for action in parser._actions if hasattr(action, "_name_parser_map")]
    nested = [p for action in subparsers for p in action._name_parser_map.values()]  # type: ignore[attr-defined]
    return [
        action.dest for p in (parser, *nested) for action in p._actions if action.dest not in ("help", "==SUPPRESS==")
    ]


def _nearest(key: str, known: Sequence[str]) -> str | None:
    by_last = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    near = near or [by_last[m] for m in difflib.get_close_matches(key.rpartition(".")[2], by_last, n=1, cutoff=0.5)]
    return near[0] if near else None


def say(line: str) -> None:
    """Print one line for the user: commands are the only place that prints."""
    print(line, file=sys.stdout, flush=True)
