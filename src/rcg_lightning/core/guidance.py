"""Classifier-free guidance: move a conditional estimate away from the unconditional one."""

import torch
from torch import Tensor

from rcg_lightning.arguments import NonNegativeFloat, PositiveInt, UnitInterval
from rcg_lightning.config import ConfigMixin
from rcg_lightning.types import require


class Guidance(ConfigMixin):
    """``null + s · (cond - null)``; scale 1 is off.

    RCG's τ for MAGE grows linearly over the N sampling steps. It is ``scale = 1 + τ`` with ``ramp``: at progress p the
    scale is 1 + (scale - 1) · p.

    Args:
        scale: s; 1 returns the conditional estimate.
        ramp: grow linearly from 1 to ``scale`` during sampling.
        interval: first and last progress in [0, 1] at which guidance acts.
        channels: guide only the first n channels (DiT's official sampling: 3 of 4); None for all.
    """

    def __init__(
        self,
        scale: NonNegativeFloat = 1.0,
        ramp: bool = False,
        interval: tuple[UnitInterval, UnitInterval] = (0.0, 1.0),
        channels: PositiveInt | None = None,
    ) -> None:
        require(interval[0] <= interval[1], f"Guidance: interval should ascend, not {interval}")
        self.scale, self.ramp, self.interval, self.channels = scale, ramp, (interval[0], interval[1]), channels

    def scale_at(self, progress: float) -> float:
        """Return the scale at ``progress`` in [0, 1] through sampling."""
        if not self.interval[0] <= progress <= self.interval[1]:
            return 1.0
        return 1 + (self.scale - 1) * progress if self.ramp else self.scale

    def __call__(self, cond: Tensor, null: Tensor, progress: float) -> Tensor:
        """Combine two estimates (B, C, …) of x̂₀ or of logits. Affine in both, so guiding x̂₀ equals guiding ε."""
        guided = null + self.scale_at(progress) * (cond - null)
        if self.channels is None:
            return guided
        return torch.cat([guided[:, : self.channels], cond[:, self.channels :]], dim=1)
