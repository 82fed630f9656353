"""Masked generation of tokens: MAGE with any tokenizer."""

import torch
from torch import Tensor, nn

from rcg_lightning.arguments import BelowOne, PositiveInt
from rcg_lightning.core.counter_rng import VALIDATION_STREAM, SeededNoise
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.masking import (
    MaskRatio,
    ParallelDecoding,
    SeededDecodingNoise,
    masked_cross_entropy,
    masked_positions,
)
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.mage import MAGE
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.optimization import Optimizer
from rcg_lightning.types import Batch, Codec, Condition, Raw, require


class MaskedStage(Generator):
    """Trains a transformer to predict masked tokens, and samples by decoding many tokens in parallel.

    As in the official code, each process samples one mask ratio for a batch. The stage departs from that code in two
    points: conditions are dropped in training only; and in validation the mask and its ratio depend on the image's
    index alone, so that they are the same every time.

    Args:
        codec: images -> tokens, such as ``VQTokens``.
        transformer: the network.
        sampler: default sampler.
        mask_ratio: distribution of the share of masked tokens.
        smoothing: label smoothing over the codebook.
        condition, conditioner, optimizer, ema, guidance, ema_conditioner, tile, seed: see ``Generator``. Guidance
            acts on logits; the paper's τ is ``scale`` 1 + τ with ``ramp``.
    """

    def __init__(
        self,
        codec: Codec,
        condition: Condition,
        transformer: MAGE,
        conditioner: Conditioner,
        optimizer: Optimizer,
        sampler: ParallelDecoding | None = None,
        ema: EMA | None = None,
        guidance: Guidance | None = None,
        ema_conditioner: bool = True,
        mask_ratio: MaskRatio | None = None,
        smoothing: BelowOne = 0.1,
        tile: PositiveInt | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(codec, condition, conditioner, optimizer, ema, guidance, ema_conditioner, tile, seed)
        self.transformer = transformer
        self.sampler = sampler or ParallelDecoding()
        self.mask_ratio, self.smoothing = mask_ratio or MaskRatio(), smoothing
        self._checked_tokens = False

    @property
    def network(self) -> nn.Module:
        return self.transformer

    @property
    def natural_width(self) -> int:
        return self.transformer.width

    def build_network(self, shape: tuple[int, ...], condition_dim: int) -> None:
        assert self.spec is not None
        codes = self.codec.count(self.spec)
        codec = type(self.codec).__name__
        if codes is None or len(shape) != 1:
            raise UserError(f"MaskedStage models tokens, {codec} makes none: give a codec such as VQTokens")
        self.transformer.build(shape[0], codes, condition_dim)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        tokens = self.codec.encode(batch)  # (B, N)
        if not (self.training and self._checked_tokens):
            self.check_tokens(tokens)
            self._checked_tokens = True
        if self.training:
            u, noise = torch.rand((), device=tokens.device), torch.rand(tokens.shape, device=tokens.device)
        else:
            by_index = SeededNoise(batch["index"], VALIDATION_STREAM)
            u, noise = by_index.uniform(0, 1), by_index.uniform(1, tokens.shape[1])
        masked, visible = masked_positions(noise, self.mask_ratio(u), self.mask_ratio.dropped(tokens.shape[1]))
        c = self.conditioner(self.condition.observe(batch), len(tokens)).to(tokens.device)
        logits = self.transformer(tokens, masked, c, visible)  # (B, N, K)
        return {"loss": masked_cross_entropy(logits, tokens, masked, self.smoothing).mean()}

    def check_tokens(self, tokens: Tensor) -> None:
        """Raise a UserError where tokens (B, N) do not fit this codec. The check waits for the device."""
        if tokens.is_meta:
            return
        count, length = self.transformer.codes, self.shape[0]
        require(
            tokens.shape[1:] == (length,) and not tokens.is_floating_point(),
            f"the network was built for {length} tokens of an image, the data give {tokens.dtype} of shape "
            f"{tuple(tokens.shape[1:])}: give the store of this tokenizer",
        )
        low, high = int(tokens.min()), int(tokens.max())
        require(
            low >= 0 and high < count,
            f"token {low if low < 0 else high} is outside the codebook of {count}: extract the store again with this "
            "tokenizer",
        )

    def sample_z(
        self, seeds: Tensor, raw: Raw, guidance: Guidance, sampler: Sampler | None, ema_name: str | None = None
    ) -> Tensor:
        network, conditioner = self.for_sampling(ema_name)
        c = conditioner(raw, len(seeds)).to(seeds.device)
        guide, guide_c = (network, c) if guidance.scale == 1 else self.guiding_network(raw, len(seeds), ema_name)
        guide_c = guide_c.to(seeds.device)

        def predict(tokens: Tensor, masked: Tensor, progress: float) -> Tensor:
            if guidance.scale_at(progress) == 1:
                return network(tokens, masked, c)
            if guide is network:
                both = network(torch.cat([tokens, tokens]), torch.cat([masked, masked]), torch.cat([c, guide_c]))
                cond, null = both.chunk(2)
                return guidance(cond, null, progress)
            return guidance(network(tokens, masked, c), guide(tokens, masked, guide_c), progress)

        noise = SeededDecodingNoise(SeededNoise(seeds, self.codec.stream))
        return self.check_sampler(sampler or self.sampler).run(predict, noise, self.shape[0])

    def check_guidance(self, guidance: Guidance) -> None:
        super().check_guidance(guidance)
        require(guidance.channels is None, "tokens have no channels: leave guidance.channels out")

    def check_weak(self, weak: Generator) -> None:
        super().check_weak(weak)
        same = isinstance(weak, MaskedStage) and weak.transformer.codes == self.transformer.codes
        require(same, "the weaker model has another codebook: give one of the same tokenizer")

    def check_sampler(self, sampler: Sampler) -> ParallelDecoding:
        if not isinstance(sampler, ParallelDecoding):
            raise UserError(f"{type(sampler).__name__} does not decode tokens: choose ParallelDecoding")
        return sampler
