"""Report an error on the command line or in a config in one line: the key, the problem, the nearest valid name."""

import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from rcg_lightning.cli.familiar_options import familiar_option
from rcg_lightning.config import ConfigMixin, find_class
from rcg_lightning.errors import UserError

_NOISE = ("Does not validate", "Subtypes:", "Errors:", "Given value")
_CLASS = re.compile(
    r"Expected a path but (?P<path>.+) either not|Expected a dot import path string: (?P<dotted>.+)|"
    r"(?P<attribute>module '.*' has no attribute)|(?P<module>No module named)|Import of (?P<import>\S+) failed"
)
_UNKNOWN = re.compile(
    r"Option '([^']+)' is not accepted|unrecognized arguments: (\S+)|does not accept option '([^']+)'"
)


@dataclass(frozen=True)
class ParserError:
    """One leaf of jsonargparse's nested error message.

    Attributes:
        keys: from the outermost to the wrong one.
        classes: paths of the classes between them.
        text: the problem.
    """

    keys: tuple[str, ...]
    classes: tuple[str, ...]
    text: str

    @property
    def where(self) -> str:
        """The dotted key."""
        return ".".join(self.keys)


def explain(message: str, parser: ArgumentParser, argv: Sequence[str] = ()) -> str:
    """Condense jsonargparse's error message into one line."""
    required = re.search(r"(?:Key|Option) [\"']([^\"']+)[\"'] is required|are required: ([^\n]+)", message)
    if required:
        return _missing(str(required[1] or required[2]), parser, argv)
    if "expected one argument" in message:
        option = re.search(r"argument ([^\s:]+)", message)
        name = option[1].split("/")[-1] if option else "the last option"
        # the parser names --model where --model.ema.decay has no value
        bare = (word for word, value in zip(argv, [*argv[1:], "--"]) if value.startswith("--") and "=" not in word)
        return f"{next((word for word in bare if word.startswith(name)), name)} is given without a value"
    error_found = _deepest(message)
    unknown = _UNKNOWN.search(error_found.text)
    if unknown:
        return _unknown_key(error_found, next(filter(None, unknown.groups())), parser)
    wrong_class = _CLASS.search(error_found.text)
    if wrong_class:
        return _unknown_class(error_found, wrong_class, parser)
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", error_found.text).replace("typing.Literal", "one of ")
    text = re.sub(r"Expected an? (.+?)\. Got value: (.*)", r"should be \1, not \2", text)
    text = re.sub(r"Expected an? list$", f"should be a list, such as [{_given(message)}]".replace("\\", ""), text)
    text = re.sub(r"Expected an? (\w+)$", lambda found: f"should be {found[1]}, not {_given(message)}", text)
    return f"{error_found.where}: {text}" if error_found.keys else text


def _deepest(message: str) -> ParserError:
    """Return the deepest part of jsonargparse's errors for the alternative types."""
    best, depth = ParserError((), (), " ".join(message.split())), -1
    stack: list[tuple[int, str, str]] = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        indent = len(line) - len(line.lstrip())
        if not text or text.startswith(_NOISE):
            continue
        stack = [entry for entry in stack if entry[0] < indent]
        key = re.match(r"(?:Parser|Problem\w* .*) key \"([^\"]+)\":?(.*)", text)
        kind = re.match(r"Problem with given class_path '([^']+)':(.*)", text)
        if key or kind:
            found = key or kind
            assert found is not None
            stack.append((indent, "key" if key else "class", found[1]))
            text = found[2].strip()
        if text and text != "Expected a <class 'NoneType'>" and len(stack) > depth:
            keys = tuple(value for _, what, value in stack if what == "key")
            best = ParserError(keys, tuple(value for _, what, value in stack if what == "class"), text)
            depth = len(stack)
    return best


def _given(message: str) -> str:
    """Return the given value, as jsonargparse reports it."""
    found = re.search(r"Given value: (?:NestedArg\(key='[^']*', val=)?'?(.*?)'?\)?$", message, re.MULTILINE)
    return found[1] if found else "…"


