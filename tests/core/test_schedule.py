import math

import pytest
import torch

from rcg_lightning.core.schedule import CosineSchedule, LinearSchedule, ScaledLinearSchedule
from rcg_lightning.errors import UserError

SCHEDULES = [LinearSchedule(), ScaledLinearSchedule(), CosineSchedule(), CosineSchedule(steps=7)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{type(s).__name__}{s.steps}")
def test_signal_falls_from_clean_to_almost_none(schedule):
    betas = schedule.betas()
    assert betas.shape == (schedule.steps,)
    assert betas.dtype == torch.float64
    assert bool((betas > 0).all())
    assert bool((betas < 1).all())
    product = 1.0
    for t in range(schedule.steps):
        product *= 1 - float(betas[t])
        assert schedule.alpha_bar(t) == pytest.approx(product, rel=1e-12)
    assert schedule.alpha_bar(-1) == 1
    assert bool((schedule.alphas_bar.diff() < 0).all())
    assert schedule.alpha_bar(schedule.steps - 1) < 0.01


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{type(s).__name__}{s.steps}")
def test_scales_preserve_variance(schedule):
    t = torch.arange(-1, schedule.steps)
    signal, sigma = schedule.scales(t)
    assert signal.shape == sigma.shape == t.shape
    assert signal.dtype == sigma.dtype == torch.float32
    torch.testing.assert_close(signal**2 + sigma**2, torch.ones(len(t)))
    torch.testing.assert_close(signal.double() ** 2, schedule.alphas_bar, rtol=1e-6, atol=1e-9)
    assert signal[0] == 1
    assert sigma[0] == 0


def test_ends_of_the_linear_schedules():
    linear = LinearSchedule().betas()
    assert linear[[0, -1]].tolist() == pytest.approx([1e-4, 0.02], rel=1e-12)
    assert linear[500] - linear[499] == pytest.approx((0.02 - 1e-4) / 999, rel=1e-9)
    scaled = ScaledLinearSchedule().betas()
    assert scaled[[0, -1]].tolist() == pytest.approx([0.0015, 0.0195], rel=1e-12)
    roots = scaled.sqrt().diff()
    assert float(roots.max() - roots.min()) < 1e-12


def test_the_cosine_schedule_follows_its_formula_before_the_cap():
    schedule = CosineSchedule()

    def squared_cosine(time):
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (0, 99, 499, 899):
        expected = squared_cosine((t + 1) / 1000) / squared_cosine(0)
        assert schedule.alpha_bar(t) == pytest.approx(expected, rel=1e-9)
    assert float(schedule.betas().max()) == 0.999


def test_a_schedule_without_steps_is_rejected():
    with pytest.raises(UserError, match=r"steps should be in \[1, 1000000\], not 0"):
        LinearSchedule(0)
