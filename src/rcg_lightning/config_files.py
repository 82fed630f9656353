"""Config files: find the shipped ones by name, and read them with the fragments that they include.

Nothing here imports torch.
"""

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rcg_lightning.errors import UserError, one_line
from rcg_lightning.limits import CONFIG_VALUES

_PACKAGE = Path(__file__).resolve().parent
CONFIG_FLAGS = ("--config", "-c")
PRESET = "preset"  # the folder of sampling settings, whose names need no folder
_UNNAMED = ("pipeline", "source", "encoder", "codec")  # folders of files that are not for --config


def config_folders() -> list[Path]:
    """Return the folders of the shipped configs: inside the wheel, or next to src/ in a checkout."""
    return [folder for folder in (_PACKAGE / "configs", _PACKAGE.parents[1] / "configs") if folder.is_dir()]


def find_config(name: str, kind: str = PRESET) -> Path:
    """Find a config file by its path, or by the name of a shipped one, such as digits/rdm.

    Args:
        kind: folder whose configs are named without it.

    Raises:
        UserError: there is no such file; the message gives the nearest shipped names.
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
    """Return (position, name) of every config on a command line."""
    found = []
    for i, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag in CONFIG_FLAGS and equals:
            found.append((i, value))
        elif word in CONFIG_FLAGS and i + 1 < len(argv):
            found.append((i + 1, argv[i + 1]))
    return found


def read_config(path: Path, within: tuple[Path, ...] = (), values: Iterator[int] | None = None) -> Any:
    """Read a config with the fragments that it includes; a UserError names file and line of an error.

    Args:
        within: the files that include this one.
        values: counts the values of all these files, which have a limit.
    """
    if path.resolve() in within:
        raise UserError(f"{path} includes itself: remove that line")
    counted = itertools.count(1) if values is None else values
    try:
        text = path.read_text()
        check_aliases(text, str(path))
        content = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2024-99-99 is a ValueError
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        deep = "it is nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        reason = getattr(error, "problem", None) or deep
        raise UserError(f"{path}{line}: no valid YAML ({reason})") from error

    def expand(value: Any) -> Any:
        CONFIG_VALUES.check(next(counted), f"{path} with all that it includes")
        if isinstance(value, Mapping):
            return {str(key): expand(item) for key, item in value.items()}
        if isinstance(value, list):
            return [expand(item) for item in value]
        if isinstance(value, str) and value.endswith((".yaml", ".yml")) and (path.parent / value).is_file():
            return read_config(path.parent / value, (*within, path.resolve()), counted)
        return value

    try:
        return expand(content)
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply to be a config") from error


def check_aliases(text: str, where: str) -> None:
    """Raise a UserError where YAML's aliases stand for more values than a config has: nine lines can be a billion."""
    if "*" not in text:
        return
    sizes: dict[int, int] = {}  # of each node with its aliases written out

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = CONFIG_VALUES.value + 1  # an alias inside its own value is endless
            pairs = node.value if isinstance(node, yaml.MappingNode) else [(item,) for item in _items(node)]
            sizes[id(node)] = 1 + sum(size(item) for pair in pairs for item in pair)
        return sizes[id(node)]

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    CONFIG_VALUES.check(0 if root is None else size(root), f"{where}: YAML that, with its aliases,")


def _items(node: yaml.Node) -> list[yaml.Node]:
    return node.value if isinstance(node, yaml.SequenceNode) else []
