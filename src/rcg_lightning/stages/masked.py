"""Masked generation of tokens: MAGE with any tokenizer."""

import torch
from torch import Tensor, nn

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
    """Trains a transformer to fill in masked tokens and decodes many of them at a time.

    As in the official code one mask rate is drawn for a batch in each process. It departs from that code in two
    things: conditions are dropped in training alone, and a image is masked alike at every validation, by its index,
    at a rate of its own.

    Args:
        codec: makes tokens of images, such as ``VQTokens``.
        transformer: the network.
        sampler: how to sample, unless told otherwise at sampling.
        rate: the law of the share of tokens that are masked.
        smoothing: label smoothing, over the codebook.
        condition, conditioner, optimizer, ema, guidance, ema_conditioner, tile, seed: see ``Generator``. Guidance
            is of logits; the paper's τ is ``scale`` 1 + τ with ``ramp``.
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
        rate: MaskRatio | None = None,
        smoothing: float = 0.1,
        tile: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(codec, condition, conditioner, optimizer, ema, guidance, ema_conditioner, tile, seed)
        self.transformer = transformer
        self.sampler = sampler or ParallelDecoding()
        self.rate, self.smoothing = rate or MaskRatio(), smoothing
        self._seen_tokens = False

    @property
    def network(self) -> nn.Module:
        return self.transformer

    @property
    def natural_width(self) -> int:
        return self.transformer.width

    def build_network(self, shape: tuple[int, ...], condition_dim: int) -> None:
        assert self.spec is not None
        codes = self.codec.count(self.spec)
        kind = type(self.codec).__name__
        if codes is None or len(shape) != 1:
            raise UserError(f"MaskedStage models tokens, and {kind} makes none: give a codec such as VQTokens")
        self.transformer.build(shape[0], codes, condition_dim)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        tokens = self.codec.encode(batch)  # (B, N)
        if not (self.training and self._seen_tokens):
            self.check_tokens(tokens)
            self._seen_tokens = True
        if self.training:
            u, noise = torch.rand((), device=tokens.device), torch.rand(tokens.shape, device=tokens.device)
        else:
            fixed = SeededNoise(batch["index"], VALIDATION_STREAM)
            u, noise = fixed.uniform(0, 1), fixed.uniform(1, tokens.shape[1])
        masked, kept = masked_positions(noise, self.rate(u), self.rate.dropped(tokens.shape[1]))
        c = self.conditioner(self.condition.observe(batch), len(tokens)).to(tokens.device)
        logits = self.transformer(tokens, masked, c, kept)
        return {"loss": masked_cross_entropy(logits, tokens, masked, self.smoothing).mean()}

    def check_tokens(self, tokens: Tensor) -> None:
        """Raise a UserError where tokens (B, N) are not those of this codec. It waits for the device."""
        if tokens.is_meta:
            return
        count, length = self.transformer.codes, self.shape[0]
        require(
            tokens.shape[1:] == (length,) and not tokens.is_floating_point(),
            f"the network was built for {length} tokens of a image, the data give {tokens.dtype} of shape "
            f"{tuple(tokens.shape[1:])}: give the store that the tokenizer's codec belongs to",
        )
        low, high = int(tokens.min()), int(tokens.max())
        require(
            low >= 0 and high < count,
            f"token {low if low < 0 else high} is outside the codebook of {count}: extract the store again, by this "
            "tokenizer",
        )

    def sample_z(
        self, seeds: Tensor, raw: Raw, guidance: Guidance, sampler: Sampler | None, ema_name: str | None = None
    ) -> Tensor:
        network, conditioner = self.for_sampling(ema_name)
        c = conditioner(raw, len(seeds)).to(seeds.device)
        other, away = (network, c) if guidance.scale == 1 else self.guided_from(raw, len(seeds), ema_name)
        away = away.to(seeds.device)

        def predict(tokens: Tensor, masked: Tensor, progress: float) -> Tensor:
            if guidance.scale_at(progress) == 1:
                return network(tokens, masked, c)
            if other is network:
                both = network(torch.cat([tokens, tokens]), torch.cat([masked, masked]), torch.cat([c, away]))
                conditional, unconditional = both.chunk(2)
                return guidance(conditional, unconditional, progress)
            return guidance(network(tokens, masked, c), other(tokens, masked, away), progress)

        draws = SeededDecodingNoise(SeededNoise(seeds, self.codec.stream))
        return self.checked(sampler or self.sampler).run(predict, draws, self.shape[0])

    def check_guidance(self, guidance: Guidance) -> None:
        super().check_guidance(guidance)
        require(guidance.channels is None, "tokens have no channels: leave guidance.channels out")

    def check_weak(self, weak: Generator) -> None:
        super().check_weak(weak)
        same = isinstance(weak, MaskedStage) and weak.transformer.codes == self.transformer.codes
        require(same, "the weaker model has another codebook: give one of the same tokenizer")

    def checked(self, sampler: Sampler) -> ParallelDecoding:
        if not isinstance(sampler, ParallelDecoding):
            raise UserError(f"{type(sampler).__name__} does not decode tokens: choose ParallelDecoding")
        return sampler
