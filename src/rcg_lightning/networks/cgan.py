"""The conditional GAN of Mirza & Osindero (2014, arXiv 1411.1784), for its images and for its word vectors.

In the paper the condition y goes through a layer of its own before it meets noise or data. Here the linear part of that
layer is the ``Conditioner`` and its nonlinearity stands at the door of the network: ReLU(W y + b) for a vector y. A
class is a row of a table, which is the column of W for its one-hot vector with b added: the same functions, one
redundant parameter less. So ``condition_width`` is the width before the nonlinearity, and a conditioner that is told
another width is rejected.
"""

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.config import ConfigMixin
from rcg_lightning.networks.adversarial import DiscriminatorNetwork, GeneratorNetwork, NoiseDistribution, UniformNoise
from rcg_lightning.types import require


class Units(ConfigMixin):
    """A layer's nonlinearity: ``width`` numbers of the linear map become ``count`` units."""

    count: int
    width: int

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """x (B, width) -> (B, count)."""


class Rectified(Units):
    """ReLU.

    Args:
        count: number of units.
    """

    def __init__(self, count: int) -> None:
        self.count = self.width = count

    def __call__(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Maxout(Units):
    """The largest of several linear pieces (Goodfellow et al. 2013).

    Args:
        count: number of units.
        pieces: linear maps for each unit.
    """

    def __init__(self, count: int, pieces: int) -> None:
        self.count, self.pieces, self.width = count, pieces, count * pieces

    def __call__(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.count, self.pieces)).amax(2)


def spread(module: nn.Module, reach: float) -> None:
    """Draw all weights of linear maps uniformly from [-reach, reach] and set biases to zero, as in those years."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -reach, reach)
            nn.init.zeros_(layer.bias)


class ConditionalGenerator(GeneratorNetwork):
    """Noise and condition each through a layer of ReLU, joined, to an example. The defaults are the images'.

    Without a condition the noise's layer alone is what the joint layer reads.

    Args:
        noise_dim: entries of the noise.
        noise_units: ReLU units that the noise is mapped to.
        condition_units: ReLU units that the condition is mapped to.
        joint_units: ReLU units that both are mapped to; None maps them to the example at once (the word vectors).
        squashed: whether the example is a image: a sigmoid, scaled to [-1, 1]. Otherwise the output is linear.
        dropout: probability of silencing a hidden unit in training.
        lasting: whether units are silenced in sampling, too. Dropout is then a part of the noise, of which further
            entries, uniform, decide which units are silenced: so a seed still names its sample.
        noise_distribution: of the noise; None for uniform.
        reach: largest weight at the start.
    """

    def __init__(
        self,
        noise_dim: int = 100,
        noise_units: int = 200,
        condition_units: int = 1000,
        joint_units: int | None = 1200,
        squashed: bool = True,
        dropout: float = 0.5,
        lasting: bool = False,
        noise_distribution: NoiseDistribution | None = None,
        reach: float = 0.05,
    ) -> None:
        super().__init__()
        self.noise_dim, self.noise_units, self.condition_units = noise_dim, noise_units, condition_units
        self.joint_units, self.squashed, self.lasting, self.reach = joint_units, squashed, lasting, reach
        self.noise_distribution = noise_distribution or UniformNoise()
        uniform = isinstance(self.noise_distribution, UniformNoise)
        require(uniform or not lasting, "lasting dropout takes uniform noise: set law to null or lasting to false")
        self.dropout = nn.Dropout(dropout)

    def condition_width(self, shape: tuple[int, ...]) -> int:
        return self.condition_units

    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        check_width(condition_dim, self.condition_units, "generator")
        self.shape = shape
        width = self.noise_units + condition_dim
        self.noise_linear = nn.Linear(self.noise_dim, self.noise_units)
        self.probabilities = [
            self.noise_dim,
            width,
            self.joint_units or 0,
        ]  # entries of the noise: z, and what silences units
        if self.lasting:
            self.noise_dim = sum(self.probabilities)
        self.joint_linear = nn.Linear(width, self.joint_units) if self.joint_units else None
        self.out_linear = nn.Linear(self.joint_units or width, math.prod(shape))
        spread(self, self.reach)

    def forward(self, noise: Tensor, c: Tensor) -> Tensor:
        z, first, second = noise.split(self.probabilities, dim=1) if self.lasting else (noise, None, None)
        h = self._thinned(F.relu(torch.cat([self.noise_linear(z), c], dim=1)), first)  # (B, noise and condition units)
        if self.joint_linear is not None:
            h = self._thinned(F.relu(self.joint_linear(h)), second)  # (B, joint_units)
        out = self.out_linear(h).unflatten(1, self.shape)  # (B, *shape)
        return 2 * out.sigmoid() - 1 if self.squashed else out

    def _thinned(self, h: Tensor, probabilities: Tensor | None) -> Tensor:
        """Silence units: those whose chance, uniform in [0, 1], is small, or at random in training."""
        if probabilities is None:
            return self.dropout(h)
        return h * (probabilities >= self.dropout.p) / (1 - self.dropout.p)


class ConditionalDiscriminator(DiscriminatorNetwork):
    """Example and condition each through a layer, joined by a third, to a logit. The defaults are the images'.

    Args:
        example: units that the example is mapped to; None for 240 of maxout with 5 pieces.
        condition: units that the condition is mapped to; None for 50 of maxout with 5 pieces.
        joint: units that both are mapped to; None for 240 of maxout with 4 pieces.
        images: whether examples are images in [-1, 1], which are read in [0, 1] as in the paper.
        dropout: probability of silencing a hidden unit in training.
        input_dropout: probability of silencing an entry of the example in training.
        reach: largest weight at the start.
    """

    def __init__(
        self,
        example: Units | None = None,
        condition: Units | None = None,
        joint: Units | None = None,
        images: bool = True,
        dropout: float = 0.5,
        input_dropout: float = 0.0,
        reach: float = 0.005,
    ) -> None:
        super().__init__()
        self.example, self.condition = example or Maxout(240, 5), condition or Maxout(50, 5)
        self.joint, self.images, self.reach = joint or Maxout(240, 4), images, reach
        self.dropout, self.input_dropout = nn.Dropout(dropout), nn.Dropout(input_dropout)

    def condition_width(self, shape: tuple[int, ...]) -> int:
        return self.condition.width

    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        check_width(condition_dim, self.condition.width, "discriminator")
        condition_count = self.condition.count if condition_dim else 0
        self.example_linear = nn.Linear(math.prod(shape), self.example.width)
        self.joint_linear = nn.Linear(self.example.count + condition_count, self.joint.width)
        self.out_linear = nn.Linear(self.joint.count, 1)
        spread(self, self.reach)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = (x + 1) / 2 if self.images else x
        h = self.example(self.example_linear(self.input_dropout(x.flatten(1))))  # (B, example units)
        if c.shape[1]:
            h = torch.cat([h, self.condition(c)], dim=1)  # (B, example and condition units)
        h = self.joint(self.joint_linear(self.dropout(h)))  # (B, joint units)
        return self.out_linear(self.dropout(h))[:, 0]  # (B,)


def check_width(given: int, wanted: int, role: str) -> None:
    """Raise UserError unless the condition comes as wide as the layer that it enters by, or not at all."""
    fits = given in (0, wanted)
    require(fits, f"the condition's layer is {wanted} wide: the {role}'s conditioner.dim must be {wanted} or null")
