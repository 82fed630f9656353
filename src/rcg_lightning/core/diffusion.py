"""Formulas of diffusion models that hold for every network: noising, what a network predicts, and the losses."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.schedule import Schedule
from rcg_lightning.types import require


@dataclass(frozen=True)
class Posterior:
    """What a denoiser says of a noised example.

    Attributes:
        mean: x̂₀ (B, *S), the expected clean example.
        variance_mix: (B, *S) in [0, 1] where the variance is learned: 0 is the smallest sensible, 1 the largest.
    """

    mean: Tensor
    variance_mix: Tensor | None = None


def expand(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, …, 1), to be multiplied with ``like`` (B, *S)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def add_noise(z: Tensor, t: Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """q(x_k | z): z and noise (B, *S), k (B,) -> (B, *S)."""
    signal, sigma = schedule.scales(t)
    return expand(signal, z) * z + expand(sigma, z) * noise


class Prediction(ConfigMixin):
    """What the network's output means. Everything outside the denoiser speaks of x̂₀."""

    needs_signal = False  # whether x̂₀ cannot be told where an example holds no signal at all

    @abstractmethod
    def target(self, z: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """Return what the network should output; all (B, *S), signal and sigma broadcast."""

    @abstractmethod
    def mean(self, output: Tensor, x: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """Turn the network's output at x = signal·z + sigma·noise into x̂₀."""


class Clean(Prediction):
    """The network predicts the clean example."""

    def target(self, z: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return z

    def mean(self, output: Tensor, x: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return output


class Noise(Prediction):
    """The network predicts the noise."""

    needs_signal = True

    def target(self, z: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def mean(self, output: Tensor, x: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return (x - sigma * output) / signal


class Velocity(Prediction):
    """The network predicts signal·noise - sigma·z (Salimans & Ho 2022)."""

    def target(self, z: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return signal * noise - sigma * z

    def mean(self, output: Tensor, x: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return (signal * x - sigma * output) / (signal.square() + sigma.square())


class FlowVelocity(Prediction):
    """The network predicts noise - z, the velocity dx/dt along the straight path (flow matching, SiT)."""

    def target(self, z: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return noise - z

    def mean(self, output: Tensor, x: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return (x - sigma * output) / (signal + sigma)


class Weighting(ConfigMixin):
    """How much the squared error at a timestep counts."""

    @abstractmethod
    def __call__(self, prediction: Prediction, signal: Tensor, sigma: Tensor) -> Tensor:
        """Return the weight of the squared error of the network's output, for scales of any shape."""


class MinSNR(Weighting):
    """The error of x̂₀ counts by the signal-to-noise ratio, but at most ``gamma`` (Min-SNR, Hang et al. 2023).

    The squared error of another output is scaled to that of x̂₀ first, so one law holds for every prediction.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        require(gamma > 0, f"gamma bounds a ratio: it is positive, not {gamma}")
        self.gamma = gamma

    def __call__(self, prediction: Prediction, signal: Tensor, sigma: Tensor) -> Tensor:
        ratio = (signal / sigma).square()
        slope = prediction.mean(torch.ones_like(signal), torch.zeros_like(signal), signal, sigma)  # of x̂₀ in the output
        return ratio.clamp(max=self.gamma) * slope.square()


@dataclass(frozen=True)
class Transition:
    """The reverse step from level k to a cleaner level s < k, as Gaussian q(x_s | x_k, x₀). Plain floats.

    ``mean = from_clean * x₀ + from_noisy * x_k``; the log-variance lies between ``log_small`` (exact for a known x₀,
    clipped where it would be minus infinity) and ``log_large`` (that of the forward step).
    """

    from_clean: float
    from_noisy: float
    log_small: float
    log_large: float

    @classmethod
    def between(cls, schedule: Schedule, t: int, t_next: int) -> "Transition":
        """Compute the step k → s. Where s is clean, the small variance of the step 1 → 0 stands in for zero."""
        (signal, sigma), (signal_next, sigma_next) = schedule.at(t), schedule.at(t_next)
        added = added_variance(schedule, t, t_next)
        floor_t, floor_next = (t, t_next) if t_next >= 0 else (1, 0)
        return cls(
            from_clean=signal_next * added / sigma**2,
            from_noisy=signal / signal_next * (sigma_next / sigma) ** 2,
            log_small=math.log(bridge_variance(schedule, floor_t, floor_next)),
            log_large=math.log(added),
        )

    def log_variance(self, mix: Tensor | None) -> Tensor | float:
        """Interpolate the log-variance; without a learned mix it is the small one."""
        return self.log_small if mix is None else mix * self.log_large + (1 - mix) * self.log_small


def added_variance(schedule: Schedule, t: int, t_next: int) -> float:
    """Return the variance of q(x_k | x_s), s < k: the noise that is added on the way from s to k."""
    (signal, sigma), (signal_next, sigma_next) = schedule.at(t), schedule.at(t_next)
    return sigma**2 - (signal / signal_next * sigma_next) ** 2


def bridge_variance(schedule: Schedule, t: int, t_next: int) -> float:
    """Return the variance of q(x_s | x_k, x₀), s < k."""
    return (schedule.at(t_next)[1] / schedule.at(t)[1]) ** 2 * added_variance(schedule, t, t_next)


def variational_bound(
    z: Tensor, x: Tensor, t: Tensor, posterior: Posterior, transitions: Tensor, bin_half_width: float = 1 / 255
) -> Tensor:
    """Return the variational bound of each example in bits per dimension, (B,).

    Agrees with guided-diffusion's ``vb_terms_bpd`` as ADM and DiT use it: x̂₀ carries no gradient (only the learned
    variance is trained by this term), the bound at level 0 is the discretised Gaussian likelihood with the tanh
    approximation of the normal distribution function.

    Args:
        z, x: clean and noised examples (B, *S).
        t: levels (B,).
        transitions: (T, 4) table, row k holds (from_clean, from_noisy, log_small, log_large) of the step k → k - 1.
    """
    assert posterior.variance_mix is not None, "the bound trains a learned variance"
    from_clean, from_noisy, log_small, log_large = (expand(column, x) for column in transitions[t].T)
    true_mean = from_clean * z + from_noisy * x
    mean = from_clean * posterior.mean.detach() + from_noisy * x
    log_variance = posterior.variance_mix * log_large + (1 - posterior.variance_mix) * log_small
    divergence = _normal_kl(true_mean, log_small, mean, log_variance)
    likelihood = -_discretised_log_likelihood(z, mean, 0.5 * log_variance, bin_half_width)
    bound = torch.where(expand(t == 0, x), likelihood, divergence)
    return bound.flatten(1).mean(1) / math.log(2)


def transition_table(schedule: Schedule) -> Tensor:
    """Return (T, 4) float32: the ``Transition`` k → k - 1 of every level, as ``variational_bound`` wants it."""
    rows = [Transition.between(schedule, t, t - 1) for t in range(schedule.steps)]
    return torch.tensor([[r.from_clean, r.from_noisy, r.log_small, r.log_large] for r in rows], dtype=torch.float32)


def _normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N₁ ‖ N₂) in nats, elementwise."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (-1.0 - ratio + ratio.exp() + (mean1 - mean2) ** 2 * (-log_variance2).exp())


def _discretised_log_likelihood(z: Tensor, mean: Tensor, log_scale: Tensor, half_width: float) -> Tensor:
    """Log-probability of the 8-bit bin of z in [-1, 1] under N(mean, exp(log_scale)²), in nats, elementwise."""
    centred, inverse = z - mean, (-log_scale).exp()
    upper = _normal_cdf(inverse * (centred + half_width))
    lower = _normal_cdf(inverse * (centred - half_width))
    middle = (upper - lower).clamp(min=1e-12)
    edges = torch.where(z < -0.999, upper.clamp(min=1e-12), (1 - lower).clamp(min=1e-12))
    return torch.where(z.abs() > 0.999, edges, middle).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation that the official code uses; the exact function differs by 0.5 to 4.6 % in the bound."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
