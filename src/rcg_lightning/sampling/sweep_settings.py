"""Sampling settings that can be swept, as plain values by name: a generator's own, variants and combinations."""

import inspect
import json
from itertools import product
from typing import Any

from rcg_lightning.config import construct, describe
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.errors import UserError
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import require

Setting = dict[str, Any]  # name of a swept setting -> its value
OF_SAMPLER = ("steps", "eta", "temperature")


def own_sampler(generator: Generator) -> Sampler:
    """Return the sampler that a generator uses where none is given."""
    found = getattr(generator, "sampler", None)
    if not isinstance(found, Sampler):
        raise UserError(f"{type(generator).__name__} samples without a sampler that can be swept")
    return found


def plain_settings(owner: Guidance | Sampler) -> dict[str, Any]:
    """Return the plain settings of guidance or a sampler, including defaults."""
    names = inspect.signature(type(owner).__init__).parameters
    found = {name: getattr(owner, name) for name in names if hasattr(owner, name)}
    plain = (str, int, float, bool, tuple, type(None))
    return {name: value for name, value in found.items() if isinstance(value, plain)}


def parsed_interval(text: str) -> tuple[float, float]:
    """Parse a guidance interval such as "0.2-0.8"."""
    try:
        first, last = (float(part) for part in text.split("-"))
    except ValueError as error:
        raise UserError(f"--intervals takes values such as 0-1,0.2-0.8, not {text}") from error
    return first, last


def variant(sampler: Sampler, changes: dict[str, Any]) -> Sampler:
    """Return a copy of a sampler with some settings changed.

    Raises:
        UserError: this kind of sampler has no such setting.
    """
    described = describe(sampler)
    present = plain_settings(sampler)
    for name in changes:
        kind = type(sampler).__name__
        require(name in present, f"{kind} has no {name}: omit --{name}, or choose another --sampler, such as DDIM")
    return construct({**described, "init_args": described["init_args"] | present | changes})


def settings_of(axes: dict[str, list[Any]], own: Setting, crossed: bool) -> list[Setting]:
    """Return the settings to score: every combination, or each axis alone with the others at their own values."""
    require(bool(axes), "nothing to sweep: give at least one of --guidance, --steps, --eta, --ema, --temperature, …")
    if crossed:
        found = [dict(zip(axes, values)) for values in product(*axes.values())]
    else:
        base = {name: own.get(name, values[0]) for name, values in axes.items()}
        found = [base | {name: value} for name, values in axes.items() for value in values]
    return list({json.dumps(setting): setting for setting in found}.values())
