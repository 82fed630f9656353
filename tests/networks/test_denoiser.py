import pytest
import torch
from torch import nn

from rcg_lightning.core.diffusion import Clean, MinSNR, Noise, Velocity, add_noise, expand
from rcg_lightning.core.schedule import FlowSchedule, LinearSchedule
from rcg_lightning.errors import UserError
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.types import Backbone


class FixedOutput(Backbone):
    """Returns the given output plus a trained offset."""

    condition_width = 2

    def __init__(self, output=None):
        super().__init__()
        self.output = output

    def build(self, shape, condition_dim, out_factor=1):
        self.built = (shape, condition_dim, out_factor)
        self.offset = nn.Parameter(torch.zeros(shape[0] * out_factor, *shape[1:]))

    def forward(self, x, t, c):
        return self.output + self.offset


@pytest.fixture
def example():
    torch.manual_seed(0)
    z, noise = torch.randn(2, 4, 3, 5, 5)
    return z, noise, torch.tensor([0, 10, 300, 700]), torch.zeros(4, 0)


@pytest.mark.parametrize("prediction", [Clean(), Noise(), Velocity()], ids=lambda p: type(p).__name__)
def test_a_perfect_network_has_no_loss_and_finds_the_clean_example(prediction, example):
    z, noise, t, c = example
    schedule = LinearSchedule()
    signal, sigma = (expand(scale, z) for scale in schedule.scales(t))
    denoiser = Denoiser(FixedOutput(prediction.target(z, noise, signal, sigma)), schedule, prediction)
    denoiser.build((3, 5, 5), 0)
    torch.testing.assert_close(denoiser.loss(z, t, c, noise), torch.zeros(4))
    posterior = denoiser(add_noise(z, t, noise, schedule), t, c)
    torch.testing.assert_close(posterior.mean, z, rtol=1e-4, atol=1e-4)
    assert posterior.variance_mix is None


def test_the_loss_is_the_mean_squared_error_of_each_example(example):
    z, noise, t, c = example
    error = torch.randn_like(z)
    denoiser = Denoiser(FixedOutput(noise + error), LinearSchedule(), Noise())
    denoiser.build((3, 5, 5), 0)
    torch.testing.assert_close(denoiser.loss(z, t, c, noise), error.square().mean((1, 2, 3)))


def test_a_learned_variance_doubles_the_channels_and_adds_the_bound(example):
    z, noise, t, c = example
    raw = torch.cat([noise, torch.full_like(z, 0.5)], dim=1)
    denoiser = Denoiser(FixedOutput(raw), LinearSchedule(), Noise(), learned_variance=True)
    denoiser.build((3, 5, 5), 7)
    assert denoiser.network.built == ((3, 5, 5), 7, 2)
    posterior = denoiser(add_noise(z, t, noise, denoiser.schedule), t, c)
    torch.testing.assert_close(posterior.variance_mix, torch.full_like(z, 0.75))
    loss = denoiser.loss(z, t, c, noise)
    assert bool((loss[:2] > 0).all())  # the squared error is zero: this is the bound, small at noisy timesteps
    loss.sum().backward()
    gradient = denoiser.network.offset.grad
    assert float(gradient[:3].abs().max()) < 1e-5  # the bound trains the variance only
    assert float(gradient[3:].abs().min()) > 0
    assert not [name for name in denoiser.state_dict() if "transitions" in name]


def test_results_are_float32(example):
    z, noise, t, c = example
    denoiser = Denoiser(FixedOutput(noise), LinearSchedule(), Noise())
    denoiser.build((3, 5, 5), 0)
    assert denoiser(z, t, c).mean.dtype == denoiser.loss(z, t, c, noise).dtype == torch.float32


def test_a_weighting_scales_the_error_at_each_timestep(example):
    z, noise, t, c = example
    output = noise + torch.randn_like(z)
    schedule = LinearSchedule()
    unweighted, weighted = (
        Denoiser(FixedOutput(output), schedule, Noise(), weighting=weighting) for weighting in (None, MinSNR(2.0))
    )
    for denoiser in (unweighted, weighted):
        denoiser.build((3, 5, 5), 0)
    bars = torch.tensor([schedule.alpha_bar(timestep) for timestep in t.tolist()])
    snr = bars / (1 - bars)
    expected = unweighted.loss(z, t, c, noise) * snr.clamp(max=2.0) / snr
    torch.testing.assert_close(weighted.loss(z, t, c, noise), expected, rtol=1e-4, atol=1e-6)


def test_the_noise_cannot_be_predicted_without_signal():
    with pytest.raises(UserError, match="FlowVelocity"):
        Denoiser(FixedOutput(), FlowSchedule(), Noise())
    Denoiser(FixedOutput(), FlowSchedule(), Velocity())
