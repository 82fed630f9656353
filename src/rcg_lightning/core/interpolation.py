"""Paths between two vectors."""

import torch
from torch import Tensor


def lerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Straight line: start and end (R,), t (n,) in [0, 1] -> (n, R)."""
    return torch.lerp(start[None], end[None], t[:, None])


def slerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Great circle (Shoemake 1985), the length going evenly from one's to the other's: (R,), (R,), t (n,) -> (n, R).

    Standardised representations lie on a sphere, which a straight line leaves. Where the two point the same way or in
    opposite ways no circle is defined by them, and the line is taken.
    """
    lengths = torch.lerp(start.norm(), end.norm(), t)
    a, b = start / start.norm(), end / end.norm()
    angle = torch.acos((a @ b).clamp(-1, 1))
    if angle.sin() < 1e-4:
        return lerp(start, end, t)
    mixed = torch.sin((1 - t) * angle)[:, None] * a + torch.sin(t * angle)[:, None] * b
    return mixed / angle.sin() * lengths[:, None]
