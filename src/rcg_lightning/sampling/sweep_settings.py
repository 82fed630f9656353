"""Settings of sampling that can be swept, and samples at any of them from one set of representations."""

import inspect
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rcg_lightning.artifacts import file_sha256, fingerprint
from rcg_lightning.cli.compare import samples_folder
from rcg_lightning.cli.sample import sample
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.config import construct, describe
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.data.seed_data_module import SeedDataModule
from rcg_lightning.data.store import MANIFEST, Store
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.protocols import Protocol
from rcg_lightning.evaluation.scorer import Scorer
from rcg_lightning.sampling.loading import Loaded, chosen_labels, condition_key, has, stored_representations
from rcg_lightning.sampling.scoring import ScoredSampling, finisher
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import require

Setting = dict[str, Any]  # name of a swept setting to its value
Precision = Literal["32-true", "bf16-mixed"]
_OF_SAMPLER = ("steps", "eta", "temperature")


@dataclass(frozen=True)
class Asked:
    """What every setting of a sweep is scored on.

    Attributes:
        number: samples of each seed, whose own seeds are first_seed, first_seed + 1, …
        seeds: how often each setting is scored, on other samples each time.
        accelerator, devices, num_nodes: where, and by how many processes.
    """

    number: int
    first_seed: int
    seeds: int
    batch_size: int
    precision: Precision
    accelerator: str = "cpu"
    devices: int | str = 1
    num_nodes: int = 1

    @property
    def total(self) -> int:
        """Samples of all seeds together."""
        return self.number * self.seeds


class Sampling:
    """Samples of a generator at any setting; representations are drawn from the prior once and kept.

    Args:
        loaded: generator and prior.
        asked: how many samples, and where they are made.
        out: folder in which representations are kept.
        prior: the prior's checkpoint, if any.
        representations: a store to take conditions from instead.
        sampler: None for the generator's own.
        guidance: the guidance whose scale is varied; None for the generator's own.
        balanced: every class equally often.
    """

    def __init__(
        self,
        loaded: Loaded,
        asked: Asked,
        out: Path,
        prior: Path | None = None,
        representations: Path | None = None,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        balanced: bool = False,
    ) -> None:
        self.loaded, self.asked, self.out = loaded, asked, out
        self.prior, self.representations, self.balanced = prior, representations, balanced
        self.generator = loaded.generator
        self.sampler, self.guidance = sampler or own_sampler(self.generator), guidance or loaded.generator.guidance
        self.labels = chosen_labels(loaded, None, balanced, asked.total)
        self._drawn: dict[str, Tensor] = {}
        self._weights: dict[str, Any] = {
            "generator": self.generator.identity,
            "prior": loaded.prior and loaded.prior.identity,
            "tile": self.generator.tile,
            **({"weak": self.generator.weak_identity} if self.generator.weak_identity else {}),
        }
        if loaded.instances is not None:
            self._weights["instances"] = loaded.instances.identity
        if representations is not None:
            folder = Store.open(samples_folder(representations)).path
            self._weights["representations"] = file_sha256(folder / MANIFEST)  # which lists every shard's checksum

    def own(self) -> Setting:
        """Return the values of all settings that the generator would use if it were not told any."""
        first, last = self.guidance.interval
        found: Setting = {
            "guidance": self.guidance.scale,
            "interval": f"{first:g}-{last:g}",
            "ema": self.generator.ema_names[0],
        }
        found |= {name: value for name, value in knobs(self.sampler).items() if name in _OF_SAMPLER}
        if self.loaded.prior is not None:
            found["prior_temperature"] = own_sampler(self.loaded.prior).temperature
        return found

    def check(self, setting: Setting) -> None:
        """Raise a UserError where a setting cannot be sampled, before any work is done."""
        self.generator.for_sampling(setting.get("ema"))
        self.generator.checked(self.sampler_at(setting))
        self.generator.check_guidance(self.guidance_at(setting))
        if "prior_temperature" in setting:
            self._prior_sampler(setting)

    def guidance_at(self, setting: Setting) -> Guidance:
        """Return the guidance of a setting."""
        base = self.guidance
        scale = float(setting.get("guidance", base.scale))
        interval = parsed_interval(setting["interval"]) if "interval" in setting else base.interval
        return Guidance(scale, base.ramp, interval, base.channels)

    def sampler_at(self, setting: Setting) -> Sampler:
        """Return the sampler of a setting."""
        return variant(self.sampler, {name: setting[name] for name in _OF_SAMPLER if name in setting})

    def depends_on(self, setting: Setting, seed: int) -> dict[str, Any]:
        """Return, as plain data, everything that the samples of one seed of a setting depend on."""
        prior = None if self.loaded.prior is None else describe(self._prior_sampler(setting))
        return {
            **self._weights,
            "guidance": knobs(self.guidance_at(setting)),
            "sampler": describe(self.sampler_at(setting)),
            "prior_sampler": prior,
            "ema": setting.get("ema", self.generator.ema_names[0]),
            "balanced": self.balanced,
            "seeds": [self.asked.first_seed + seed * self.asked.number, self.asked.number],
            "precision": self.asked.precision,
        }

    def module(self, setting: Setting, scorer: Scorer, protocol: Protocol) -> ScoredSampling:
        """Return what makes the samples of a setting and scores them."""
        guidance, sampler = self.guidance_at(setting), self.sampler_at(setting)
        finish = finisher(protocol, self.generator)
        return ScoredSampling(
            self.generator, [scorer], self.asked.number, finish, guidance, sampler, setting.get("ema")
        )

    def seeds(self, setting: Setting, seed: int) -> SeedDataModule:
        """Return the samples' seeds of one seed of a setting, with their labels and representations."""
        carried = dict(self.labels)
        known = self._representations(setting)
        if known is not None:
            carried[condition_key(self.generator)] = known
        rows = torch.arange(seed * self.asked.number, (seed + 1) * self.asked.number)
        given = {name: values[rows] for name, values in carried.items()}
        return SeedDataModule((rows + self.asked.first_seed).tolist(), self.asked.batch_size, given)

    def _prior_sampler(self, setting: Setting) -> Sampler:
        if self.loaded.prior is None:
            raise UserError("--prior_temperature is the RDM's: it needs a generator conditioned on representations")
        own = own_sampler(self.loaded.prior)
        return variant(own, {"temperature": setting.get("prior_temperature", own.temperature)})

    def _representations(self, setting: Setting) -> Tensor | None:
        """Return conditions (total, R) for all samples of a sweep: one store for all settings but the RDM's own."""
        if self.representations is not None:
            folder = self.representations
        elif self.prior is not None and self.loaded.prior is not None:
            folder = self._draw(self.prior, self.loaded.prior, self._prior_sampler(setting))
        else:
            return None
        if str(folder) not in self._drawn:
            self._drawn = {str(folder): stored_representations(self.generator, folder, self.asked.total)}
        return self._drawn[str(folder)]

    def _draw(self, path: Path, prior: Generator, sampler: Sampler) -> Path:
        """Return the folder of the store of representations that ``sampler`` draws, making it if it is not there."""
        asked = self.asked
        balanced = self.balanced and has(prior.condition, ClassCondition)
        inputs = [prior.identity, describe(sampler), asked.first_seed, asked.total, balanced]
        folder = self.out / "representations" / fingerprint(inputs)
        if not (folder / "store" / MANIFEST).is_file():
            sample(
                path,
                folder,
                asked.total,
                asked.first_seed,
                sampler=sampler,
                balanced=balanced,
                batch_size=asked.batch_size,
                accelerator=asked.accelerator,
                devices=asked.devices,
                num_nodes=asked.num_nodes,
                precision="32-true",  # as a prior is computed inside a generator
            )
        return folder


