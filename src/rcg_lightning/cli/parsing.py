"""From the command line to a typed function call."""

import argparse
import difflib
import importlib
import inspect
import json
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter
from tqdm import tqdm

from rcg_lightning.cli.error_messages import explain
from rcg_lightning.cli.out_of_memory import in_command, remedied
from rcg_lightning.config import ConfigMixin
from rcg_lightning.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_FLAGS = ("--config", "-c")
PRESET = "preset"  # the folder of configs whose names need no folder: what `rcg sample` takes
_UNNAMED = ("pipeline", "source", "encoder", "codec")  # folders of what --config does not take


def config_folders() -> list[Path]:
    """Return where the shipped configs lie: inside the wheel, or next to src/ in a checkout."""
    return [folder for folder in (_PACKAGE / "configs", _PACKAGE.parents[1] / "configs") if folder.is_dir()]


def find_config(name: str, kind: str = PRESET) -> Path:
    """Return the config file that ``name`` means: a path, or the name of a shipped one, such as digits/rdm.

    Args:
        kind: folder whose configs are named without it.

    Raises:
        UserError: there is no such file; the nearest shipped names are given.
    """
    if Path(name).is_file():
        return Path(name)
    for folder in config_folders():
        for candidate in (folder / name, folder / f"{name}.yaml", folder / kind / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
    shipped = _shipped(kind)
    near = difflib.get_close_matches(name.removesuffix(".yaml"), shipped, n=3)
    known = near or [*shipped[:8], f"… all in {config_folders()[0]}"]
    raise UserError(f"no config {name}: give a file, or the name of a shipped one ({', '.join(known)})")


def _shipped(kind: str) -> list[str]:
    paths = [path for folder in config_folders() for path in folder.glob("*/*.yaml")]
    names = [path.stem for path in paths if path.parent.name == kind]
    if kind == PRESET:
        of_data_sets = (path for path in paths if path.parent.name not in (PRESET, *_UNNAMED))
        names += [f"{path.parent.name}/{path.stem}" for path in of_data_sets if not path.stem.startswith("network_")]
    return sorted(names)


def named_configs(argv: Sequence[str]) -> list[tuple[int, str]]:
    """Return every config that a command line names, with the position of the word that does."""
    found = []
    for i, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag in CONFIG_FLAGS and equals:
            found.append((i, value))
        elif word in CONFIG_FLAGS and i + 1 < len(argv):
            found.append((i + 1, argv[i + 1]))
    return found


def read_config(path: Path) -> Any:
    """Return the content of a config with the fragments that it includes; a UserError names file and line."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{path}{line}: no valid YAML ({reason})") from error

    def expand(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): expand(item) for key, item in value.items()}
        if isinstance(value, list):
            return [expand(item) for item in value]
        if isinstance(value, str) and value.endswith((".yaml", ".yml")) and (path.parent / value).is_file():
            return read_config(path.parent / value)
        return value

    return expand(content)


def prepared(argv: Sequence[str], lists: Sequence[str] = ()) -> list[str]:
    """Return the command line as the parser takes it.

    Names of shipped configs become paths, and every config is read once, so that a broken one is named. A config that
    is a data set alone is the value of ``--data``.
    ``--print_config`` leaves out what is unset. What follows one of the options ``lists``, with spaces or commas
    between, becomes a list.
    """
    words = [_underscored(word) for word in argv]
    for i, name in named_configs(argv):
        path = find_config(name)
        content = read_config(path)
        if not isinstance(content, Mapping):
            raise UserError(f"{path} should hold keys and values, as `--print_config` shows them")
        flag = "--data" if str(content.get("class_path")).endswith("DataModule") else "--config"
        joined = argv[i].partition("=")[0] in CONFIG_FLAGS
        words[i - 1 + joined : i + 1] = [f"{flag}={path}"] if joined else [flag, str(path)]
    words = ["--print_config=skip_unset" if word == "--print_config" else word for word in words]
    return _with_lists(words, [f"--{name}" for name in lists])


def _underscored(word: str) -> str:
    """An option may be written with dashes: ``--init-from`` is ``--init_from``."""
    option, equals, value = word.partition("=")
    return f"--{option[2:].replace('-', '_')}{equals}{value}" if option.startswith("--") else word


def _with_lists(words: list[str], options: Sequence[str]) -> list[str]:
    out: list[str] = []
    rest = iter(words)
    pending = next(rest, None)
    while pending is not None:
        option, equals, value = pending.partition("=")
        if option not in options:
            out.append(pending)
            pending = next(rest, None)
            continue
        values = [value] if equals else []
        while (pending := next(rest, None)) is not None and not pending.startswith("--"):
            values.append(pending)
        if len(values) == 1 and values[0].startswith("["):
            out.append(f"{option}={values[0]}")
        else:
            items = [item for value in values for item in value.split(",") if item]
            out += (
                [f"{option}={json.dumps([int(i) if i.lstrip('-').isdigit() else i for i in items])}"]
                if items
                else [option]
            )
    return out


class Help(DefaultHelpFormatter):
    """Keeps the lines of a command's description, so that examples stay examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(line if line.startswith(" ") else textwrap.fill(line, width) for line in text.splitlines())


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
        importlib.import_module("rcg_lightning.class_modules")
    parser = ArgumentParser(
        prog=f"rcg {name}",
        exit_on_error=False,
        allow_abbrev=False,
        description=summary(function, examples),
        formatter_class=Help,
    )
    parser.usage = f"rcg {name} [--config FILE ...] [--key value ...]"
    if config_file:
        parser.add_argument("-c", "--config", action="config", help="YAML file of values; may be given several times")
        argv = prepared(argv, _list_arguments(function))
    parser.add_function_arguments(function, as_positional=False, sub_configs=True)
    with one_line_errors(parser, argv):
        parsed = parser.parse_args(list(argv))
    objects = parser.instantiate(parsed)
    values = {key: value for key, value in vars(objects).items() if key in inspect.signature(function).parameters}
    with remedied(lambda: in_command(values)):
        return function(**values)


def _list_arguments(function: Callable[..., Any]) -> list[str]:
    """Names of arguments that are lists of plain values."""
    found = []
    for name, hint in get_type_hints(function).items():
        parts = get_args(hint) if get_origin(hint) in (types.UnionType, Literal) else (hint,)
        if any(get_origin(part) is list and not _of_objects(part) for part in parts):
            found.append(name)
    return found


def _of_objects(hint: Any) -> bool:
    """Whether a list's items are objects that a config describes."""
    return any(isinstance(item, type) and issubclass(item, ConfigMixin) for item in get_args(hint))


def summary(function: Callable[..., Any], examples: Sequence[str]) -> str:
    """Return what stands at the top of a command's help: what it does, and examples."""
    first = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
    return "\n".join([first, *(f"  {example}" for example in examples)])


class one_line_errors:
    """Turns the parser's errors into a UserError that names the key and, for a typo, the nearest right one."""

    def __init__(self, parser: ArgumentParser, argv: Sequence[str] = ()) -> None:
        self.parser, self.argv = parser, argv

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, argparse.ArgumentError | TypeError | ValueError | KeyError):
            raise UserError(explain(str(error), self.parser, self.argv)) from error


def echo(line: str) -> None:
    """Print one line for the user: commands are the only place that prints."""
    print(line, file=sys.stdout, flush=True)


def progress_bar(parts: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """Iterate with a progress bar, which appears where it takes more than a few seconds."""
    return tqdm(parts, desc=what, total=total, delay=3, leave=False)
