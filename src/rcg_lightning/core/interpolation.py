"""Interpolation between two vectors."""

import torch
from torch import Tensor


def lerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Linear interpolation: start and end (R,), t (n,) in [0, 1] -> (n, R)."""
    return torch.lerp(start[None], end[None], t[:, None])


def slerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985): start and end (R,), t (n,) in [0, 1] -> (n, R).

    Moves along a great circle while the norm changes linearly. Standardised representations lie on a sphere, which
    linear interpolation leaves. Parallel or opposite vectors define no great circle and are interpolated linearly.
    """
    lengths = torch.lerp(start.norm(), end.norm(), t)
    a, b = start / start.norm(), end / end.norm()
    angle = torch.acos((a @ b).clamp(-1, 1))
    if angle.sin() < 1e-4:
        return lerp(start, end, t)
    mixed = torch.sin((1 - t) * angle)[:, None] * a + torch.sin(t * angle)[:, None] * b
    return mixed / angle.sin() * lengths[:, None]