def own_sampler(generator: Generator) -> Sampler:
    """Return the sampler that a generator uses unless told otherwise."""
    found = getattr(generator, "sampler", None)
    if not isinstance(found, Sampler):
        raise UserError(f"{type(generator).__name__} samples without a sampler that could be swept")
    return found


def knobs(thing: Any) -> dict[str, Any]:
    """Return the plain settings of a Guidance or Sampler, those left at their defaults too."""
    names = list(inspect.signature(type(thing)).parameters)
    found = {name: getattr(thing, name) for name in names if hasattr(thing, name)}
    plain = (str, int, float, bool, tuple, type(None))
    return {name: value for name, value in found.items() if isinstance(value, plain)}


def parsed_interval(text: str) -> tuple[float, float]:
    """Return the interval of guidance that "0.2-0.8" means."""
    try:
        first, last = (float(part) for part in text.split("-"))
    except ValueError as error:
        raise UserError(f"--intervals are such as 0-1,0.2-0.8, not {text}") from error
    return first, last


def variant(sampler: Sampler, changes: dict[str, Any]) -> Sampler:
    """Return a sampler like another one with some settings changed.

    Raises:
        UserError: samplers of this kind have no such setting.
    """
    described = describe(sampler)
    present = knobs(sampler)
    for name in changes:
        kind = type(sampler).__name__
        require(name in present, f"{kind} has no {name}: leave --{name} out, or choose another --sampler, such as DDIM")
    return construct({**described, "init_args": described["init_args"] | present | changes})


def settings_of(axes: dict[str, list[Any]], own: Setting, crossed: bool) -> list[Setting]:
    """Return the settings to score: every combination, or each axis by itself with the others as they are."""
    require(bool(axes), "nothing to sweep: give at least one of --guidance, --steps, --eta, --ema, --temperature, …")
    if crossed:
        found = [dict(zip(axes, values)) for values in product(*axes.values())]
    else:
        base = {name: own.get(name, values[0]) for name, values in axes.items()}
        found = [base | {name: value} for name, values in axes.items() for value in values]
    return list({json.dumps(setting): setting for setting in found}.values())
