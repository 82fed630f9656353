"""Base of every generator: codec, condition, EMA weights, and sampling by seed."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from rcg_lightning.arguments import PositiveInt
from rcg_lightning.artifacts import fingerprint
from rcg_lightning.config import describe
from rcg_lightning.core.counter_rng import in_tiles
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.core.transfers import to_device
from rcg_lightning.networks.cast_weights import cast_weights
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.ema import EMA
from rcg_lightning.pretrained.network_folder import state_fingerprint
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.optimization import Optimizer
from rcg_lightning.stages.stage_folder import bundle_parts
from rcg_lightning.stages.warm_start import start_averages
from rcg_lightning.stages.weak_model import Estimates, require_comparable
from rcg_lightning.types import Batch, Codec, Condition, DataSpec, Raw, require, to_uint8

TRAINED = "trained"  # name of the trained weights themselves, next to the names of their EMA weights


class Generator(Stage):
    """A stage that learns p(z | condition) and generates by seed.

    Args:
        codec: image <-> z, the space that is modelled.
        condition: source of the conditions.
        conditioner: embeds the conditions for the network.
        optimizer: settings of the optimizer.
        ema: EMA of the trained weights; None samples with the trained weights themselves.
        guidance: default guidance of sampling.
        ema_conditioner: whether the EMA covers the conditioner (the official RDM leaves it out).
        tile: samples computed together; None for the codec's number. Samples are bit-equal at one tile size only.
        seed: seed of the initial weights.
    """

    def __init__(
        self,
        codec: Codec,
        condition: Condition,
        conditioner: Conditioner,
        optimizer: Optimizer,
        ema: EMA | None = None,
        guidance: Guidance | None = None,
        ema_conditioner: bool = True,
        tile: PositiveInt | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, seed)
        self.codec, self.condition, self.conditioner = codec, condition, conditioner
        self.ema, self.guidance = ema, guidance or Guidance()
        self.ema_conditioner, self.tile = ema_conditioner, tile or codec.tile
        self._weak: tuple[Generator, str | None] | None = None

    @property
    def needs(self) -> frozenset[str]:
        return self.codec.needs | self.condition.needs

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The trained network, without its conditioner."""

    @abstractmethod
    def build_network(self, shape: tuple[int, ...], condition_dim: int) -> int | None:
        """Create the network's parameters for z of ``shape``."""

    @property
    @abstractmethod
    def natural_width(self) -> int:
        """Width of the condition embedding that the network expects."""

    @abstractmethod
    def sample_z(
        self, seeds: Tensor, raw: Raw, guidance: Guidance, sampler: Sampler | None, ema_name: str | None = None
    ) -> Tensor:
        """Return z (B, *shape) for seeds (B,) and their raw conditions, with the networks of ``for_sampling``."""

    def check_sampler(self, sampler: Sampler) -> Sampler:
        """Return ``sampler``; raise UserError where this kind of generator cannot sample with it."""
        return sampler

    def build_networks(self, spec: DataSpec) -> None:
        self.spec = spec = self.codec.extend_spec(spec)
        self.shape = self.codec.shape(spec)
        dim = self.conditioner.build(self.condition.parts(spec), self.natural_width)
        self.build_network(self.shape, dim)
        if self.ema is not None:
            self.ema.build(self._ema_modules())
        encoder = getattr(self.codec, "encoder", None) or getattr(self.condition, "encoder", None)
        if encoder is not None and not spec.encoded_online:
            columns = {**spec.columns, "representation": {"shape": [encoder.dim], "online": True}}
            identities = {**spec.identities, "representation": encoder.identity}
            self.spec = replace(spec, columns=columns, identities=identities)

    def trained_modules(self) -> list[nn.Module]:
        return [self.network, self.conditioner]

    def networks(self) -> list[nn.Module]:
        return [self.network]

    def sampling_networks(self, ema_name: str | None = None) -> list[nn.Module]:
        """The networks that sampling with the weights ``ema_name`` calls."""
        return [self.for_sampling(ema_name)[0]]

    def after_step(self) -> None:
        if self.ema is not None:
            self.ema.update(self._ema_modules(), self.guard.skip)

    def _ema_modules(self) -> Mapping[str, nn.Module]:
        modules = {"network": self.network}
        return {**modules, "conditioner": self.conditioner} if self.ema_conditioner else modules

    @property
    def ema_names(self) -> list[str]:
        """Names of the weights that can be sampled with: of each EMA, the default first, and TRAINED."""
        return [*(self.ema.decays if self.ema is not None else ()), TRAINED]

    def for_sampling(self, ema_name: str | None = None) -> tuple[nn.Module, Conditioner]:
        """Return network and conditioner to sample with.

        Args:
            ema_name: one of ``ema_names``; None for the first.

        Raises:
            UserError: there are no weights of this name.
        """
        name = ema_name or self.ema_names[0]
        require(name in self.ema_names, f"no EMA weights {name!r}: this generator has {', '.join(self.ema_names)}")
        modules = {"network": self.network, "conditioner": self.conditioner}
        if self.ema is not None and name != TRAINED:
            modules |= dict(self.ema.averaged(name).items())
        return modules["network"], modules["conditioner"]  # type: ignore[return-value]

    # -- guiding network -----------------------------------------------------------------------------------------------

    def use_weak(self, weak: "Generator | None" = None, ema_name: str | None = None) -> None:
        """Autoguidance: guide away from a weaker model under the same condition, instead of from the null condition.

        It works without any condition, too (Karras et al. 2024, Guiding a diffusion model with a bad version of
        itself).

        Args:
            weak: generator of the same space, trained less or smaller; None for other weights of this generator.
            ema_name: name of its EMA weights; None for the first of its ``ema_names``.

        Raises:
            UserError: the weaker model has another space or reads another condition.
        """
        require(weak is not None or ema_name is not None, "give a weaker model, or other weights of this generator")
        weak = weak or self
        weak.for_sampling(ema_name)
        self.check_weak(weak)
        self._weak = (weak, ema_name)  # a tuple hides the module: in no checkpoint, EMA or DDP bucket

    def check_weak(self, weak: "Generator") -> None:
        """Raise a UserError where the estimates of ``weak`` cannot be compared with this generator's."""
        assert self.spec is not None, "a generator is built before it is guided"
        assert weak.spec is not None, "the weaker model is built before it guides"
        mine, other = self.condition.parts(self.spec), weak.condition.parts(weak.spec)
        require_comparable(
            Estimates(self.codec.makes, self.shape, mine, self.spec.identities),
            Estimates(weak.codec.makes, weak.shape, other, weak.spec.identities),
        )

    @property
    def weak_identity(self) -> list[str] | None:
        """Identity of the weaker model and name of its weights; None without a weaker model."""
        if self._weak is None:
            return None
        weak, ema_name = self._weak
        return [weak.identity, ema_name or weak.ema_names[0]]

    def guiding_network(self, raw: Raw, n: int, ema_name: str | None = None) -> tuple[nn.Module, Tensor]:
        """Return the network and condition embedding (n, D) whose estimate guidance moves away from.

        Raises:
            UserError: there is neither a null condition nor a weaker model.
        """
        if self._weak is None:
            network, conditioner = self.for_sampling(ema_name)
            return network, conditioner.null(n)
        weak, ema_name = self._weak
        device = next(self.network.parameters()).device
        network, conditioner = weak.eval().to(device).for_sampling(ema_name)
        return network, conditioner(raw, n).to(device)

    def check_guidance(self, guidance: Guidance) -> None:
        """Raise a UserError where there is neither a null condition nor a weaker model to guide away from."""
        if guidance.scale != 1 and self._weak is None:
            self.conditioner.null(1)
        channels = self.codec.shape(self.spec)[0] if self.spec is not None else None
        fits = channels is None or guidance.channels is None or guidance.channels <= channels
        require(fits, f"guidance.channels should be at most {channels}, the channels here, not {guidance.channels}")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Sample under the condition of each image; the seed is the image's position in the data set."""
        seeded: Batch = {"seed": batch["index"], **self.observed_conditions(batch)}  # type: ignore[typeddict-item]
        # a batch of images would fill a small part of a large tile, and compute all of it
        return self.columns(self.sample(seeded, tile=min(self.tile, Codec.tile)))

    def columns(self, samples: Tensor) -> dict[str, Tensor]:
        """Return samples as a column of a store: images as (B, H, W, C) uint8, as in image files."""
        if self.codec.makes == "image":
            return {"image": to_uint8(samples).permute(0, 2, 3, 1)}
        return {self.codec.makes: samples}

    def observed_conditions(self, batch: Batch) -> dict[str, Tensor]:
        """Return the conditions of real images, under the keys that ``sample`` reads."""
        conditions: dict[str, Tensor] = {name: batch[name] for name in self.condition.needs if name != "image"}  # type: ignore
        encoder = getattr(self.condition, "encoder", None)
        if encoder is not None:
            conditions["representation"] = encoder(batch["image"])
        return conditions

    def after_start(self, fresh: frozenset[str]) -> list[str]:
        return [] if self.ema is None else start_averages(self, self.ema, self._ema_modules(), fresh)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Self:
        """Rebuild a generator as ``Stage.load`` does; from a bundle, with its prior, instances and autoencoder."""
        generator = super().load(path, device)
        parts = bundle_parts(path)
        if "prior" in parts:
            generator.condition.use_prior(parts["prior"])
        if "instances" in parts:
            generator.condition.use_instances(parts["instances"])
        if "autoencoder" in parts:
            generator.codec.use_autoencoder(parts["autoencoder"])
        return generator

    @property
    def identity(self) -> str:
        """Short hash of the weights and settings."""
        return fingerprint([state_fingerprint(self.state_dict()), describe(self)])

    def forward(self, seed: Tensor, label: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        """Sample for seeds (B,) and, if given, labels and positions, as the prior of another generator."""
        given = {"seed": seed, "label": label, "position": position}
        batch: Any = {name: values for name, values in given.items() if values is not None}
        return self.sample(batch)

    @torch.no_grad()
    def sampled_conditions(self, batch: Batch) -> Raw:
        """Return the raw conditions of ``batch["seed"]``, sampled where the batch does not give them, on the device."""
        batch = self.condition.completed(batch)  # where the seeds are: stored conditions are read on the host
        return tuple(to_device(part, self.device) for part in self.condition.sample(self._placed(batch)))

    def _placed(self, batch: Batch) -> Batch:
        """Return the batch with its positions, by default the seeds, on the host and its seeds on the device."""
        positions = batch.get("position", batch["seed"]).cpu()
        return {**batch, "position": positions, "seed": to_device(batch["seed"], self.device)}

    @torch.no_grad()
    def sample(
        self,
        batch: Batch,
        guidance: Guidance | None = None,
        sampler: Sampler | None = None,
        ema_name: str | None = None,
        raw: Raw | None = None,
        tile: int | None = None,
    ) -> Tensor:
        """Generate one decoded sample for each ``batch["seed"]``.

        A sample depends only on its seed, and on its condition where the batch gives one: it is bit-equal for any batch
        size and number of processes, at one tile size. The row of a tile that computes it follows from its seed, or
        from ``position`` where the batch has it. The host waits for the device only if seeds or labels are on it.

        Args:
            batch: ``seed`` (B,) and, optionally, ``position`` and conditions to use instead of sampled ones.
            guidance, sampler: None for the generator's own.
            ema_name: name of the EMA weights to sample with; None for the first of ``ema_names``.
            raw: raw conditions of the batch; None samples them.
            tile: samples that are computed together; None for the generator's own number.
        """
        was_training = self.training
        self.eval()
        placed = self._placed(batch)
        given = self.sampled_conditions({**batch, "position": placed["position"]}) if raw is None else raw

        def compute(index: Tensor) -> Tensor:
            tile_raw = tuple(part[index] for part in given)
            z = self.sample_z(placed["seed"][index], tile_raw, guidance or self.guidance, sampler, ema_name)
            return self.codec.decode(z)

        with cast_weights(self.sampling_networks(ema_name), self.device):
            samples = in_tiles(compute, placed["position"], tile or self.tile, self.device)
        self.train(was_training)
        return samples
