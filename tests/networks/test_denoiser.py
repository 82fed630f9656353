import pytest
import torch
from torch import nn

from rcg_lightning.core.diffusion import Clean, MinSNR, Noise, Velocity, add_noise, expand
from rcg_lightning.core.schedule import FlowSchedule, LinearSchedule
from rcg_lightning.errors import UserError
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.types import Backbone


class Told(Backbone):
    """Gives what it was told to, plus a trained offset."""

    condition_width = 2

    def __init__(self, output=None):
        super().__init__()
        self.output = output

    def build(self, shape, condition_dim, out_factor=1):
        self.built = (shape, condition_dim, out_factor)
        self.offset = nn.Parameter(torch.zeros(shape[0] * out_factor, *shape[1:]))

    def forward(self, x, k, c):
        return self.output + self.offset


@pytest.fixture
def example():
    torch.manual_seed(0)
    z, noise = torch.randn(2, 4, 3, 5, 5)
    return z, noise, torch.tensor([0, 10, 300, 700]), torch.zeros(4, 0)


@pytest.mark.parametrize("prediction", [Clean(), Noise(), Velocity()], ids=lambda p: type(p).__name__)
def test_a_perfect_network_has_no_loss_and_finds_the_clean_example(prediction, example):
    z, noise, k, c = example
    schedule = LinearSchedule()
    signal, sigma = (expand(scale, z) for scale in schedule.scales(k))
    denoiser = Denoiser(Told(prediction.target(z, noise, signal, sigma)), schedule, prediction)
    denoiser.build((3, 5, 5), 0)
    torch.testing.assert_close(denoiser.loss(z, k, c, noise), torch.zeros(4))
    posterior = denoiser(add_noise(z, k, noise, schedule), k, c)
    torch.testing.assert_close(posterior.mean, z, rtol=1e-4, atol=1e-4)
    assert posterior.variance_mix is None


def test_loss_is_the_mean_square_of_each_example(example):
    z, noise, k, c = example
    error = torch.randn_like(z)
    denoiser = Denoiser(Told(noise + error), LinearSchedule(), Noise())
    denoiser.build((3, 5, 5), 0)
    torch.testing.assert_close(denoiser.loss(z, k, c, noise), error.square().mean((1, 2, 3)))


def test_a_learned_variance_doubles_the_channels_and_adds_the_bound(example):
    z, noise, k, c = example
    raw = torch.cat([noise, torch.full_like(z, 0.5)], dim=1)
    denoiser = Denoiser(Told(raw), LinearSchedule(), Noise(), learned_variance=True)
    denoiser.build((3, 5, 5), 7)
    assert denoiser.network.built == ((3, 5, 5), 7, 2)
    posterior = denoiser(add_noise(z, k, noise, denoiser.schedule), k, c)
    torch.testing.assert_close(posterior.variance_mix, torch.full_like(z, 0.75))
    loss = denoiser.loss(z, k, c, noise)
    assert bool((loss[:2] > 0).all())  # the squared error is zero: this is the bound, which fades at high levels
    loss.sum().backward()
    gradient = denoiser.network.offset.grad
    assert float(gradient[:3].abs().max()) < 1e-5  # the bound trains the variance alone
    assert float(gradient[3:].abs().min()) > 0
    assert not [name for name in denoiser.state_dict() if "transitions" in name]


def test_float64_is_kept_out(example):
    z, noise, k, c = example
    denoiser = Denoiser(Told(noise), LinearSchedule(), Noise())
    denoiser.build((3, 5, 5), 0)
    assert denoiser(z, k, c).mean.dtype == denoiser.loss(z, k, c, noise).dtype == torch.float32


def test_a_weighting_scales_the_error_of_each_level(example):
    z, noise, k, c = example
    error = torch.randn_like(z)
    schedule = LinearSchedule()
    plain, weighted = (
        Denoiser(Told(noise + error), schedule, Noise(), weighting=weighting) for weighting in (None, MinSNR(2.0))
    )
    for denoiser in (plain, weighted):
        denoiser.build((3, 5, 5), 0)
    bars = torch.tensor([schedule.alpha_bar(level) for level in k.tolist()])
    snr = bars / (1 - bars)
    expected = plain.loss(z, k, c, noise) * snr.clamp(max=2.0) / snr
    torch.testing.assert_close(weighted.loss(z, k, c, noise), expected, rtol=1e-4, atol=1e-6)


def test_the_noise_cannot_be_predicted_where_there_is_no_signal():
    with pytest.raises(UserError, match="let the network predict FlowVelocity"):
        Denoiser(Told(), FlowSchedule(), Noise())
    Denoiser(Told(), FlowSchedule(), Velocity())
