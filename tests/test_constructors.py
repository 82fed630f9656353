"""Every constructor that a config may name builds or raises UserError, whatever values it is given.

RCG_EXAMPLES sets the number of examples for each class; the default takes seconds.
"""

import inspect
import os
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from rcg_lightning import class_modules  # noqa: F401
from rcg_lightning.arguments import Checked, Range, annotations
from rcg_lightning.config import ConfigMixin
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation import protocols  # noqa: F401
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.heads import LinearHead
from rcg_lightning.pretrained.timm_encoder import TimmNetwork
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.trainer import Trainer

# required arguments whose type does not say what fits
FITTING = {AdversarialStage: {"conditioner": Conditioner(drop=0)}, TimmNetwork: {"name": "resnet18"}}
EXAMPLES = int(os.environ.get("RCG_EXAMPLES", "12"))
INTS = [-(2**100), -(2**63), -2, -1, 0, 1, 2, 3, 4, 7, 8, 16, 2**31, 2**63, 10**400]
FLOATS = [-1e308, -1.0, -1e-9, 0.0, 1e-300, 1e-9, 0.1, 0.5, 0.999, 1.0, 1.5, 100.0, 1e308, float("nan"), float("inf")]
WRONG = [None, True, "", "x", "1", 1, 0.5, -1, [], [1], {}, {"a": 1}, (), b"x", np.float32(0.5), np.int64(2), object]


def below(kind: type) -> Iterator[type]:
    for child in type.__subclasses__(kind):
        yield child
        yield from below(child)


def is_abstract(kind: type) -> bool:
    return any(getattr(getattr(kind, name, None), "__isabstractmethod__", False) for name in dir(kind))


def concrete(kind: type) -> list[type]:
    """The project's classes that can be built where ``kind`` is expected, in a fixed order."""
    found = {each for each in (kind, *below(kind)) if each.__module__.startswith("rcg_lightning.")}
    return sorted((each for each in found if not is_abstract(each)), key=lambda each: each.__qualname__)


# a Trainer starts more than it stores, and is tested for itself
KINDS = [kind for kind in concrete(ConfigMixin) + concrete(Checked) if kind not in (ConfigMixin, Checked, Trainer)]


@cache
def parameters(kind: type) -> dict[str, tuple[Any, bool]]:
    """Argument of a constructor -> (annotation, whether it is required)."""
    hints = annotations(kind.__init__)
    _, *known = inspect.signature(kind.__init__).parameters.values()  # torch.compile annotates nn.Module's self
    named = [each for each in known if each.kind is each.POSITIONAL_OR_KEYWORD and each.name in hints]
    return {each.name: (hints[each.name], each.default is each.empty) for each in named}


def range_of(hint: Any) -> Range | None:
    return next((part for part in get_args(hint) if isinstance(part, Range)), None)


def valid(hint: Any) -> Any:
    """Return one value that fits an annotation."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = range_of(hint)
        if bounds is None:
            return valid(parts[0])
        return next(value for value in (8, 1, 0, 0.5) if value in bounds and (parts[0] is float or value == int(value)))
    if origin in (Union, types.UnionType, Literal):
        return parts[0] if origin is Literal else valid(parts[0])
    if hint in (int, float, str, bool):
        return hint(1)
    if origin is tuple and parts[-1] is not Ellipsis:
        return tuple(valid(part) for part in parts)
    if origin is not None:
        return {} if issubclass(origin, Mapping) else [valid(parts[0])]
    if hint is nn.Module:
        return LinearHead(8, 8)
    return Path("nowhere") if hint is Path else build(concrete(hint)[0])


def required(kind: type) -> dict[str, Any]:
    found = {name: valid(hint) for name, (hint, needed) in parameters(kind).items() if needed}
    return found | FITTING.get(kind, {})


def build(kind: type, **given: Any) -> Any:
    # sizes allocate nothing
    with torch.device("meta"):
        return kind(**{**required(kind), **given})


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of an annotated type: fitting ones and those at and beyond the edges."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = range_of(hint)
        if bounds is None:
            return values(parts[0])
        ends = [end for end in (bounds.low, bounds.high) if end is not None]
        near = [value for end in ends for value in (end, end + 1, end - 1)]
        # a valid size far above these would build for seconds
        edges = [value for value in near if abs(value) < 100 or value not in bounds]
        return st.sampled_from(edges) | values(parts[0])
    if origin in (Union, types.UnionType):
        return st.one_of([values(part) for part in parts])
    if origin is Literal:
        return st.sampled_from(parts) | st.text(max_size=3)
    if hint in (None, types.NoneType):
        return st.none()
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.sampled_from(INTS)
    if hint is float:
        return st.sampled_from(FLOATS) | st.sampled_from(INTS)
    if hint is str:
        return st.text(max_size=6)
    if hint is Path:
        return st.sampled_from([Path("nowhere"), Path(), "nowhere", ""])
    if origin is tuple and parts[-1] is not Ellipsis:
        return st.tuples(*map(values, parts)) | st.lists(values(parts[0]), max_size=len(parts) + 1)
    if origin is not None and issubclass(origin, Mapping):
        return st.dictionaries(values(parts[0]), values(parts[1]), max_size=3)
    if origin is not None:
        return st.lists(values(parts[0]), max_size=4)
    if hint is nn.Module:
        return st.sampled_from([nn.Identity(), nn.Linear(2, 2)])
    if hint in (Tensor, Callback):
        return st.none()
    return st.sampled_from(concrete(hint)).map(build)


@st.composite
def arguments(draw: st.DrawFn, kind: type) -> dict[str, Any]:
    """Up to three arguments of a constructor; the others keep their defaults."""
    known = parameters(kind)
    names = draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3, unique=True))
    return {
        name: draw(st.one_of(values(known[name][0]), values(known[name][0]), st.sampled_from(WRONG))) for name in names
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__.rpartition('.')[2]}.{kind.__qualname__}")
def test_a_constructor_builds_or_reports(kind):
    assert isinstance(build(kind), kind)
    if not parameters(kind):
        return

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(given_arguments=arguments(kind))
    def builds_or_reports(given_arguments):
        with suppress(UserError):
            assert isinstance(build(kind, **given_arguments), kind)

    builds_or_reports()


def test_no_constructor_is_missed():
    assert len(KINDS) > 120
