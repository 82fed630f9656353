"""Adversarial generators under any condition: the conditional GAN of 2014, BigGAN and IC-GAN are configs of it."""

import logging

import torch
from torch import Tensor, nn

from rcg_lightning.arguments import PositiveInt
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
    twice_differentiable,
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
from rcg_lightning.stages.distributed import all_reduce_mean
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.optimization import Optimizer
from rcg_lightning.types import Batch, Codec, Condition, DataSpec, Raw, require

log = logging.getLogger(__name__)

ACCURACY_STEPS = 100  # steps over which the discriminator's accuracies are averaged
WON_ACCURACY = 0.995  # accuracy on real and on generated examples above which the generator learns nothing more
COLLAPSED_DIVERSITY = 0.05  # diversity, relative to that of real images, below which the generator has collapsed
DIVERSITY_SAMPLES = 64  # samples whose diversity is measured


class AdversarialStage(AlternatingStage, Generator):
    """Conditional GAN: generator network and discriminator receive the same condition.

    In a training step the discriminator is updated ``n_critic`` times, then the generator network once, each on its
    share of the batch: see ``AlternatingStage``. Generated and real examples go through the discriminator in one pass,
    the generated ones first, as in the official BigGAN and IC-GAN; a discriminator that compares the images of a batch
    (StyleGAN2) gets them in two passes. In training, the conditions are those of the batch's images.

    Validation logs the discriminator's accuracy on evaluation images and on samples under their conditions. It also
    logs the diversity of the samples of 64 fixed seeds, relative to that of real images: under the conditions of 64
    images, and under the condition of a single one. A warning reports a generator that has collapsed or a
    discriminator that has won.

    Args:
        generator: generator network, noise and condition -> example.
        discriminator: example and condition -> logits.
        optimizer: optimizer of the generator network.
        discriminator_optimizer: optimizer of the discriminator.
        discriminator_conditioner: embeds the condition for the discriminator; None only without a condition.
        loss: adversarial loss of both networks; ``Hinge`` by default.
        penalty: gradient penalty on real examples.
        lecam: penalty on the discriminator's logits, for small data sets.
        path_length: penalty on a generator network with styles (StyleGAN2).
        augmentation: applied to all examples that the discriminator sees, real or generated.
        n_critic: updates of the discriminator in each step.
        accumulate: parts of a share whose gradients are added up for one update.
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
        n_critic: PositiveInt = 1,
        accumulate: PositiveInt = 1,
        ema: EMA | None = None,
        ema_conditioner: bool = True,
        tile: PositiveInt | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            codec, condition, conditioner, optimizer, ema, ema_conditioner=ema_conditioner, tile=tile, seed=seed
        )
        conditioners = [each for each in (conditioner, discriminator_conditioner) if each is not None]
        unguided = "an adversarial generator is not guided, so its condition is never dropped"
        require(all(each.drop == 0 for each in conditioners), f"{unguided}: set drop to 0 in both conditioners")
        self.generator, self.discriminator = generator, discriminator
        self.discriminator_optimizer = discriminator_optimizer
        self.discriminator_conditioner = discriminator_conditioner
        self.loss, self.penalty, self.augmentation = loss or Hinge(), penalty, augmentation
        self.lecam, self.path_length = lecam, path_length
        styled = hasattr(generator, "styles") and hasattr(generator, "synthesise")
        kind = type(generator).__name__
        require(path_length is None or styled, f"{kind} has no styles, so no path_length either: set it to null")
        self.n_critic, self.accumulate = n_critic, accumulate
        # running means; of real and of generated examples where there are two
        self.register_buffer("mean_logits", torch.zeros(2))
        self.register_buffer("mean_length", torch.zeros(()))
        self.register_buffer("accuracies", torch.full((2,), 0.5), persistent=False)
        self._diversity_batch: Batch = {}

    @property
    def network(self) -> nn.Module:
        return self.generator

    def networks(self) -> list[nn.Module]:
        # a penalty differentiates twice, which compiled networks cannot: a network with a penalty is not compiled
        generators = [self.generator] if self.path_length is None else []
        return [*generators, *([self.discriminator] if self.penalty is None else [])]

    @property
    def natural_width(self) -> int:
        return self.generator.condition_width(self.shape)

    def build_network(self, shape: tuple[int, ...], condition_dim: int) -> None:
        self.generator.build(shape, condition_dim)

    def build_networks(self, spec: DataSpec) -> None:
        discrete = self.codec.count(spec) is not None
        require(not discrete, "an adversarial generator makes continuous values, not tokens: choose another codec")
        super().build_networks(spec)
        parts, conditioner = self.condition.parts(self.spec or spec), self.discriminator_conditioner
        dim = 0 if conditioner is None else conditioner.build(parts, self.discriminator.condition_width(self.shape))
        missing = "the generator has a condition, the discriminator none"
        require(dim > 0 or not parts, f"{missing}: set discriminator_conditioner, and a discriminator that reads it")
        self.discriminator.build(self.shape, dim)

    # -- training ------------------------------------------------------------------------------------------------------

    def optimized_networks(self) -> list[OptimizedNetwork]:
        modules = [m for m in (self.discriminator, self.discriminator_conditioner) if m is not None]
        optimizer, losses = self.discriminator_optimizer, self.discriminator_losses
        return [
            OptimizedNetwork("discriminator", modules, optimizer, losses, self.n_critic),
            OptimizedNetwork("generator", [self.generator, self.conditioner], self.optimizer, self.generator_losses),
        ]

    def step_state(self) -> list[Tensor]:
        return [*super().step_state(), self.accuracies]

    def generator_losses(self, batch: Batch) -> dict[str, Tensor]:
        raw, n = self.condition.observe(batch), len(batch["index"])
        losses = {"loss": self.loss.generator(self.discriminate(self.generate(batch, raw), raw, n))}
        if self.training and self.path_length is not None and self.path_length.due(self.steps):
            losses["path_length"] = self._path_penalty(self.path_length, raw, n, batch["index"].device)
            losses["loss"] = losses["loss"] + losses["path_length"]
        return losses

    def _path_penalty(self, penalty: PathLength, raw: Raw, n: int, device: torch.device) -> Tensor:
        n = max(n // penalty.shrink, 1)
        noise = self.generator.noise_distribution.random(n, self.generator.noise_dim, device)
        c = self.conditioner(tuple(part[:n] for part in raw), n).to(device)
        styles = self.generator.styles(noise, c)  # type: ignore[operator]
        with twice_differentiable():
            lengths = path_lengths(self.generator.synthesise(styles), styles)  # type: ignore[operator]
        mean = lengths.detach().mean()
        all_reduce_mean([mean])
        self.mean_length.lerp_(mean, penalty.decay)
        return penalty(lengths, self.mean_length.clone())

    def discriminator_losses(self, batch: Batch) -> dict[str, Tensor]:
        real, raw, n = self.codec.encode(batch), self.condition.observe(batch), len(batch["index"])
        with torch.no_grad():
            fake = self.generate(batch, raw)
        fake_logits, real_logits = self.discriminate_both(fake, real.to(fake.dtype), raw, n)
        losses = {"loss": self.loss.discriminator(real_logits, fake_logits)}
        losses |= {"real_accuracy": accuracy(real_logits, True), "fake_accuracy": accuracy(fake_logits, False)}
        if self.training:
            accuracies = torch.stack([losses["real_accuracy"], losses["fake_accuracy"]])
            self.accuracies.lerp_(accuracies, 1 / ACCURACY_STEPS)
            if self.lecam is not None:
                losses["lecam"] = self._lecam_penalty(self.lecam, real_logits, fake_logits)
                losses["loss"] = losses["loss"] + losses["lecam"]
            if self.penalty is not None and self.penalty.due(self.steps):
                real = real.detach().requires_grad_()
                with twice_differentiable():
                    losses["penalty"] = self.penalty(self.discriminate(real, raw, n), real)
                losses["loss"] = losses["loss"] + losses["penalty"]
        return losses

    def _lecam_penalty(self, penalty: LeCam, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        means = torch.stack([real_logits.detach().mean(), fake_logits.detach().mean()]).float()
        all_reduce_mean([means])
        self.mean_logits.lerp_(means, penalty.decay)
        return penalty(real_logits, fake_logits, self.mean_logits.clone())

    def generate(self, batch: Batch, raw: Raw) -> Tensor:
        """Return examples z (B, *shape) under raw conditions; in validation the noise depends on the image's index."""
        n, dim, distribution = len(batch["index"]), self.generator.noise_dim, self.generator.noise_distribution
        device = batch["index"].device
        if self.training:
            noise = distribution.random(n, dim, device)
        else:
            noise = distribution.seeded(SeededNoise(batch["index"], VALIDATION_STREAM), 0, dim)
        return self.generator(noise, self.conditioner(raw, n).to(device))

    def discriminate_both(self, fake: Tensor, real: Tensor, raw: Raw, n: int) -> tuple[Tensor, Tensor]:
        """Return the logits of n generated and of n real examples, from one pass if the discriminator allows it."""
        if not self.discriminator.together:
            return self.discriminate(fake, raw, n), self.discriminate(real, raw, n)
        twice = tuple(torch.cat([part, part]) for part in raw)
        fake_logits, real_logits = self.discriminate(torch.cat([fake, real]), twice, 2 * n).chunk(2)
        return fake_logits, real_logits

    def discriminate(self, z: Tensor, raw: Raw, n: int) -> Tensor:
        """Return the discriminator's logits of n examples."""
        conditioner = self.discriminator_conditioner
        c = torch.zeros(n, 0) if conditioner is None else conditioner(raw, n)
        z = self.augmentation(z) if self.augmentation is not None and self.training else z
        return self.discriminator(z, c.to(z.device))

    # -- collapse ------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if batch_idx == 0:
            self._diversity_batch = {k: v[:DIVERSITY_SAMPLES] for k, v in batch.items()}  # type: ignore[assignment, index]

    def on_validation_epoch_end(self) -> None:
        if len(self._diversity_batch.get("index", ())) < 2:
            return
        metrics = self.diversity(self._diversity_batch)
        self._diversity_batch = {}
        all_reduce_mean([*metrics.values(), self.accuracies])
        self.log_dict({f"val/{name}": value for name, value in metrics.items()})
        if self.trainer.is_global_zero:
            self.warn_of_failure(min(map(float, metrics.values())), float(self.accuracies.min()))

    def warn_of_failure(self, diversity: float, accuracy: float) -> None:
        """Log a warning where the generator has collapsed or the discriminator has won."""
        if diversity < COLLAPSED_DIVERSITY:
            log.warning(
                f"the generator has collapsed: at step {self.steps} the diversity of its samples is {diversity:.1%} of "
                "that of real images; train with a gradient penalty, augmentation or a lower learning rate"
            )
        if accuracy > WON_ACCURACY and self.steps >= ACCURACY_STEPS:
            log.warning(
                f"the discriminator has won: at step {self.steps} its accuracy is {accuracy:.1%}, so the generator "
                "learns little; lower the discriminator's learning rate or n_critic, or add augmentation"
            )

    def diversity(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean distance between samples of fixed seeds, relative to that between the images of ``batch``.

        The samples of ``diversity`` have the images' conditions, those of ``diversity_one_condition`` the first one's.
        """
        real = mean_distance(self.codec.decode(self.codec.encode(batch))).clamp(min=1e-6)
        seeds = torch.arange(len(batch["index"]))
        every = self.observed_conditions(batch)
        first = {name: values[:1].expand_as(values) for name, values in every.items()}
        metrics = {}
        for name, conditions in (("diversity", every), ("diversity_one_condition", first)):
            samples = self.sample({"seed": seeds, **conditions})  # type: ignore[typeddict-item]
            metrics[name] = mean_distance(samples) / real
        return metrics

    # -- sampling ------------------------------------------------------------------------------------------------------

    def sample_z(
        self, seeds: Tensor, raw: Raw, guidance: Guidance, sampler: Sampler | None, ema_name: str | None = None
    ) -> Tensor:
        self.check_guidance(guidance)
        generator, conditioner = self.for_sampling(ema_name)
        assert isinstance(generator, GeneratorNetwork)
        noise = generator.noise_distribution.seeded(SeededNoise(seeds, self.codec.stream), 0, generator.noise_dim)
        if sampler is not None:
            noise = self.check_sampler(sampler).temperature * noise
        return generator(noise, conditioner(raw, len(seeds)).to(seeds.device))

    def check_sampler(self, sampler: Sampler) -> Sampler:
        if not isinstance(sampler, OneStep):
            kind = type(sampler).__name__
            raise UserError(
                f"an adversarial generator samples in one step, not with {kind}: give OneStep or no sampler"
            )
        fits = sampler.temperature == 1 or isinstance(self.generator.noise_distribution, NormalNoise)
        require(fits, "the noise of this generator is not normal, so it has no temperature: leave the sampler out")
        return sampler

    def check_guidance(self, guidance: Guidance) -> None:
        require(guidance.scale == 1, "an adversarial generator cannot be guided: use guidance scale 1")
