import math

import pytest
import torch

from rcg_lightning.core.interpolation import lerp, slerp

T = torch.linspace(0, 1, 9)


@pytest.fixture
def ends():
    torch.manual_seed(0)
    return torch.randn(32), 3 * torch.randn(32)


@pytest.mark.parametrize("interpolate", [lerp, slerp])
def test_interpolation_goes_from_start_to_end(interpolate, ends):
    start, end = ends
    points = interpolate(start, end, T)
    assert points.shape == (9, 32)
    torch.testing.assert_close(points[0], start)
    torch.testing.assert_close(points[-1], end)
    torch.testing.assert_close(interpolate(end, start, T), points.flip(0), rtol=1e-4, atol=1e-5)


def test_lerp_moves_evenly_on_a_line(ends):
    points = lerp(*ends, T)
    torch.testing.assert_close(points.diff(dim=0), (ends[1] - ends[0]).expand(8, -1) / 8, rtol=1e-4, atol=1e-5)


def test_slerp_changes_norm_and_angle_evenly(ends):
    start, end = ends
    points = slerp(start, end, T)
    torch.testing.assert_close(points.norm(dim=1), torch.lerp(start.norm(), end.norm(), T))
    unit = points / points.norm(dim=1, keepdim=True)
    angles = torch.acos((unit[:-1] * unit[1:]).sum(1))
    whole = torch.acos(unit[0] @ unit[-1])
    torch.testing.assert_close(angles, (whole / 8).expand(8), rtol=1e-3, atol=1e-4)


def test_slerp_on_a_quarter_circle():
    half = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.5]))
    torch.testing.assert_close(half, torch.full((1, 2), math.sqrt(0.5)))


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_slerp_of_parallel_vectors_is_lerp(factor, ends):
    start = ends[0]
    points = slerp(start, factor * start, T)
    assert bool(points.isfinite().all())
    torch.testing.assert_close(points, lerp(start, factor * start, T))
