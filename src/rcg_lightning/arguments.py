"""Check arguments against annotations: type and range of each value, before anything is built from them.

A range is part of the annotation, as in ``steps: PositiveInt``; help texts show it. An integer lies in int64 and a
float is finite, unless the range is narrower.
"""

import functools
import inspect
import math
import numbers
import types
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from rcg_lightning.errors import UserError


@dataclass(frozen=True, repr=False)
class Range:
    """Bounds of a number, for ``Annotated``.

    Args:
        low: least value; None for no bound.
        high: largest value; None for no bound.
        above: ``low`` itself is excluded.
        below: ``high`` itself is excluded.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        high_enough = self.low is None or (value > self.low if self.above else value >= self.low)
        return high_enough and (self.high is None or (value < self.high if self.below else value <= self.high))

    def __repr__(self) -> str:
        """The text of help and messages: at least 1, in [0, 1)."""
        if self.high is None:
            return f"above {self.low}" if self.above else f"at least {self.low}"
        if self.low is None:
            return f"below {self.high}" if self.below else f"at most {self.high}"
        return f"in {'(' if self.above else '['}{self.low}, {self.high}{')' if self.below else ']'}"


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(0, above=True)]
NonNegativeFloat = Annotated[float, Range(0)]
UnitInterval = Annotated[float, Range(0, 1)]
Share = Annotated[float, Range(0, 1, above=True)]
BelowOne = Annotated[float, Range(0, 1, below=True)]  # an EMA decay, a dropout: 1 would leave nothing
# networks are built from these: the upper bounds keep a typo from allocating terabytes
Width = Annotated[int, Range(1, 2**16)]
Depth = Annotated[int, Range(1, 1000)]
ImageSize = Annotated[int, Range(1, 2**14)]
Multiplier = Annotated[int, Range(1, 64)]  # of a width
MLPRatio = Annotated[float, Range(0, 64, above=True)]
Timesteps = Annotated[int, Range(1, 1_000_000)]
Seed = Annotated[int, Range(-(2**62), 2**62)]  # leaves room in int64 for the seeds that follow it
SampleNumber = Annotated[int, Range(1, 10**9)]
SampleCount = Annotated[int, Range(2, 10**9)]  # for statistics, which one sample does not have
Count = Annotated[int, Range(1, 2**20)]  # of classes, codes, words: the rows of a table


@functools.cache
def annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function's arguments by name, with their ranges."""
    try:
        return get_type_hints(function, include_extras=True) if inspect.isfunction(function) else {}
    except NameError:  # an annotation that exists for type checkers only
        return {}


class Checked:
    """Mixin that checks the constructor's arguments; for classes outside configs' plain data, such as callbacks."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        check_arguments(cls.__init__, bound_arguments(cls.__init__, args, kwargs), f"{cls.__name__}: ")
        return self


def bound_arguments(constructor: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that an ``__init__`` is called with, by name; those of ``**kwargs`` too."""
    signature = _signature(constructor)
    # copy and pickle call __new__ without arguments and restore the state afterwards
    bound = signature.bind_partial(None, *args, **kwargs)
    _, *names = bound.arguments
    arguments = {name: bound.arguments[name] for name in names}
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    return arguments


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], prefix: str = "") -> None:
    """Raise UserError for an argument whose type or range the function's annotations exclude.

    Args:
        arguments: by name; a name without annotation is not checked.
        prefix: of the name in the message, such as ``--`` or ``EMA: ``.
    """
    hints = annotations(function)
    for name, value in arguments.items():
        problem = _problem(value, hints[name], name) if name in hints else None
        if problem is not None:
            given = problem.value
            shown = repr(given) if isinstance(given, _PLAIN) else f"a {type(given).__name__}"
            shown = shown if len(shown) < 80 else f"{shown[:80]}…"
            raise UserError(f"{prefix}{problem.where} should be {problem.expected}, not {shown}")


