"""Diffusion over images, latents or representations: RDM, DiT, ADM and LDM are configs of this stage."""

import torch
from torch import Tensor, nn

from rcg_lightning.arguments import PositiveInt
from rcg_lightning.config import describe
from rcg_lightning.core.counter_rng import VALIDATION_STREAM, SeededNoise
from rcg_lightning.core.diffusion import Posterior
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import DDIM, DiffusionSampler, Sampler
from rcg_lightning.core.schedule import TimestepDistribution
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.ema import EMA
from rcg_lightning.stages.alignment import Alignment
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.optimization import Optimizer
from rcg_lightning.types import Batch, Codec, Condition, DataSpec, Raw, require


class DiffusionStage(Generator):
    """Trains a denoiser on encoded examples and samples from it.

    Args:
        denoiser: network, noise schedule and prediction.
        sampler: default sampler.
        stratified: spread the timesteps of a batch evenly, which makes the loss less noisy; otherwise they are
            independent, as in the official code.
        timestep_distribution: distribution of the timesteps in training; None is uniform.
        alignment: auxiliary loss between the network's tokens and the features of an encoder; None for none.
        codec, condition, conditioner, optimizer, ema, guidance, ema_conditioner, tile, seed: see ``Generator``.
    """

    def __init__(
        self,
        codec: Codec,
        condition: Condition,
        denoiser: Denoiser,
        conditioner: Conditioner,
        optimizer: Optimizer,
        sampler: DiffusionSampler | None = None,
        ema: EMA | None = None,
        guidance: Guidance | None = None,
        ema_conditioner: bool = True,
        stratified: bool = False,
        tile: PositiveInt | None = None,
        seed: int = 0,
        timestep_distribution: TimestepDistribution | None = None,
        alignment: Alignment | None = None,
    ) -> None:
        super().__init__(codec, condition, conditioner, optimizer, ema, guidance, ema_conditioner, tile, seed)
        self.denoiser = denoiser
        self.sampler = sampler or DDIM()
        self.stratified, self.timestep_distribution, self.alignment = stratified, timestep_distribution, alignment

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"image"} if self.alignment is not None else frozenset())

    @property
    def network(self) -> nn.Module:
        return self.denoiser

    @property
    def natural_width(self) -> int:
        return self.denoiser.network.condition_width

    def networks(self) -> list[nn.Module]:
        return [self.denoiser.network]

    def sampling_networks(self, ema_name: str | None = None) -> list[nn.Module]:
        return [denoiser.network for denoiser in super().sampling_networks(ema_name)]  # type: ignore[misc]

    def build_network(self, shape: tuple[int, ...], condition_dim: int) -> None:
        self.denoiser.build(shape, condition_dim)

    def build_networks(self, spec: DataSpec) -> None:
        super().build_networks(spec)
        if self.alignment is not None:
            self.spec = self.alignment.build(self.denoiser.network, self.spec or spec)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.alignment is not None and stage == "fit":
            self.alignment.setup()

    def trained_modules(self) -> list[nn.Module]:
        return super().trained_modules() + ([self.alignment] if self.alignment is not None else [])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        z = self.codec.encode(batch)
        n = len(z)
        if self.training:
            t = self._random_timesteps(n, z.device)
            noise = torch.randn_like(z)
        else:
            by_index = SeededNoise(batch["index"], VALIDATION_STREAM)
            t = by_index.integers(0, self.denoiser.schedule.steps)
            noise = by_index.normal(1, *z.shape[1:])
        c = self.conditioner(self.condition.observe(batch), n).to(z.device)
        if self.alignment is None:
            return {"loss": self.denoiser.loss(z, t, c, noise).mean()}
        errors, tokens = self.denoiser.loss_and_tokens(z, t, c, noise, self.alignment.depth)
        denoising, alignment = errors.mean(), self.alignment(tokens, batch["image"])
        return {"loss": denoising + self.alignment.weight * alignment, "denoising": denoising, "alignment": alignment}

    def _random_timesteps(self, n: int, device: torch.device) -> Tensor:
        u = torch.rand(n, device=device)
        if self.stratified:
            u = ((torch.arange(n, device=device) + u) / n)[torch.randperm(n, device=device)]
        if self.timestep_distribution is not None:
            u = self.timestep_distribution(u)
        return self.denoiser.schedule.timesteps(u)

    def sample_z(
        self, seeds: Tensor, raw: Raw, guidance: Guidance, sampler: Sampler | None, ema_name: str | None = None
    ) -> Tensor:
        denoiser, conditioner = self.for_sampling(ema_name)
        assert isinstance(denoiser, Denoiser)
        c = conditioner(raw, len(seeds)).to(seeds.device)
        guide, guide_c = (denoiser, c) if guidance.scale == 1 else self.guiding_network(raw, len(seeds), ema_name)

        def denoise(x: Tensor, t: int, progress: float) -> Posterior:
            timestep = torch.full((1,), t, device=x.device)  # of the whole batch: its embedding is computed once
            if guidance.scale_at(progress) == 1:
                return denoiser(x, timestep, c)
            if guide is denoiser:
                both = denoiser(torch.cat([x, x]), timestep, torch.cat([c, guide_c]))
                cond, null = both.mean.chunk(2)
                mix = None if both.variance_mix is None else both.variance_mix.chunk(2)[0]
                return Posterior(guidance(cond, null, progress), mix)
            posterior = denoiser(x, timestep, c)
            guide_mean = guide(x, timestep, guide_c).mean
            return Posterior(guidance(posterior.mean, guide_mean, progress), posterior.variance_mix)

        noise = SeededNoise(seeds, self.codec.stream)
        return self.check_sampler(sampler or self.sampler).run(denoise, denoiser.schedule, noise, self.shape)

    def check_weak(self, weak: Generator) -> None:
        super().check_weak(weak)
        same = isinstance(weak, DiffusionStage) and describe(weak.denoiser.schedule) == describe(self.denoiser.schedule)
        require(same, "the weaker model has another noise schedule: give one trained with the same schedule")

    def check_sampler(self, sampler: Sampler) -> DiffusionSampler:
        if not isinstance(sampler, DiffusionSampler):
            raise UserError(f"{type(sampler).__name__} does not sample diffusion models: choose one such as DDIM")
        sampler.spacing.timesteps(sampler.steps, self.denoiser.schedule.steps)
        return sampler
