"""Adversarial generators under every condition: the conditional GAN of 2014, BigGAN, IC-GAN are other configs."""

import logging
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rcg_lightning.core.adversarial import (
    AdversarialLoss,
    GradientPenalty,
    Hinge,
    LeCam,
    OneStep,
    PathLength,
    accuracy,
    mean_distance,
    path_lengths,
)
from rcg_lightning.core.counter_rng import VALIDATION_STREAM, SeededNoise
from rcg_lightning.core.diffaugment import Augmentation
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.errors import UserError
from rcg_lightning.networks.adversarial import DiscriminatorNetwork, GeneratorNetwork, NormalNoise
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.ema import EMA
from rcg_lightning.stages.alternating import AlternatingStage, OptimizedNetwork
from rcg_lightning.stages.distributed import average
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.optimization import Optimizer
from rcg_lightning.types import Batch, Codec, Condition, DataSpec, Raw, require

log = logging.getLogger(__name__)

WINDOW = 100  # steps over which the discriminator's accuracies are averaged before they are judged
PINNED = 0.995  # an accuracy on both sides from which the generator learns nothing more
UNIFORM = 0.05  # a diversity below it, relative to real images', is a collapse
WATCHED = 64  # samples whose diversity is watched


class AdversarialStage(AlternatingStage, Generator):
    """A generator and a discriminator that is told the same condition.

    In a step the discriminator moves ``n_critic`` times, then the generator once, each by its share of the batch: see
    ``AlternatingStage``. Images made and real go through the discriminator together, those made first, as in the
    official BigGAN and IC-GAN, but for one that compares the images of a batch (StyleGAN2). What is made in training
    is made under the conditions of the batch's images.

    Validation logs how often the discriminator is right on evaluation images and on what is made under their
    conditions, and the diversity of the samples of 64 fixed seeds relative to that of real images: under as many
    images' conditions, and under the condition of one. A warning says when the generator has collapsed or the
    discriminator has won.

    Args:
        generator: noise and condition to an example.
        discriminator: example and condition to logits.
        optimizer: the generator's.
        discriminator_optimizer: the discriminator's.
        discriminator_conditioner: how the discriminator reads the condition; only where there is none may it be None.
        loss: what both minimise; ``Hinge`` by default.
        penalty: gradient penalty on real examples.
        lecam: a penalty on the discriminator's logits, for few images.
        path_length: a penalty on the generator's styles, where it has styles (StyleGAN2).
        augmentation: disturbs whatever the discriminator sees, real or made.
        n_critic: moves of the discriminator in a step.
        accumulate: parts of a share whose gradients are added up for a move.
        codec, condition, conditioner, ema, ema_conditioner, tile, seed: see ``Generator``.
    """

    accuracies: Tensor
    mean_logits: Tensor
    mean_length: Tensor

    def __init__(
        self,
        codec: Codec,
        condition: Condition,
        generator: GeneratorNetwork,
        discriminator: DiscriminatorNetwork,
        conditioner: Conditioner,
        optimizer: Optimizer,
        discriminator_optimizer: Optimizer,
        discriminator_conditioner: Conditioner | None = None,
        loss: AdversarialLoss | None = None,
        penalty: GradientPenalty | None = None,
        lecam: LeCam | None = None,
        path_length: PathLength | None = None,
        augmentation: Augmentation | None = None,
        n_critic: int = 1,
        accumulate: int = 1,
        ema: EMA | None = None,
        ema_conditioner: bool = True,
        tile: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(
            codec, condition, conditioner, optimizer, ema, ema_conditioner=ema_conditioner, tile=tile, seed=seed
        )
        conditioners = [each for each in (conditioner, discriminator_conditioner) if each is not None]
        dropped = "an adversarial generator is not guided, so it never does without its condition"
        require(all(each.drop == 0 for each in conditioners), f"{dropped}: set drop to 0 in both conditioners")
        require(
            n_critic > 0, f"AdversarialStage: the discriminator moves at least once in a step, not {n_critic} times"
        )
        self.generator, self.discriminator = generator, discriminator
        self.discriminator_optimizer, self.discriminator_conditioner = (
            discriminator_optimizer,
            discriminator_conditioner,
        )
        self.loss, self.penalty, self.augmentation = loss or Hinge(), penalty, augmentation
        self.lecam, self.path_length = lecam, path_length
        styled = hasattr(generator, "styles") and hasattr(generator, "synthesise")
        kind = type(generator).__name__
        require(path_length is None or styled, f"{kind} has no styles, so no path_length either: set it to null")
        self.n_critic, self.accumulate = n_critic, accumulate
        self.register_buffer("mean_logits", torch.zeros(2))  # of late, of real and of made examples
        self.register_buffer("mean_length", torch.zeros(()))
        self.register_buffer("accuracies", torch.full((2,), 0.5), persistent=False)  # of late, on real and on made
        self._watched: Batch = {}

    @property
    def network(self) -> nn.Module:
        return self.generator

    def networks(self) -> list[nn.Module]:
        # penalties differentiate twice, which compiled networks do not: what has one is not compiled
        making = [self.generator] if self.path_length is None else []
        return [*making, *([self.discriminator] if self.penalty is None else [])]

    @property
    def natural_width(self) -> int:
        return self.generator.condition_width(self.shape)

    def build_network(self, shape: tuple[int, ...], condition_dim: int) -> None:
        self.generator.build(shape, condition_dim)

    def build_networks(self, spec: DataSpec) -> None:
        discrete = self.codec.count(spec) is not None
        require(not discrete, "an adversarial generator makes continuous values: choose another codec than tokens")
        super().build_networks(spec)
        parts, embed = self.condition.parts(self.spec or spec), self.discriminator_conditioner
        dim = embed.build(parts, self.discriminator.condition_width(self.shape)) if embed is not None else 0
        blind = "the generator has a condition and the discriminator reads none, so it could not check it"
        require(dim > 0 or not parts, f"{blind}: set discriminator_conditioner, and a discriminator that is told one")
        self.discriminator.build(self.shape, dim)

    # -- training ------------------------------------------------------------------------------------------------------

    def optimized_networks(self) -> list[OptimizedNetwork]:
        modules = [self.discriminator, self.discriminator_conditioner]
        seeing = [module for module in modules if module is not None]
        return [
            OptimizedNetwork(
                "discriminator", seeing, self.discriminator_optimizer, self.discriminator_losses, self.n_critic
            ),
            OptimizedNetwork("generator", [self.generator, self.conditioner], self.optimizer, self.generator_losses),
        ]

    def generator_losses(self, batch: Batch) -> dict[str, Tensor]:
        raw, n = self.condition.observe(batch), len(batch["index"])
        losses = {"loss": self.loss.generator(self.discriminate(self.made(batch, raw), raw, n))}
        if self.training and self.path_length is not None and self.path_length.due(self.steps):
            losses["path_length"] = self._path_penalty(self.path_length, raw, n, batch["index"].device)
            losses["loss"] = losses["loss"] + losses["path_length"]
        return losses

    def _path_penalty(self, penalty: PathLength, raw: Raw, n: int, device: torch.device) -> Tensor:
        rows = max(n // penalty.shrink, 1)
        noise = self.generator.noise_distribution.random(rows, self.generator.noise_dim, device)
        c = self.conditioner(tuple(part[:rows] for part in raw), rows).to(device)
        styles = self.generator.styles(noise, c)  # type: ignore[operator]
        with twice_differentiable():
            lengths = path_lengths(self.generator.synthesise(styles), styles)  # type: ignore[operator]
        mean = lengths.detach().mean()
        average([mean])
        self.mean_length.lerp_(mean, penalty.decay)
        return penalty(lengths, self.mean_length.clone())

    def discriminator_losses(self, batch: Batch) -> dict[str, Tensor]:
        real, raw, n = self.codec.encode(batch), self.condition.observe(batch), len(batch["index"])
        with torch.no_grad():
            fake = self.made(batch, raw)
        fakes, reals = self.discriminate_both(fake, real.to(fake.dtype), raw, n)
        found = torch.stack([accuracy(reals, True), accuracy(fakes, False)])
        losses = {"loss": self.loss.discriminator(reals, fakes), "real_accuracy": found[0], "fake_accuracy": found[1]}
        if self.training:
            self.accuracies.lerp_(found, 1 / WINDOW)
            if self.lecam is not None:
                losses["lecam"] = self._lecam_penalty(self.lecam, reals, fakes)
                losses["loss"] = losses["loss"] + losses["lecam"]
            if self.penalty is not None and self.penalty.due(self.steps):
                seen = real.detach().requires_grad_()
                with twice_differentiable():
                    losses["penalty"] = self.penalty(self.discriminate(seen, raw, n), seen)
                losses["loss"] = losses["loss"] + losses["penalty"]
        return losses

    def _lecam_penalty(self, penalty: LeCam, reals: Tensor, fakes: Tensor) -> Tensor:
        means = torch.stack([reals.detach().mean(), fakes.detach().mean()]).float()
        average([means])
        self.mean_logits.lerp_(means, penalty.decay)
        return penalty(reals, fakes, self.mean_logits.clone())

    def made(self, batch: Batch, raw: Raw) -> Tensor:
        """Return examples z (B, *shape) under raw conditions; in validation the noise is that of the images."""
        n, dim, noise_distribution = len(batch["index"]), self.generator.noise_dim, self.generator.noise_distribution
        device = batch["index"].device
        if self.training:
            noise = noise_distribution.random(n, dim, device)
        else:
            noise = noise_distribution.seeded(SeededNoise(batch["index"], VALIDATION_STREAM), 0, dim)
        return self.generator(noise, self.conditioner(raw, n).to(device))

    def discriminate_both(self, fake: Tensor, real: Tensor, raw: Raw, n: int) -> tuple[Tensor, Tensor]:
        """Return the logits of n examples made and of n real ones, in one pass if the discriminator may mix them."""
        if not self.discriminator.together:
            return self.discriminate(fake, raw, n), self.discriminate(real, raw, n)
        twice = tuple(torch.cat([part, part]) for part in raw)
        fakes, reals = self.discriminate(torch.cat([fake, real]), twice, 2 * n).chunk(2)
        return fakes, reals

    def discriminate(self, z: Tensor, raw: Raw, n: int) -> Tensor:
        """Return the discriminator's logits of n examples."""
        embed = self.discriminator_conditioner
        c = torch.zeros(n, 0) if embed is None else embed(raw, n)
        seen = self.augmentation(z) if self.augmentation is not None and self.training else z
        return self.discriminator(seen, c.to(z.device))

    # -- collapse ------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if batch_idx == 0:
            self._watched = {name: rows[:WATCHED] for name, rows in batch.items()}  # type: ignore[assignment, index]

    def on_validation_epoch_end(self) -> None:
        if len(self._watched.get("index", ())) < 2:
            return
        metrics = self.diversity(self._watched)
        self._watched = {}
        average([*metrics.values(), self.accuracies])
        self.log_dict({f"val/{name}": value for name, value in metrics.items()})
        if self.trainer.is_global_zero:
            self.warn(min(map(float, metrics.values())), float(self.accuracies.min()))

    def warn(self, diversity: float, accuracy: float) -> None:
        """Say that the generator has collapsed, or that the discriminator has won, where it is so."""
        if diversity < UNIFORM:
            log.warning(
                f"the generator has collapsed: at step {self.steps} its samples differ by {diversity:.1%} of what real "
                "images do; train with a gradient penalty, augmentation or a lower learning rate"
            )
        if accuracy > PINNED and self.steps >= WINDOW:
            log.warning(
                f"the discriminator has won: at step {self.steps} it classifies right in {accuracy:.1%} of cases, from which a "
                "generator learns little; lower its learning rate or its n_critic, or augment"
            )

    def diversity(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean distance of samples of fixed seeds, over that of the images of ``batch``.

        ``diversity`` is of samples under the images' conditions, ``diversity_of_one`` under the first one's alone.
        """
        real = mean_distance(self.codec.decode(self.codec.encode(batch))).clamp(min=1e-6)
        seeds = torch.arange(len(batch["index"]), device=real.device)
        observed = self.observed(batch)
        alone = {name: rows[:1].expand_as(rows) for name, rows in observed.items()}
        samples = (self.sample({"seed": seeds, **rows}) for rows in (observed, alone))  # type: ignore[typeddict-item]
        return dict(zip(("diversity", "diversity_of_one"), (mean_distance(made) / real for made in samples)))

    # -- sampling ------------------------------------------------------------------------------------------------------

    def sample_z(
        self, seeds: Tensor, raw: Raw, guidance: Guidance, sampler: Sampler | None, ema_name: str | None = None
    ) -> Tensor:
        self.check_guidance(guidance)
        generator, conditioner = self.for_sampling(ema_name)
        assert isinstance(generator, GeneratorNetwork)
        noise = generator.noise_distribution.seeded(SeededNoise(seeds, self.codec.stream), 0, generator.noise_dim)
        if sampler is not None:
            noise = self.checked(sampler).temperature * noise
        return generator(noise, conditioner(raw, len(seeds)).to(seeds.device))

    def checked(self, sampler: Sampler) -> Sampler:
        if not isinstance(sampler, OneStep):
            raise UserError(
                f"an adversarial generator samples in one step, not with {type(sampler).__name__}: give no sampler, or "
                "OneStep for another temperature"
            )
        fits = sampler.temperature == 1 or isinstance(self.generator.noise_distribution, NormalNoise)
        require(fits, "this generator's noise is not normal: it has no temperature, leave the sampler out")
        return sampler

    def check_guidance(self, guidance: Guidance) -> None:
        require(guidance.scale == 1, "an adversarial generator cannot be guided: use guidance scale 1")


def twice_differentiable() -> AbstractContextManager[Any]:
    """Let attention be made of plain products: penalties on gradients are derived twice, fused kernels only once."""
    return sdpa_kernel(SDPBackend.MATH)
