"""A user's own classes: modules named with --plugin, or files next to the config that names a class of theirs."""

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rcg_lightning.errors import UserError, one_line

OPTION = "--plugin"
_VARIABLE = "RCG_PLUGINS"  # passes them on to the processes of a pipeline's step
_CLASS_PATH = re.compile(r"([A-Za-z_]\w*)(?:\.\w+)*\.[A-Z]\w*")


def split_plugins(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the values of --plugin, which may be given several times, and the other words of a command line."""
    plugins, others, words = [], [], iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option != OPTION:
            others.append(word)
            continue
        value = value if equals else next(words, "")
        if not value or value.startswith("--"):
            raise UserError(f"{OPTION} needs the name of a module, or a Python file")
        plugins.append(value)
    return plugins, others


@contextmanager
def loaded_plugins(names: Sequence[str]) -> Iterator[None]:
    """Import the plugins of this command and those of the process that started it; pass them on to processes of it."""
    inherited = os.environ.get(_VARIABLE, "")
    every = list(dict.fromkeys([*filter(None, inherited.split(os.pathsep)), *names]))
    for name in every:
        load_plugin(name)
    os.environ[_VARIABLE] = os.pathsep.join(every)
    try:
        yield
    finally:
        os.environ[_VARIABLE] = inherited


def load_plugin(name: str) -> None:
    """Import a user's module, by its name or its file; a name is also found in the current folder.

    Its folder comes last on the path, so that it cannot replace an installed module.
    """
    path = Path(name)
    is_file = path.suffix == ".py" or len(path.parts) > 1
    if is_file and not (path.is_file() or (path / "__init__.py").is_file()):
        raise UserError(f"{OPTION} {name}: there is no such file")
    folder, module = (path.resolve().parent, path.stem) if is_file else (Path.cwd(), name)
    _append(folder)
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the user's code may raise anything
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise UserError(f"{OPTION} {name} cannot be imported ({reason}): --traceback shows where") from error
    origin = Path(getattr(found, "__file__", None) or "")
    expected = path if path.is_file() else path / "__init__.py"
    if is_file and origin.resolve() != expected.resolve():
        raise UserError(f"{OPTION} {name}: another module is called {module} ({origin}), rename the file")


def find_own_modules(values: Iterable[Any], folders: Sequence[Path]) -> None:
    """Make modules importable that ``values`` of the user's command line or configs name and that lie in ``folders``.

    A folder is appended to the path only if such a class path, as in ``my_networks.MyNetwork``, needs it.
    """
    for text in _strings(values):
        found = _CLASS_PATH.fullmatch(text)
        if not found or found[1] in sys.modules or importlib.util.find_spec(found[1]) is not None:
            continue
        for folder in folders:
            if (folder / f"{found[1]}.py").is_file() or (folder / found[1] / "__init__.py").is_file():
                _append(folder.resolve())
                break


def _append(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, Iterable):
        for item in value:
            yield from _strings(item)
