"""Options that need no value: `--png` is `--png true`."""

from collections.abc import Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from jsonargparse import ArgumentParser

from rcg_lightning.cli.error_messages import class_hints, parsers_of, subclasses


def with_flags(words: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Give each option that can be true or false, and that stands without a value, the value true.

    Args:
        words: the command line, with underscores in the names of options.
        parser: of the command.
    """
    out = []
    for word, following in zip(words, [*words[1:], "--"]):
        bare = word.startswith("--") and "=" not in word and following.startswith("--")
        option = word.removeprefix("--").replace(".init_args", "")
        hints = _types(option, parser) if bare and option else []
        out.append(f"{word}=true" if hints and all(map(_accepts_bool, hints)) else word)
    return out


def _types(option: str, parser: ArgumentParser) -> list[Any]:
    """Return the types of an option: of an argument of each class that the option before its last dot takes."""
    actions = (action for part in parsers_of(parser) for action in part._actions)
    hints = [getattr(action, "_typehint", None) for action in actions if action.dest == option]
    found = [hint for hint in hints if hint is not None]
    owner, dot, name = option.rpartition(".")
    if found or not dot:
        return found
    kinds = (kind for hint in _types(owner, parser) for kind in subclasses(hint))
    return [hints[name] for hints in map(class_hints, kinds) if name in hints]


def _accepts_bool(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(map(_accepts_bool, get_args(hint)))
    return hint is bool
