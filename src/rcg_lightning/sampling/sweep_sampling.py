"""Sample a generator at any setting of a sweep, from one set of representations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rcg_lightning.artifacts import file_sha256, fingerprint
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.joint import has
from rcg_lightning.config import describe
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.data.seed_data_module import SeedDataModule
from rcg_lightning.data.store import MANIFEST, Store
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.protocols import Protocol
from rcg_lightning.evaluation.sample_readers import samples_folder
from rcg_lightning.evaluation.scorer import Scorer
from rcg_lightning.sampling.generation import write_samples
from rcg_lightning.sampling.loading import (
    Loaded,
    chosen_guidance,
    chosen_labels,
    condition_key,
    stored_representations,
)
from rcg_lightning.sampling.scoring import ScoredSampling, finisher
from rcg_lightning.sampling.sweep_settings import (
    OF_SAMPLER,
    Setting,
    own_sampler,
    parsed_interval,
    plain_settings,
    variant,
)
from rcg_lightning.stages.generator import Generator
from rcg_lightning.trainer import Trainer

Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True)
class SampleRequest:
    """The samples on which every setting of a sweep is scored.

    Attributes:
        number: samples per scoring seed; the samples have the seeds first_seed, first_seed + 1, …
        seeds: number of scores of each setting, each on other samples.
        batch_size: of sampling.
        precision: of sampling.
        accelerator, devices, num_nodes: hardware and number of processes.
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
        """Number of samples of all seeds together."""
        return self.number * self.seeds

    def trainer(self, folder: Path, **settings: Any) -> Trainer:
        """Return a trainer for sampling, with further settings of ``Trainer``."""
        given = {"precision": self.precision, "logger": False, **settings}
        return Trainer(folder, accelerator=self.accelerator, devices=self.devices, num_nodes=self.num_nodes, **given)