def _missing(names: str, parser: ArgumentParser, argv: Sequence[str]) -> str:
    """Report missing options; an argument of a class that ``argv`` chose gets its full option name."""
    options = []
    for name in (part.strip() for part in names.split(",")):
        name = re.sub(r"^(fit|validate|test|predict)\.", "", name)
        if name not in _options(parser):
            for option, value in _pairs(argv):
                kinds = [kind for kind in subclasses(ConfigMixin) if kind.__name__ == value]
                if kinds and name in inspect.signature(kinds[0].__init__).parameters:
                    name = f"{option}.{name}"
        options.append(f"--{name}")
    return f"missing: {', '.join(options)}; give it here or in a --config file"


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield options and their values."""
    for word, following in zip(argv, [*argv[1:], ""]):
        if word.startswith("--"):
            option, equals, value = word[2:].partition("=")
            yield option, value if equals else following


def _unknown_key(error_found: ParserError, key: str, parser: ArgumentParser) -> str:
    if not error_found.keys and error_found.text.startswith("unrecognized") and not key.startswith("-"):
        return f"{key} belongs to no option: write --KEY before it; --help lists the keys"
    key = key.lstrip("-").partition("=")[0]
    if error_found.classes:
        kind = _find(error_found.classes[-1])
        known = [] if kind is None else list(_arguments(kind))
        key = key.partition(".")[0]
    else:
        kind, known = None, _options(parser)
    prefix = f"{error_found.where}." if error_found.keys else ""
    near = nearest(key, known)
    # one of the class's own arguments is nearer than an option elsewhere, a name like min_epochs is not
    exact = near is not None and near.rpartition(".")[2] == key.rpartition(".")[2]
    familiar = None if exact or (near and kind) else familiar_option(key, _options(parser))
    if key.startswith("no_") and key[3:] in known:
        familiar = f"give --{key[3:]} false"
    if familiar:
        return f"unknown key {prefix}{key}: {familiar}"
    if near:
        return f"unknown key {prefix}{key}: did you mean {prefix}{near}?"
    direct = [name for name in known if "." not in name]
    owner = f"{kind.__name__} takes {', '.join(direct)}" if kind is not None else "--help lists the keys"
    return f"unknown key {prefix}{key}: {owner}"


def _unknown_class(error_found: ParserError, found: re.Match[str], parser: ArgumentParser) -> str:
    """Report an unknown class path or name, or a missing file."""
    keys, classes = error_found.keys, error_found.classes
    given = found["path"] or found["dotted"] or found["import"]
    if given is None:  # then the last class path is the wrong one, under a key of the class before it
        given, classes = classes[-1], classes[:-1]
    if given.endswith((".yaml", ".yml", ".json")) or "/" in given:
        return f"{error_found.where}: no file {given}"
    expected = _expected(keys, classes, parser)
    own = _own_class(error_found.where, given, expected)
    if own:
        return own
    kinds = subclasses(expected)
    names = sorted({kind.__name__ for kind in kinds})
    near = difflib.get_close_matches(given.rpartition(".")[2], names, n=1, cutoff=0.5)
    if near:
        return f"{error_found.where}: no class {given}: did you mean {near[0]}?"
    return f"{error_found.where}: no class {given}" + (f", known are {', '.join(names)}" if 0 < len(names) < 30 else "")


def _own_class(where: str, given: str, expected: Any) -> str | None:
    """Report what a user's own class, given by its path, lacks; None for the classes of this package."""
    module_name, _, name = given.rpartition(".")
    if not module_name or module_name.partition(".")[0] == "rcg_lightning":
        return None
    module = sys.modules.get(module_name)  # the parser has tried to import it
    if module is None:
        return f"{where}: no class {given}: Python finds no module {module_name}, give its file with --plugin"
    kind, bases = getattr(module, name, None), _bases(expected)
    if not isinstance(kind, type) or not bases or issubclass(kind, bases):
        return None
    base = bases[0]
    missing = _abstract_methods(base)
    methods = f" and define {', '.join(missing)}" if missing else ""
    return f"{where}: {given} is no {base.__name__}: let it inherit {base.__module__}.{base.__qualname__}{methods}"