_PLAIN = (str, bytes, numbers.Number, list, tuple, dict, Path, types.NoneType)
_INT64 = Range(-(2**63), 2**63 - 1)
_signature = functools.cache(inspect.signature)


class _Problem(NamedTuple):
    """A value that does not fit; ``kind_fits`` if only its range, or a value in it, is wrong."""

    where: str
    expected: str
    value: Any
    kind_fits: bool = False


def _problem(value: Any, hint: Any, where: str) -> _Problem | None:
    """Return why ``value`` does not fit ``hint``, or None if it does."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return None
    if origin is Annotated:
        problem = _problem(value, parts[0], where)
        ranges = [part for part in parts[1:] if isinstance(part, Range)]
        wrong = None if problem else next((bounds for bounds in ranges if value not in bounds), None)
        return problem if wrong is None else _Problem(where, str(wrong), value, True)
    if origin in (Union, types.UnionType):
        problems = [_problem(value, part, where) for part in parts]
        found = [problem for problem in problems if problem is not None]
        if len(found) < len(problems):
            return None
        return next((problem for problem in found if problem.kind_fits), _Problem(where, _name(hint), value))
    if origin is Literal:
        known = any(type(value) is type(part) and value == part for part in parts)
        return None if known else _Problem(where, _name(hint), value)
    if hint in (int, float):
        return _number_problem(value, hint, where)
    kind = types.NoneType if hint is None else origin or hint
    if not _is_instance(value, kind):
        return _Problem(where, _name(hint), value)
    return _content_problem(value, kind, parts, where)


def _number_problem(value: Any, kind: type, where: str) -> _Problem | None:
    # bool is a subclass of int, but true is no number here; NumPy's scalars are numbers
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if kind is int else numbers.Real):
        return _Problem(where, _name(kind), value)
    if isinstance(value, numbers.Integral):
        return None if value in _INT64 else _Problem(where, "within 64 bits", value, True)
    return None if math.isfinite(value) else _Problem(where, "finite", value, True)


def _is_instance(value: Any, kind: Any) -> bool:
    if kind is Path:
        return isinstance(value, str | Path)
    if kind in (list, tuple, set, frozenset):  # YAML and JSON only have lists
        return isinstance(value, Sequence | Set) and not isinstance(value, str | bytes)
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return isinstance(value, kind) and (kind is str or not isinstance(value, str | bytes))
    return isinstance(value, kind) if isinstance(kind, type) else True


def _content_problem(value: Any, kind: Any, parts: tuple[Any, ...], where: str) -> _Problem | None:
    """Return the problem of the first wrong item of a list, tuple or dictionary."""
    if not parts or not isinstance(kind, type):
        return None
    problems: list[_Problem | None] = []
    if issubclass(kind, Mapping):
        for key, item in value.items():
            problems += [_problem(key, parts[0], f"a key of {where}"), _problem(item, parts[1], f"{where}.{key}")]
    elif kind is tuple and parts[-1] is not Ellipsis:
        if len(value) != len(parts):
            return _Problem(where, f"{len(parts)} values", value, True)
        problems = [_problem(item, part, f"{where}[{i}]") for i, (item, part) in enumerate(zip(value, parts))]
    elif issubclass(kind, Sequence | Set):
        problems = [_problem(item, parts[0], f"{where}[{i}]") for i, item in enumerate(value)]
    found = next((problem for problem in problems if problem is not None), None)
    return None if found is None else found._replace(kind_fits=True)


def _name(hint: Any) -> str:
    """The name of a type for a message, as a config writes its values."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _name(parts[0])
    if origin is Literal:
        *first, last = map(str, parts)
        return f"one of {', '.join(first)}, {last}" if len(first) > 1 else " or ".join([*first, last])
    if origin in (Union, types.UnionType):
        *first, last = dict.fromkeys(_name(part) for part in parts)
        return f"{', '.join(first)} or {last}" if first else last
    if hint in (None, types.NoneType):
        return "null"
    return getattr(origin or hint, "__name__", str(hint)).lower() if origin else getattr(hint, "__name__", str(hint))
