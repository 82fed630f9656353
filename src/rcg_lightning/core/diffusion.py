"""Formulas of diffusion models that hold for every network: noising, predictions, transitions and losses."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rcg_lightning.arguments import PositiveFloat
from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.schedule import Schedule


@dataclass(frozen=True)
class Posterior:
    """A denoiser's estimate of the clean example.

    Attributes:
        mean: x̂₀ (B, *S), the expected clean example.
        variance_mix: (B, *S) in [0, 1] if the variance is learned: 0 is the smallest sensible variance, 1 the largest.
    """

    mean: Tensor
    variance_mix: Tensor | None = None


def expand(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, …, 1), to multiply with ``like`` (B, *S)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def add_noise(z: Tensor, t: Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """q(x_t | z): z and noise (B, *S), timesteps t (B,) -> x_t (B, *S)."""
    signal, sigma = schedule.scales(t)
    return expand(signal, z) * z + expand(sigma, z) * noise


class Prediction(ConfigMixin):
    """Meaning of the network's output. Everything outside the denoiser uses x̂₀."""

    needs_signal = False  # whether x̂₀ is undefined where the signal is zero

    @abstractmethod
    def target(self, z: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """Return the network's target output; all (B, *S), signal and sigma broadcast."""

    @abstractmethod
    def mean(self, output: Tensor, x: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """Convert the network's output at x = signal·z + sigma·noise to x̂₀."""


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
    """Weight of the squared error at each timestep."""

    @abstractmethod
    def __call__(self, prediction: Prediction, signal: Tensor, sigma: Tensor) -> Tensor:
        """Return the weight of the squared error of the network's output; signal and sigma have any shape."""


class MinSNR(Weighting):
    """Min-SNR (Hang et al. 2023): the squared error of x̂₀ is weighted by min(SNR, ``gamma``).

    The squared error of another output is first scaled to that of x̂₀, so the rule is the same for every prediction.
    """

    def __init__(self, gamma: PositiveFloat = 5.0) -> None:
        self.gamma = gamma

    def __call__(self, prediction: Prediction, signal: Tensor, sigma: Tensor) -> Tensor:
        ratio = (signal / sigma).square()
        slope = prediction.mean(torch.ones_like(signal), torch.zeros_like(signal), signal, sigma)  # of x̂₀ in the output
        return ratio.clamp(max=self.gamma) * slope.square()


@dataclass(frozen=True)
class Transition:
    """The reverse step from timestep t to a cleaner t_next < t: the Gaussian q(x_t_next | x_t, x₀). Plain floats.

    ``mean = from_clean * x₀ + from_noisy * x_t``. The log-variance lies between ``log_small`` (exact for a known x₀,
    clipped where it would be minus infinity) and ``log_large`` (that of the forward step).
    """

    from_clean: float
    from_noisy: float
    log_small: float
    log_large: float

    @classmethod
    def between(cls, schedule: Schedule, t: int, t_next: int) -> "Transition":
        """Compute the step t → t_next. If t_next is clean, the small variance is that of the step 1 → 0, not zero."""
        (signal, sigma), (signal_next, sigma_next) = schedule.at(t), schedule.at(t_next)
        added = added_variance(schedule, t, t_next)
        noisy_t, noisy_t_next = (t, t_next) if t_next >= 0 else (1, 0)
        return cls(
            from_clean=signal_next * added / sigma**2,
            from_noisy=signal / signal_next * (sigma_next / sigma) ** 2,
            log_small=math.log(bridge_variance(schedule, noisy_t, noisy_t_next)),
            log_large=math.log(added),
        )

    def log_variance(self, mix: Tensor | None) -> Tensor | float:
        """Interpolate the log-variance by ``mix``; None is the small one."""
        return self.log_small if mix is None else mix * self.log_large + (1 - mix) * self.log_small


def added_variance(schedule: Schedule, t: int, t_next: int) -> float:
    """Return the variance of q(x_t | x_t_next), t_next < t: the noise added from t_next to t."""
    (signal, sigma), (signal_next, sigma_next) = schedule.at(t), schedule.at(t_next)
    return sigma**2 - (signal / signal_next * sigma_next) ** 2


def bridge_variance(schedule: Schedule, t: int, t_next: int) -> float:
    """Return the variance of q(x_t_next | x_t, x₀), t_next < t."""
    return (schedule.at(t_next)[1] / schedule.at(t)[1]) ** 2 * added_variance(schedule, t, t_next)


def variational_bound(
    z: Tensor, x: Tensor, t: Tensor, posterior: Posterior, transitions: Tensor, bin_half_width: float = 1 / 255
) -> Tensor:
    """Return the variational bound of each example in bits per dimension, (B,).

    Agrees with guided-diffusion's ``vb_terms_bpd`` as ADM and DiT use it: x̂₀ carries no gradient (this term trains the
    learned variance only), and the bound at timestep 0 is the discretised Gaussian likelihood with the tanh
    approximation of the normal distribution function.

    Args:
        z, x: clean and noised examples (B, *S).
        t: timesteps (B,).
        transitions: (T, 4) table; row t holds (from_clean, from_noisy, log_small, log_large) of the step t → t - 1.
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
    """Return the ``Transition`` t → t - 1 of every timestep as (T, 4) float32, for ``variational_bound``."""
    rows = [Transition.between(schedule, t, t - 1) for t in range(schedule.steps)]
    return torch.tensor([[r.from_clean, r.from_noisy, r.log_small, r.log_large] for r in rows], dtype=torch.float32)


def _normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N₁ ‖ N₂) in nats, elementwise."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (-1.0 - ratio + ratio.exp() + (mean1 - mean2) ** 2 * (-log_variance2).exp())


def _discretised_log_likelihood(z: Tensor, mean: Tensor, log_scale: Tensor, half_width: float) -> Tensor:
    """Log-probability in nats of the 8-bit bin around z in [-1, 1] under N(mean, exp(log_scale)²), elementwise."""
    centred, inverse = z - mean, (-log_scale).exp()
    upper = _normal_cdf(inverse * (centred + half_width))
    lower = _normal_cdf(inverse * (centred - half_width))
    middle = (upper - lower).clamp(min=1e-12)
    edges = torch.where(z < -0.999, upper.clamp(min=1e-12), (1 - lower).clamp(min=1e-12))
    return torch.where(z.abs() > 0.999, edges, middle).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The official code's tanh approximation; with the exact function the bound differs by 0.5 to 4.6 %."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
