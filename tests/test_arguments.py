import copy
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from rcg_lightning.arguments import BelowOne, Checked, PositiveFloat, PositiveInt, Range, check_arguments
from rcg_lightning.config import ConfigMixin, construct
from rcg_lightning.errors import UserError


class Part(ConfigMixin):
    def __init__(self, size: PositiveInt = 1) -> None:
        self.size = size


class Whole(ConfigMixin):
    def __init__(
        self,
        count: int = 1,
        rate: float = 0.1,
        flag: bool = False,
        name: str = "",
        mode: Literal["a", "b", 3] = "a",
        folder: Path | None = None,
        part: Part | None = None,
        parts: list[Part] | None = None,
        pair: tuple[float, float] = (0.0, 1.0),
        widths: Sequence[PositiveInt] = (1,),
        decay: BelowOne | dict[str, BelowOne] = 0.9,
        limit: PositiveInt | None = None,
        scale: PositiveFloat = 1.0,
        table: Mapping[str, int] | None = None,
        run: Callable[[], None] | None = None,
        anything: Any = None,
        untyped=None,
    ) -> None:
        self.count = count


FITTING = {
    "count": [0, -5, np.int64(3), 2**63 - 1],
    "rate": [0.5, 2, -1.0, np.float32(0.5), np.int32(2)],
    "flag": [True],
    "name": ["", "x"],
    "mode": ["b", 3],
    "folder": [None, Path("x"), "x"],
    "part": [None, Part()],
    "parts": [[], [Part(), Part(2)], (Part(),)],
    "pair": [(0, 1), [0.5, 2]],
    "widths": [(1, 2), [3], []],
    "decay": [0, 0.5, {"fast": 0.5}, {}],
    "limit": [None, 1],
    "scale": [1e-9, 3],
    "table": [{"a": 1}],
    "run": [print, None],
    "anything": [object()],
    "untyped": [object()],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in FITTING for value in FITTING[name]])
def test_a_value_of_the_annotated_type_and_range_is_accepted(name, value):
    Whole(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", True, "Whole: count should be int, not True"),
        ("count", 1.0, "Whole: count should be int, not 1.0"),
        ("count", None, "Whole: count should be int, not None"),
        ("count", 2**63, "Whole: count should be within 64 bits, not 9223372036854775808"),
        ("rate", "0.1", "Whole: rate should be float, not '0.1'"),
        ("rate", math.nan, "Whole: rate should be finite, not nan"),
        ("rate", -math.inf, "Whole: rate should be finite, not -inf"),
        ("flag", 1, "Whole: flag should be bool, not 1"),
        ("name", 3, "Whole: name should be str, not 3"),
        ("mode", "c", "Whole: mode should be one of a, b, 3, not 'c'"),
        ("folder", 3, "Whole: folder should be Path or null, not 3"),
        ("part", 3, "Whole: part should be Part or null, not 3"),
        ("part", Whole(), "Whole: part should be Part or null, not a Whole"),
        ("parts", [Part(), 1], "Whole: parts[1] should be Part, not 1"),
        ("parts", Part(), "Whole: parts should be list or null, not a Part"),
        ("pair", (1.0, 2.0, 3.0), r"Whole: pair should be 2 values, not (1.0, 2.0, 3.0)"),
        ("pair", (1.0, math.inf), "Whole: pair[1] should be finite, not inf"),
        ("widths", "12", "Whole: widths should be sequence, not '12'"),
        ("widths", [4, 0], "Whole: widths[1] should be at least 1, not 0"),
        ("decay", 1.0, "Whole: decay should be in [0, 1), not 1.0"),
        ("decay", {"slow": math.nan}, "Whole: decay.slow should be finite, not nan"),
        ("decay", {3: 0.5}, "Whole: a key of decay should be str, not 3"),
        ("decay", "x", "Whole: decay should be float or dict, not 'x'"),
        ("limit", 0, "Whole: limit should be at least 1, not 0"),
        ("scale", 0, "Whole: scale should be above 0, not 0"),
        ("table", {"a": "b"}, "Whole: table.a should be int, not 'b'"),
        ("run", 3, "Whole: run should be callable or null, not 3"),
    ],
)
def test_any_other_value_is_rejected_with_the_place_and_what_fits(name, value, message):
    with pytest.raises(UserError) as caught:
        Whole(**{name: value})
    assert str(caught.value) == message


def test_a_description_is_checked_before_anything_is_built_from_it(monkeypatch):
    built = []
    monkeypatch.setattr(Part, "__init__", _recorded(Part.__init__, built))
    for value in (0, 10**30, "rm", None, [1]):
        with pytest.raises(UserError, match="Part: size should be"):
            construct({"class_path": f"{__name__}.Part", "init_args": {"size": value}})
    assert built == []


def _recorded(constructor, built):
    def init(self, size: PositiveInt = 1) -> None:
        built.append(size)
        constructor(self, size)

    return init


class Watcher(Checked):
    def __init__(self, every: PositiveInt, **more: int) -> None:
        self.every = every


def test_a_class_without_description_is_checked_too():
    assert Watcher(every=2, other="x").every == 2
    with pytest.raises(UserError, match=r"^Watcher: every should be at least 1, not 0$"):
        Watcher(0)
    for copied in (copy.deepcopy(Watcher(3)), pickle.loads(pickle.dumps(Watcher(3)))):
        assert copied.every == 3


def test_a_function_is_checked_by_its_annotations():
    def sample(number: PositiveInt = 1, interval: list[Annotated[float, Range(0, 1)]] | None = None) -> None: ...

    check_arguments(sample, {"number": 1, "interval": [0, 1.0], "unknown": 3}, "--")
    with pytest.raises(UserError, match=r"^--interval\[1\] should be in \[0, 1\], not 2$"):
        check_arguments(sample, {"interval": [0, 2]}, "--")


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        (Range(1), "at least 1"),
        (Range(0, above=True), "above 0"),
        (Range(high=5), "at most 5"),
        (Range(high=5, below=True), "below 5"),
        (Range(0, 1), "in [0, 1]"),
        (Range(0, 1, above=True, below=True), "in (0, 1)"),
        (Range(1, 65536), "in [1, 65536]"),
    ],
)
def test_a_range_names_its_bounds(bounds, text):
    assert repr(bounds) == text


@pytest.mark.parametrize("value", [0, 1, 0.5])
def test_a_range_holds_its_bounds(value):
    assert value in Range(0, 1)


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (0, Range(0, 1, above=True)),
        (1, Range(0, 1, below=True)),
        (2, Range(0, 1)),
        (-1, Range(0)),
        (math.nan, Range(0)),
        (math.nan, Range(high=0)),
    ],
)
def test_a_range_excludes_everything_else(value, bounds):
    assert value not in bounds
