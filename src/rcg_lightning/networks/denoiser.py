"""A network, the noise levels it knows and what it predicts: together they say what x̂₀ is."""

import torch
from torch import Tensor, nn

from rcg_lightning.core.diffusion import (
    Clean,
    Posterior,
    Prediction,
    add_noise,
    expand,
    transition_table,
    variational_bound,
)
from rcg_lightning.core.schedule import CosineSchedule, Schedule
from rcg_lightning.described import Described
from rcg_lightning.types import Backbone


class Denoiser(Described, nn.Module):
    """Maps a noised example to the posterior of the clean one. Only it knows what the network predicts.

    Args:
        network: the backbone, x (B, *S), k (B,), c (B, D) -> (B, *S).
        schedule: noise levels.
        prediction: meaning of the network's output.
        learned_variance: the network gives twice the channels, the second half being the variance (ADM, DiT).
    """

    def __init__(
        self,
        network: Backbone,
        schedule: Schedule | None = None,
        prediction: Prediction | None = None,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule or CosineSchedule()
        self.prediction = prediction or Clean()
        self.learned_variance = learned_variance
        if learned_variance:
            self.register_buffer("transitions", transition_table(self.schedule), persistent=False)

    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        """Create the network's parameters for examples of ``shape``."""
        self.network.build(shape, condition_dim, out_factor=2 if self.learned_variance else 1)

    def _outputs(self, x: Tensor, k: Tensor, c: Tensor) -> tuple[Tensor, Tensor | None]:
        output = self.network(x, k, c).to(x.dtype)  # under autocast too, everything after the network is float32
        if not self.learned_variance:
            return output, None
        output, variance = output.chunk(2, dim=1)
        return output, (variance + 1) / 2

    def forward(self, x: Tensor, k: Tensor, c: Tensor) -> Posterior:
        """x (B, *S) at levels k (B,) int64, c (B, D) -> Posterior of the clean example."""
        output, mix = self._outputs(x, k, c)
        signal, sigma = (expand(scale, x) for scale in self.schedule.scales(k))
        return Posterior(self.prediction.mean(output, x, signal, sigma), mix)

    def loss(self, z: Tensor, k: Tensor, c: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of each example (B,): squared error, plus the bound where the variance is learned."""
        x = add_noise(z, k, noise, self.schedule)
        output, mix = self._outputs(x, k, c)
        signal, sigma = (expand(scale, x) for scale in self.schedule.scales(k))
        error = (self.prediction.target(z, noise, signal, sigma) - output).square().flatten(1).mean(1)
        if mix is None:
            return error
        posterior = Posterior(self.prediction.mean(output.detach(), x, signal, sigma), mix)
        return error + variational_bound(z, x, k, posterior, torch.as_tensor(self.transitions))
