"""Masked image modelling (MAGE, Li et al. 2023): mask ratios, random masks, the loss, and parallel decoding."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rcg_lightning.arguments import NonNegativeFloat, PositiveFloat, Share, Timesteps, UnitInterval
from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.types import require

Predict = Callable[[Tensor, Tensor, float], Tensor]  # (tokens (B, N), masked (B, N), progress) -> logits (B, N, K)


class MaskRatio(ConfigMixin):
    """Truncated normal distribution of the mask ratio: the share of tokens that training masks.

    Args:
        mean: of the normal before truncation; 0.75 in RCG, 0.55 in the original MAGE.
        deviation: standard deviation of the normal before truncation.
        low: smallest ratio; the encoder never sees this share of the tokens.
        high: largest ratio.
    """

    def __init__(
        self, mean: UnitInterval = 0.75, deviation: PositiveFloat = 0.25, low: Share = 0.5, high: Share = 1.0
    ) -> None:
        require(low <= high, f"MaskRatio: low should be at most high, not {low} and {high}")
        self.mean, self.deviation, self.low, self.high = mean, deviation, low, high

    def __call__(self, u: Tensor) -> Tensor:
        """Quantile function: uniform u in [0, 1] of any shape -> mask ratios."""
        first, last = (math.erf((end - self.mean) / self.deviation / math.sqrt(2)) for end in (self.low, self.high))
        normal = math.sqrt(2) * torch.erfinv(first + u * (last - first))
        return (self.mean + self.deviation * normal).clamp(self.low, self.high)

    def dropped(self, tokens: int) -> int:
        """Return how many of ``tokens`` the encoder never sees."""
        return math.ceil(tokens * self.low)


def masked_positions(noise: Tensor, ratio: Tensor, dropped: int) -> tuple[Tensor, Tensor]:
    """Choose which tokens are masked and which the encoder sees, in static shapes.

    The ceil(N · ratio) positions with the smallest noise are masked; the encoder does not see the first ``dropped`` of
    them. The official code samples again if equal noise changes these counts; ranks have no ties.

    Args:
        noise: (B, N) uniform.
        ratio: share of masked tokens, () for all examples or (B, 1).
        dropped: number of positions that the encoder does not see; at least these are masked.

    Returns:
        masked (B, N) bool, and visible (B, N - dropped) int64, the positions that the encoder sees, ascending.
    """
    count = (noise.shape[1] * ratio).ceil().clamp(min=dropped)
    order = noise.argsort(dim=1)
    return order.argsort(dim=1) < count, order[:, dropped:].sort(dim=1).values


def masked_cross_entropy(logits: Tensor, tokens: Tensor, masked: Tensor, smoothing: float = 0.1) -> Tensor:
    """Return the label-smoothed cross-entropy of each example (B,), averaged over its masked tokens.

    If all examples have the same mask ratio, the mean over examples is the official loss: the sum over all masked
    tokens of a batch divided by their number.

    Args:
        logits: (B, N, K), over the codebook only.
        tokens: (B, N) int64 in [0, K).
        masked: (B, N) bool.
        smoothing: share of the target that is spread evenly over the codebook.
    """
    flat = logits.flatten(0, 1).float()
    errors = F.cross_entropy(flat, tokens.flatten(), reduction="none", label_smoothing=smoothing).view(tokens.shape)
    return (errors * masked).sum(1) / masked.sum(1)


def mask_schedule(tokens: int, steps: int) -> list[int]:
    """Return how many of ``tokens`` are masked after each of ``steps``: a cosine, falling by 1 or more, at least 1.

    The last masked token has a value when decoding ends, as in the official code.
    """
    remaining, counts = tokens, []
    for step in range(1, steps + 1):
        remaining = max(1, min(remaining - 1, math.floor(tokens * math.cos(math.pi / 2 * step / steps))))
        counts.append(remaining)
    return counts


def remask(confidence: Tensor, masked: Tensor, count: int) -> Tensor:
    """Return the next mask (B, N) bool: the ``count`` least confident of the tokens just decoded.

    Of equally confident tokens the first are masked, so there are never more than ``count``. The official code masks
    all tokens that are as confident as the last.

    Args:
        confidence: (B, N).
        masked: (B, N) bool, the tokens just decoded; the others stay known.
        count: at most the number of tokens in ``masked``.
    """
    order = confidence.masked_fill(~masked, math.inf).argsort(dim=1, stable=True)
    return order.argsort(dim=1) < count


class DecodingNoise(Protocol):
    """Random numbers of parallel decoding, for B examples."""

    rows: int  # B
    device: torch.device

    def tokens(self, step: int, log_p: Tensor) -> Tensor:
        """Sample a token at every position: log-probabilities (B, N, K) -> (B, N) int64."""
        ...

    def gumbel(self, step: int, count: int) -> Tensor:
        """Return (B, count) standard Gumbel noise, for the confidences."""
        ...


class SeededDecodingNoise:
    """Decoding noise in which row i depends on seed i only. Each decoding step uses two steps of the noise."""

    def __init__(self, noise: SeededNoise) -> None:
        self.noise, self.rows, self.device = noise, len(noise.seeds), noise.seeds.device

    def tokens(self, step: int, log_p: Tensor) -> Tensor:
        """Sample by the Gumbel-max trick."""
        return (log_p + self.noise.gumbel(2 * step, *log_p.shape[1:])).argmax(dim=2)

    def gumbel(self, step: int, count: int) -> Tensor:
        return self.noise.gumbel(2 * step + 1, count)


@dataclass(frozen=True)
class DecodingStep:
    """Result of one step of decoding.

    Attributes:
        tokens: (B, N) int64, all decoded.
        masked: (B, N) bool, the tokens that the next step decodes again.
        logits: (B, N, K) from which this step sampled.
    """

    tokens: Tensor
    masked: Tensor
    logits: Tensor


class ParallelDecoding(Sampler):
    """MAGE's sampling: each step decodes all masked tokens and masks the least confident again, by a cosine schedule.

    Tokens are sampled from the network's distribution at temperature 1.

    Args:
        steps: number of steps.
        temperature: factor of the Gumbel noise that makes the confidences random; it falls linearly to 0 at the last
            step. RCG uses 6 for MAGE-B and 11 for MAGE-L.
    """

    def __init__(self, steps: Timesteps = 20, temperature: NonNegativeFloat = 6.0) -> None:
        super().__init__(steps, temperature)

    def run(self, predict: Predict, noise: DecodingNoise, tokens: int) -> Tensor:
        """Return tokens (B, N) int64 in [0, K)."""
        return deque(self.rounds(predict, noise, tokens), maxlen=1)[0].tokens

    @torch.no_grad()
    def rounds(self, predict: Predict, noise: DecodingNoise, tokens: int) -> Iterator[DecodingStep]:
        """Yield the result of each step; in step i of n, guidance sees the progress (i + 1) / n."""
        ids = torch.zeros(noise.rows, tokens, dtype=torch.int64, device=noise.device)
        masked = torch.ones_like(ids, dtype=torch.bool)
        for step, remaining in enumerate(mask_schedule(tokens, self.steps)):
            progress = (step + 1) / self.steps
            logits = predict(ids, masked, progress)
            log_p = logits.float().log_softmax(dim=2)
            ids = torch.where(masked, noise.tokens(step, log_p), ids)
            gumbel = self.temperature * (1 - progress) * noise.gumbel(step, tokens)
            confidence = log_p.gather(2, ids[:, :, None])[:, :, 0] + gumbel.to(log_p.dtype)
            masked = remask(confidence, masked, remaining)
            yield DecodingStep(ids, masked, logits)