def _bases(hint: Any) -> tuple[type, ...]:
    """Return the classes in a type hint."""
    if isinstance(hint, type) and get_origin(hint) is None:
        return () if hint.__module__ == "builtins" else (hint,)
    return tuple(kind for part in get_args(hint) for kind in _bases(part))


def nearest(key: str, known: Iterable[str]) -> str | None:
    """Return the known key nearest to ``key``: as a whole, by its last part, or with its first part corrected."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if close:
        return close[0]
    by_last: dict[str, str] = {}
    for name in sorted(known, key=lambda name: name.count(".")):
        by_last.setdefault(name.rpartition(".")[2], name)
    close = difflib.get_close_matches(key.rpartition(".")[2], by_last, n=1, cutoff=0.6)
    if close and "." not in key:
        return by_last[close[0]]
    first, dot, rest = key.partition(".")
    close = difflib.get_close_matches(first, {name.partition(".")[0] for name in known}, n=1, cutoff=0.6)
    return f"{close[0]}{dot}{rest}" if close and close[0] != first else None


def _options(parser: ArgumentParser) -> list[str]:
    """Return the keys of a command line, without those of the classes that it may name."""
    hidden = ("help", "subcommand", "==SUPPRESS==")
    found = [action.dest for p in parsers_of(parser) for action in p._actions]
    return list(dict.fromkeys(name for name in found if name not in hidden and not name.endswith(".help")))


def parsers_of(parser: ArgumentParser) -> list[ArgumentParser]:
    """Return a parser and those of its subcommands."""
    subcommands = [action for action in parser._actions if hasattr(action, "_name_parser_map")]
    return [parser, *(part for action in subcommands for part in action._name_parser_map.values())]  # type: ignore[attr-defined]


def _arguments(kind: type, depth: int = 2) -> Iterator[str]:
    """Yield the arguments of a class, then those of the classes that it always takes."""
    parameters = list(inspect.signature(kind.__init__).parameters)[1:]
    yield from parameters
    if depth:
        for name, inner in class_hints(kind).items():
            if (
                isinstance(inner, type)
                and inner.__module__.startswith("rcg_lightning")
                and not _abstract_methods(inner)
            ):
                yield from (f"{name}.{argument}" for argument in _arguments(inner, depth - 1))


def _expected(keys: tuple[str, ...], classes: tuple[str, ...], parser: ArgumentParser) -> Any:
    """Return the expected type of a key's value."""
    owner = _find(classes[-1]) if classes else None
    if owner is not None:
        return class_hints(owner).get(keys[-1].rpartition(".")[2])
    for action in (action for p in parsers_of(parser) for action in p._actions):
        if action.dest == ".".join(keys):
            return getattr(action, "_typehint", None)
    return None


def subclasses(hint: Any) -> list[type]:
    """Return all classes that can be constructed for a type hint."""
    if get_origin(hint) is not None or not isinstance(hint, type):
        return [kind for part in get_args(hint) for kind in subclasses(part)]
    if hint.__module__ == "builtins" or issubclass(hint, Path):
        return []
    below = [kind for child in type.__subclasses__(hint) for kind in subclasses(child)]
    return below if _abstract_methods(hint) else [hint, *below]


def _abstract_methods(kind: type) -> list[str]:
    # not every base class has ABCMeta, which inspect.isabstract needs
    return [name for name in dir(kind) if getattr(getattr(kind, name, None), "__isabstractmethod__", False)]


def class_hints(kind: type) -> dict[str, Any]:
    """Return the types of a class's arguments; empty where they cannot be read."""
    try:
        return get_type_hints(kind.__init__)
    except (NameError, TypeError):
        return {}


def _find(class_path: str) -> type | None:
    try:
        return find_class(class_path)
    except UserError:
        return None