class SweepSampling:
    """Samples of a generator at any setting; representations are sampled from the prior once and stored.

    Args:
        loaded: generator with its prior or instances.
        asked: number of samples and hardware.
        out: folder for the stored representations.
        representations: a store of conditions, used instead of the prior.
        sampler: None for the generator's own.
        guidance: whose scale and interval are varied; None for the generator's own.
        balanced: sample every class equally often.
    """

    def __init__(
        self,
        loaded: Loaded,
        asked: SampleRequest,
        out: Path,
        representations: Path | None = None,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        balanced: bool = False,
    ) -> None:
        self.loaded, self.asked, self.out = loaded, asked, out
        self.representations, self.balanced = representations, balanced
        self.generator = loaded.generator
        self.sampler, self.guidance = sampler or own_sampler(self.generator), guidance or loaded.generator.guidance
        self.labels = chosen_labels(loaded, None, balanced, asked.total)
        self._read: dict[str, Tensor] = {}
        self._weights: dict[str, Any] = {
            "generator": self.generator.identity,
            "prior": loaded.prior and loaded.prior.identity,
            "tile": self.generator.tile,
            **({"prior_tile": loaded.prior.tile} if loaded.prior else {}),
            **({"weak": self.generator.weak_identity} if self.generator.weak_identity else {}),
        }
        if getattr(self.generator.codec, "precision", "highest") != "highest":
            self._weights["autoencoder"] = self.generator.codec.identity  # type: ignore[attr-defined]
        if loaded.instances is not None:
            self._weights["instances"] = loaded.instances.identity
        if representations is not None:
            folder = Store.open(samples_folder(representations)).path
            self._weights["representations"] = file_sha256(folder / MANIFEST)  # it lists every shard's checksum

    def own(self) -> Setting:
        """Return the generator's own value of every setting."""
        first, last = self.guidance.interval
        found: Setting = {
            "guidance": self.guidance.scale,
            "interval": f"{first:g}-{last:g}",
            "ema": self.generator.ema_names[0],
        }
        found |= {name: value for name, value in plain_settings(self.sampler).items() if name in OF_SAMPLER}
        if self.loaded.prior is not None:
            found["prior_temperature"] = own_sampler(self.loaded.prior).temperature
        return found

    def check(self, setting: Setting) -> None:
        """Raise a UserError, before any work, where a setting cannot be sampled."""
        self.generator.for_sampling(setting.get("ema"))
        self.generator.check_sampler(self.sampler_at(setting))
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
        return variant(self.sampler, {name: setting[name] for name in OF_SAMPLER if name in setting})

    def depends_on(self, setting: Setting, seed: int) -> dict[str, Any]:
        """Return, as plain data, all inputs of the samples of one setting and seed."""
        prior = None if self.loaded.prior is None else describe(self._prior_sampler(setting))
        return {
            **self._weights,
            "guidance": plain_settings(self.guidance_at(setting)),
            "sampler": describe(self.sampler_at(setting)),
            "prior_sampler": prior,
            "ema": setting.get("ema", self.generator.ema_names[0]),
            "balanced": self.balanced,
            "seeds": [self.asked.first_seed + seed * self.asked.number, self.asked.number],
            "precision": self.asked.precision,
        }

    def module(self, setting: Setting, scorer: Scorer, protocol: Protocol) -> ScoredSampling:
        """Return the module that samples and scores a setting."""
        guidance, sampler = self.guidance_at(setting), self.sampler_at(setting)
        finish = finisher(protocol, self.generator)
        return ScoredSampling(
            self.generator, [scorer], self.asked.number, finish, guidance, sampler, setting.get("ema")
        )

    def seeds(self, setting: Setting, seed: int) -> SeedDataModule:
        """Return the samples' seeds of one setting and scoring seed, with their labels and representations."""
        carried = dict(self.labels)
        known = self._representations(setting)
        if known is not None:
            carried[condition_key(self.generator)] = known
        rows = torch.arange(seed * self.asked.number, (seed + 1) * self.asked.number)
        given = {name: values[rows] for name, values in carried.items()}
        seeds = (rows + self.asked.first_seed).tolist()
        return SeedDataModule(seeds, self.asked.batch_size, given, self.generator.tile)

    def _prior_sampler(self, setting: Setting) -> Sampler:
        if self.loaded.prior is None:
            raise UserError(
                "--prior_temperature belongs to the RDM: it needs a generator conditioned on representations"
            )
        own = own_sampler(self.loaded.prior)
        return variant(own, {"temperature": setting.get("prior_temperature", own.temperature)})

    def _representations(self, setting: Setting) -> Tensor | None:
        """Return conditions (total, R) for all samples of a sweep: one store per sampler of the RDM."""
        if self.representations is not None:
            folder = self.representations
        elif self.loaded.prior is not None:
            folder = self._sampled(self.loaded.prior, self._prior_sampler(setting))
        else:
            return None
        if str(folder) not in self._read:
            self._read = {str(folder): stored_representations(self.generator, folder, self.asked.total)}
        return self._read[str(folder)]

    def _sampled(self, prior: Generator, sampler: Sampler) -> Path:
        """Return the folder of the representations that ``sampler`` samples; sample them if it does not exist."""
        asked = self.asked
        balanced = self.balanced and has(prior.condition, ClassCondition)
        settings = [describe(sampler), prior.tile, balanced, asked.precision]
        inputs = [prior.identity, *settings, asked.first_seed, asked.total]
        folder = self.out / "representations" / fingerprint(inputs)
        if not _is_complete(folder / "store"):
            alone = Loaded(prior, None)
            labels = chosen_labels(alone, None, balanced, asked.total)
            seeds = range(asked.first_seed, asked.first_seed + asked.total)
            trainer = asked.trainer(folder)
            data = SeedDataModule(seeds, asked.batch_size, labels, prior.tile)
            write_samples(alone, data, folder / "store", trainer, chosen_guidance(prior), prior.check_sampler(sampler))
        return folder


def _is_complete(folder: Path) -> bool:
    """Whether a store is complete and whole; a damaged one is completed again."""
    try:
        Store.open(folder)
    except UserError:
        return False
    return True
