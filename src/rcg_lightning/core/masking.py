"""Masked tokens (MAGE, Li et al. 2023): how many are masked, which, what is lost on them, and decoding in parallel."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.types import require

Predict = Callable[[Tensor, Tensor, float], Tensor]  # (tokens (B, N), masked (B, N), progress) -> logits (B, N, K)


class MaskRatio(ConfigMixin):
    """The law of the share of tokens that training masks: a normal, truncated.

    Args:
        mean: of the normal before it is truncated; RCG has 0.75, the first MAGE 0.55.
        deviation: its standard deviation.
        low: smallest share, and the one whose tokens the encoder never sees.
        high: largest share.
    """

    def __init__(self, mean: float = 0.75, deviation: float = 0.25, low: float = 0.5, high: float = 1.0) -> None:
        require(0 < low <= high <= 1 and deviation > 0, f"mask rates lie in (0, 1], not in [{low}, {high}]")
        self.mean, self.deviation, self.low, self.high = mean, deviation, low, high

    def __call__(self, u: Tensor) -> Tensor:
        """Invert the law's cumulative distribution: uniform u in [0, 1] of any shape -> rates."""
        first, last = (math.erf((end - self.mean) / self.deviation / math.sqrt(2)) for end in (self.low, self.high))
        normal = math.sqrt(2) * torch.erfinv(first + u * (last - first))
        return (self.mean + self.deviation * normal).clamp(self.low, self.high)

    def dropped(self, tokens: int) -> int:
        """Return how many of ``tokens`` the encoder never sees."""
        return math.ceil(tokens * self.low)


def masked_positions(noise: Tensor, rate: Tensor, dropped: int) -> tuple[Tensor, Tensor]:
    """Choose which tokens are masked and which the encoder sees, in shapes that depend on no value.

    The ceil(N · rate) positions of the smallest noise are masked, the ``dropped`` smallest of them are not even seen.
    The official code draws again where equal noise breaks the counts; ranks have no ties.

    Args:
        noise: (B, N) uniform.
        rate: share of the masked, () for all rows or (B, 1).
        dropped: how many positions are not seen; at least these are masked.

    Returns:
        masked (B, N) bool, and kept (B, N - dropped) int64, the positions that are seen, in ascending order.
    """
    count = (noise.shape[1] * rate).ceil().clamp(min=dropped)
    order = noise.argsort(dim=1)
    return order.argsort(dim=1) < count, order[:, dropped:].sort(dim=1).values


def masked_cross_entropy(logits: Tensor, tokens: Tensor, masked: Tensor, smoothing: float = 0.1) -> Tensor:
    """Return the label-smoothed cross-entropy of each row (B,), averaged over its masked tokens.

    With one mask rate for all rows, the mean of the rows is the official loss: the sum over all masked tokens of a
    batch by their number.

    Args:
        logits: (B, N, K), over the codebook alone.
        tokens: (B, N) int64 in [0, K).
        masked: (B, N) bool.
        smoothing: the share of the target that is spread evenly over the codebook.
    """
    flat = logits.flatten(0, 1).float()
    errors = F.cross_entropy(flat, tokens.flatten(), reduction="none", label_smoothing=smoothing).view(tokens.shape)
    return (errors * masked).sum(1) / masked.sum(1)


def masks_left(tokens: int, steps: int) -> list[int]:
    """Return how many of ``tokens`` are masked after each of ``steps``, by a cosine: fewer each time, never below one.

    The one that is still masked at the end has a value by then, as in the official code.
    """
    left, counts = tokens, []
    for step in range(1, steps + 1):
        left = max(1, min(left - 1, math.floor(tokens * math.cos(math.pi / 2 * step / steps))))
        counts.append(left)
    return counts


def masked_again(confidence: Tensor, masked: Tensor, left: int) -> Tensor:
    """Mask the ``left`` least confident of the tokens just decoded again.

    Of equally confident ones the first are masked, so that there are never more; the official code masks all that are
    as confident as the last.

    Args:
        confidence: (B, N).
        masked: (B, N) bool, the tokens just decoded; the others stay known.
        left: how many are masked again, at most as many as were masked.
    """
    order = confidence.masked_fill(~masked, math.inf).argsort(dim=1, stable=True)
    return order.argsort(dim=1) < left


class DecodingNoise(Protocol):
    """The chances that decoding takes."""

    rows: int  # B
    device: torch.device

    def tokens(self, step: int, log_p: Tensor) -> Tensor:
        """Draw a token for every position: log-probabilities (B, N, K) -> (B, N) int64."""
        ...

    def gumbel(self, step: int, count: int) -> Tensor:
        """Return (B, count) standard Gumbel noise, for the confidences."""
        ...


class SeededDecodingNoise:
    """Chances by seed: row i depends on the noise's seed i alone. Two draws of the noise belong to each step."""

    def __init__(self, noise: SeededNoise) -> None:
        self.noise, self.rows, self.device = noise, len(noise.seeds), noise.seeds.device

    def tokens(self, step: int, log_p: Tensor) -> Tensor:
        """The largest of log-probability plus Gumbel noise is a draw from the distribution."""
        return (log_p + self.noise.gumbel(2 * step, *log_p.shape[1:])).argmax(dim=2)

    def gumbel(self, step: int, count: int) -> Tensor:
        return self.noise.gumbel(2 * step + 1, count)


@dataclass(frozen=True)
class DecodingStep:
    """What one step of decoding leaves.

    Attributes:
        tokens: (B, N) int64, all of them decoded.
        masked: (B, N) bool, those that the next step decodes again.
        logits: (B, N, K), what this step decoded from.
    """

    tokens: Tensor
    masked: Tensor
    logits: Tensor


class ParallelDecoding(Sampler):
    """MAGE's sampling: all tokens at once, of which the least confident are masked again, by a cosine.

    Tokens are drawn from the network's distribution as it is.

    Args:
        steps: number of steps.
        temperature: how much chance decides which tokens are kept: factor of the Gumbel noise in the confidence, which
            falls linearly to 0 at the last step. RCG has 6 for MAGE-B and 11 for MAGE-L.
    """

    def __init__(self, steps: int = 20, temperature: float = 6.0) -> None:
        super().__init__(steps, temperature)
        require(steps > 0, f"parallel decoding takes at least one step, not {steps}")

    def run(self, predict: Predict, draws: DecodingNoise, tokens: int) -> Tensor:
        """Return tokens (B, N) int64 in [0, K)."""
        return deque(self.rounds(predict, draws, tokens), maxlen=1)[0].tokens

    @torch.no_grad()
    def rounds(self, predict: Predict, draws: DecodingNoise, tokens: int) -> Iterator[DecodingStep]:
        """Yield what each step leaves; at step i of n, guidance has made the progress (i + 1) / n."""
        ids = torch.zeros(draws.rows, tokens, dtype=torch.int64, device=draws.device)
        masked = torch.ones_like(ids, dtype=torch.bool)
        for step, left in enumerate(masks_left(tokens, self.steps)):
            progress = (step + 1) / self.steps
            logits = predict(ids, masked, progress)
            log_p = logits.float().log_softmax(dim=2)
            ids = torch.where(masked, draws.tokens(step, log_p), ids)
            probability = self.temperature * (1 - progress) * draws.gumbel(step, tokens)
            confidence = log_p.gather(2, ids[:, :, None])[:, :, 0] + probability.to(log_p.dtype)
            masked = masked_again(confidence, masked, left)
            yield DecodingStep(ids, masked, logits)
