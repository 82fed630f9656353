import pytest
import torch

from rcg_lightning.core.guidance import Guidance
from rcg_lightning.errors import UserError


@pytest.fixture
def estimates():
    torch.manual_seed(0)
    return torch.randn(2, 3, 4, 2, 2)


def test_scale_1_is_off(estimates):
    cond, null = estimates
    torch.testing.assert_close(Guidance()(cond, null, 0.5), cond)
    torch.testing.assert_close(Guidance(1.0, ramp=True)(cond, null, 0.5), cond)


def test_scale_0_is_null_and_scale_2_extrapolates(estimates):
    cond, null = estimates
    torch.testing.assert_close(Guidance(0.0)(cond, null, 0.5), null)
    torch.testing.assert_close(Guidance(2.0)(cond, null, 0.5), 2 * cond - null)


def test_ramp_is_tau_of_the_paper():
    guidance = Guidance(1 + 6.0, ramp=True)
    steps = 20
    for i in range(steps):
        assert guidance.scale_at((i + 1) / steps) == pytest.approx(1 + 6.0 * (i + 1) / steps)


def test_guidance_acts_within_its_interval_only():
    guidance = Guidance(4.0, interval=(0.25, 0.5))
    assert [guidance.scale_at(p) for p in (0.0, 0.2, 0.25, 0.4, 0.5, 0.6, 1.0)] == [1, 1, 4, 4, 4, 1, 1]


@pytest.mark.parametrize("interval", [(-0.1, 1), (0, 1.1), (0.6, 0.5)])
def test_an_interval_outside_0_to_1_is_rejected(interval):
    with pytest.raises(UserError, match="interval"):
        Guidance(2.0, interval=interval)


def test_only_the_first_channels_are_guided(estimates):
    cond, null = estimates
    guided = Guidance(3.0, channels=3)(cond, null, 0.5)
    torch.testing.assert_close(guided[:, :3], Guidance(3.0)(cond, null, 0.5)[:, :3])
    assert torch.equal(guided[:, 3:], cond[:, 3:])


@pytest.mark.parametrize("channels", [None, 3])
def test_guiding_noise_equals_guiding_the_clean_estimate(estimates, channels):
    """Guidance commutes with affine maps, such as x̂₀ = (x - sigma·ε) / signal for the same x."""
    cond, null = estimates
    x, signal, sigma = torch.randn(3, 4, 2, 2), 0.6, 0.8
    guidance = Guidance(2.5, channels=channels)
    guided_noise = guidance(cond, null, 0.3)
    guided_clean = guidance((x - sigma * cond) / signal, (x - sigma * null) / signal, 0.3)
    torch.testing.assert_close(guided_clean, (x - sigma * guided_noise) / signal, rtol=1e-4, atol=1e-5)
