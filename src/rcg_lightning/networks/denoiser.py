"""The denoiser: a network, its schedule and its prediction, which together give x̂₀."""

import torch
from torch import Tensor, nn

from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.diffusion import (
    Clean,
    Posterior,
    Prediction,
    Weighting,
    add_noise,
    expand,
    transition_table,
    variational_bound,
)
from rcg_lightning.core.schedule import CosineSchedule, Schedule
from rcg_lightning.types import Backbone, require


class Denoiser(ConfigMixin, nn.Module):
    """Map a noised example to the posterior of the clean one. Only the denoiser knows what the network predicts.

    Args:
        network: the backbone, x (B, *S), t (B,), c (B, D) -> (B, *S).
        schedule: signal and noise at each timestep.
        prediction: meaning of the network's output.
        learned_variance: the network outputs twice the channels; the second half is the variance (ADM, DiT).
        weighting: weight of the squared error at each timestep; None for equal weights.
    """

    def __init__(
        self,
        network: Backbone,
        schedule: Schedule | None = None,
        prediction: Prediction | None = None,
        learned_variance: bool = False,
        weighting: Weighting | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule or CosineSchedule()
        self.prediction = prediction or Clean()
        self.learned_variance, self.weighting = learned_variance, weighting
        ends_without_signal = self.schedule.at(self.schedule.steps - 1)[0] == 0
        require(
            not (ends_without_signal and self.prediction.needs_signal),
            f"{type(self.schedule).__name__} ends without signal, where {type(self.prediction).__name__} cannot "
            "determine the example: let the network predict FlowVelocity",
        )
        if learned_variance:
            self.register_buffer("transitions", transition_table(self.schedule), persistent=False)

    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        """Create the network's parameters for examples of ``shape``."""
        self.network.build(shape, condition_dim, out_factor=2 if self.learned_variance else 1)

    def _parts(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split the network's output for x into its prediction and the mix of a learned variance."""
        output = output.to(x.dtype)  # everything after the network is float32, even under autocast
        if not self.learned_variance:
            return output, None
        output, variance = output.chunk(2, dim=1)
        return output, (variance + 1) / 2

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Posterior:
        """x (B, *S) at timesteps t (B,), c (B, D) -> Posterior of the clean example."""
        output, mix = self._parts(self.network(x, t, c), x)
        signal, sigma = (expand(scale, x) for scale in self.schedule.scales(t))
        return Posterior(self.prediction.mean(output, x, signal, sigma), mix)

    def loss(self, z: Tensor, t: Tensor, c: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of each example (B,): squared error, plus the variational bound for a learned variance."""
        x = add_noise(z, t, noise, self.schedule)
        return self._loss(self.network(x, t, c), z, x, t, noise)

    def loss_and_tokens(self, z: Tensor, t: Tensor, c: Tensor, noise: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Return the loss (B,) and a transformer's tokens (B, N, D) after ``depth`` blocks, from one forward pass."""
        x = add_noise(z, t, noise, self.schedule)
        output, tokens = self.network(x, t, c, depth)
        return self._loss(output, z, x, t, noise), tokens

    def _loss(self, output: Tensor, z: Tensor, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        output, mix = self._parts(output, x)
        scales = self.schedule.scales(t)
        signal, sigma = (expand(scale, x) for scale in scales)
        error = (self.prediction.target(z, noise, signal, sigma) - output).square().flatten(1).mean(1)
        if self.weighting is not None:
            error = error * self.weighting(self.prediction, *scales)
        if mix is None:
            return error
        posterior = Posterior(self.prediction.mean(output.detach(), x, signal, sigma), mix)
        return error + variational_bound(z, x, t, posterior, torch.as_tensor(self.transitions))
