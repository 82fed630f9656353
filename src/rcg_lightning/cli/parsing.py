"""Parse a command line and call a typed function."""

import argparse
import importlib
import inspect
import json
import os
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_loader
from jsonargparse._loaders_dumpers import yaml_load

from rcg_lightning.arguments import check_arguments
from rcg_lightning.artifacts import check_writable
from rcg_lightning.cli.error_messages import explain
from rcg_lightning.cli.flags import with_flags
from rcg_lightning.cli.out_of_memory import in_command, remedied
from rcg_lightning.cli.plugins import find_own_modules
from rcg_lightning.config import ConfigMixin
from rcg_lightning.config_files import CONFIG_FLAGS, check_aliases, find_config, named_configs, read_config
from rcg_lightning.errors import UserError


def prepared(argv: Sequence[str], lists: Sequence[str] = ()) -> list[str]:
    """Rewrite the command line for the parser.

    Names of shipped configs become paths, and every config is read once, so the error of a broken one names it. A
    config that only holds a data set becomes the value of ``--data``. ``--print_config`` omits unset values. The words
    after one of the options ``lists``, separated by spaces or commas, become a list.
    """
    words = [underscored(word) for word in argv]
    find_own_modules((word.partition("=")[2] or word for word in argv), [Path.cwd()])
    for i, name in named_configs(argv):
        path = find_config(name)
        content = read_config(path)
        find_own_modules([content], [Path.cwd(), path.parent])
        if not isinstance(content, Mapping):
            raise UserError(f"{path} should hold keys and values, as `--print_config` shows them")
        if not isinstance(content.get("trainer", {}), Mapping | None):  # the parser would ignore anything else
            raise UserError(f"{path}: trainer should hold keys and values, such as max_steps: 1000")
        flag = "--data" if str(content.get("class_path")).endswith("DataModule") else "--config"
        joined = argv[i].partition("=")[0] in CONFIG_FLAGS
        words[i - 1 + joined : i + 1] = [f"{flag}={path}"] if joined else [flag, str(path)]
    words = ["--print_config=skip_unset" if word == "--print_config" else word for word in words]
    return _with_lists(words, [f"--{name}" for name in lists])


def with_option(argv: Sequence[str], option: str) -> list[str]:
    """Give the first word, where it is a value, to ``option``: `rcg sample RUN` is `rcg sample --checkpoint RUN`."""
    return [option, *argv] if argv and not argv[0].startswith("-") else list(argv)


def underscored(word: str) -> str:
    """Replace dashes in an option's name: ``--init-from`` is ``--init_from``."""
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
        if len(values) == 1 and values[0].startswith("[") and not os.path.lexists(values[0]):
            out.append(f"{option}={values[0]}")
        else:
            items = [item for value in values for item in _items(value)]
            out.append(f"{option}={json.dumps(items)}" if items else option)
    return out


def _items(value: str) -> list[str | int]:
    """Return the items of a word, separated by commas; the name of a file is one item, whatever it holds."""
    if os.path.lexists(value):
        return [value]
    return [int(item) if item.lstrip("-").isdigit() else item for item in value.split(",") if item]


def _load_yaml(text: str) -> Any:
    """Parse YAML for jsonargparse: without endless aliases, and a path stays as it is, whatever it means as YAML."""
    if text.startswith(("/", "./", "../", "~/")) or os.path.lexists(text):
        return text
    check_aliases(text, "a value or config that is given")
    return yaml_load(text)


set_loader("yaml", _load_yaml, (yaml.YAMLError,))


class Help(DefaultHelpFormatter):
    """Keeps the line breaks of a command's description, so that examples stay readable."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(line if line.startswith(" ") else textwrap.fill(line, width) for line in text.splitlines())


def call(
    function: Callable[..., Any],
    name: str,
    argv: Sequence[str],
    examples: Sequence[str] = (),
    names: bool = True,
    config_file: bool = True,
    folders: Sequence[str] = (),
) -> Any:
    """Parse ``argv`` for a typed function and call it; adds ``--help``, ``--config`` and ``--print_config``.

    Args:
        names: import every class that a config may name without its path (and torch with them).
        config_file: accept --config files of values; otherwise ``config`` is an argument of the function.
        folders: optional arguments that are folders to write; without this an optional ``out`` is a file of results.
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
    words = prepared(argv, _list_arguments(function)) if config_file else [underscored(word) for word in argv]
    parser.add_function_arguments(function, as_positional=False, sub_configs=True)
    with one_line_errors(parser, words):
        parsed = parser.parse_args(with_flags(words, parser))
    with construction_errors(parser, words):
        objects = parser.instantiate(parsed)
    values = {key: value for key, value in vars(objects).items() if key in inspect.signature(function).parameters}
    check_arguments(function, values, "--")
    parameters = inspect.signature(function).parameters
    for key in values.keys() & {"out", "markdown"}:
        if values[key] is not None:
            check_writable(values[key], is_file=parameters[key].default is None and key not in folders)
    with remedied(lambda: in_command(values)):
        return function(**values)


def _list_arguments(function: Callable[..., Any]) -> list[str]:
    """Return the names of arguments that are lists of plain values."""
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
    """Return the top of a command's help: first paragraph of its docstring, and examples."""
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


@contextmanager
def construction_errors(parser: ArgumentParser, argv: Sequence[str] = ()) -> Iterator[None]:
    """Turn the parser's report of a class that rejects its arguments into a UserError; other errors stay."""
    try:
        yield
    except ValueError as error:  # jsonargparse's, which holds those of all alternative types
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from error
        if cause is not error and isinstance(cause, ValueError | ImportError):
            raise UserError(explain(str(error), parser, argv)) from error
        raise
