"""The conditional GAN of Mirza & Osindero (2014, arXiv 1411.1784), for images and for word vectors.

In the paper the condition y passes its own layer, ReLU(W y + b) for a vector y, before it joins noise or data. Here the
linear part of that layer is the ``Conditioner``, and the network applies the nonlinearity. A class is a row of a table:
the column of W for its one-hot vector plus b. The functions are the same, with one redundant parameter less. So
``condition_width`` is the width before the nonlinearity, and a conditioner of another width is rejected.
"""

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg_lightning.arguments import BelowOne, PositiveFloat, Width
from rcg_lightning.config import ConfigMixin
from rcg_lightning.networks.adversarial import DiscriminatorNetwork, GeneratorNetwork, NoiseDistribution, UniformNoise
from rcg_lightning.types import require


class Units(ConfigMixin):
    """Nonlinearity of a layer: maps the ``width`` outputs of its linear part to ``count`` units."""

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

    def __init__(self, count: Width) -> None:
        self.count = self.width = count

    def __call__(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Maxout(Units):
    """Maxout, the largest of several linear pieces (Goodfellow et al. 2013).

    Args:
        count: number of units.
        pieces: linear pieces of a unit.
    """

    def __init__(self, count: Width, pieces: Width) -> None:
        self.count, self.pieces, self.width = count, pieces, count * pieces

    def __call__(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.count, self.pieces)).amax(2)


def initialise_uniform(module: nn.Module, init_range: float) -> None:
    """Initialise weights of linear layers uniformly in ± ``init_range`` and biases with zero, as usual in 2014."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -init_range, init_range)
            nn.init.zeros_(layer.bias)


class ConditionalGenerator(GeneratorNetwork):
    """Noise and condition each pass a ReLU layer and are joined to an example. The defaults are those for images.

    Without a condition the joint layer reads the noise's units only.

    Args:
        noise_dim: dimensions of the noise.
        noise_units: ReLU units of the noise's layer.
        condition_units: ReLU units of the condition's layer.
        joint_units: ReLU units of the joint layer; None for no joint layer (the word vectors).
        squashed: whether the example is an image: a sigmoid, scaled to [-1, 1]. Otherwise the output is linear.
        dropout: dropout probability of the hidden units in training.
        dropout_in_sampling: whether dropout acts in sampling, too. It is then part of the noise: further, uniform
            dimensions decide which units are dropped, so a seed still determines its sample.
        noise_distribution: of the noise; None for uniform.
        init_range: largest initial weight.
    """

    def __init__(
        self,
        noise_dim: Width = 100,
        noise_units: Width = 200,
        condition_units: Width = 1000,
        joint_units: Width | None = 1200,
        squashed: bool = True,
        dropout: BelowOne = 0.5,
        dropout_in_sampling: bool = False,
        noise_distribution: NoiseDistribution | None = None,
        init_range: PositiveFloat = 0.05,
    ) -> None:
        super().__init__()
        self.noise_dim, self.noise_units, self.condition_units = noise_dim, noise_units, condition_units
        self.joint_units, self.squashed, self.init_range = joint_units, squashed, init_range
        self.noise_distribution = noise_distribution or UniformNoise()
        uniform = isinstance(self.noise_distribution, UniformNoise)
        require(
            uniform or not dropout_in_sampling,
            "dropout_in_sampling needs uniform noise: set noise_distribution to null or dropout_in_sampling to false",
        )
        self.dropout, self.dropout_in_sampling = nn.Dropout(dropout), dropout_in_sampling

    def condition_width(self, shape: tuple[int, ...]) -> int:
        return self.condition_units

    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        check_width(condition_dim, self.condition_units, "generator")
        self.shape = shape
        width = self.noise_units + condition_dim
        self.noise_linear = nn.Linear(self.noise_dim, self.noise_units)
        self.noise_split = [self.noise_dim, width, self.joint_units or 0]  # z, dropout noise of both hidden layers
        if self.dropout_in_sampling:
            self.noise_dim = sum(self.noise_split)
        self.joint_linear = nn.Linear(width, self.joint_units) if self.joint_units else None
        self.out_linear = nn.Linear(self.joint_units or width, math.prod(shape))
        initialise_uniform(self, self.init_range)

    def forward(self, noise: Tensor, c: Tensor) -> Tensor:
        z, first, second = noise.split(self.noise_split, dim=1) if self.dropout_in_sampling else (noise, None, None)
        h = self._dropped(F.relu(torch.cat([self.noise_linear(z), c], dim=1)), first)  # (B, noise and condition units)
        if self.joint_linear is not None:
            h = self._dropped(F.relu(self.joint_linear(h)), second)  # (B, joint_units)
        out = self.out_linear(h).unflatten(1, self.shape)  # (B, *shape)
        return 2 * out.sigmoid() - 1 if self.squashed else out

    def _dropped(self, h: Tensor, noise: Tensor | None) -> Tensor:
        """Drop the units of h (B, U) whose ``noise`` (B, U), uniform in [0, 1], is small; None is usual dropout."""
        if noise is None:
            return self.dropout(h)
        return h * (noise >= self.dropout.p) / (1 - self.dropout.p)


class ConditionalDiscriminator(DiscriminatorNetwork):
    """Example and condition each pass a layer and are joined to a logit. The defaults are those for images.

    Args:
        example: units of the example's layer; None for 240 maxout units of 5 pieces.
        condition: units of the condition's layer; None for 50 maxout units of 5 pieces.
        joint: units of the joint layer; None for 240 maxout units of 4 pieces.
        images: whether examples are images in [-1, 1], which are scaled to [0, 1] as in the paper.
        dropout: dropout probability of the hidden units in training.
        input_dropout: dropout probability of the example's entries in training.
        init_range: largest initial weight.
    """

    def __init__(
        self,
        example: Units | None = None,
        condition: Units | None = None,
        joint: Units | None = None,
        images: bool = True,
        dropout: BelowOne = 0.5,
        input_dropout: BelowOne = 0.0,
        init_range: PositiveFloat = 0.005,
    ) -> None:
        super().__init__()
        self.example, self.condition = example or Maxout(240, 5), condition or Maxout(50, 5)
        self.joint, self.images, self.init_range = joint or Maxout(240, 4), images, init_range
        self.dropout, self.input_dropout = nn.Dropout(dropout), nn.Dropout(input_dropout)

    def condition_width(self, shape: tuple[int, ...]) -> int:
        return self.condition.width

    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        check_width(condition_dim, self.condition.width, "discriminator")
        condition_count = self.condition.count if condition_dim else 0
        self.example_linear = nn.Linear(math.prod(shape), self.example.width)
        self.joint_linear = nn.Linear(self.example.count + condition_count, self.joint.width)
        self.out_linear = nn.Linear(self.joint.count, 1)
        initialise_uniform(self, self.init_range)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = (x + 1) / 2 if self.images else x
        h = self.example(self.example_linear(self.input_dropout(x.flatten(1))))  # (B, example units)
        if c.shape[1]:
            h = torch.cat([h, self.condition(c)], dim=1)  # (B, example and condition units)
        h = self.joint(self.joint_linear(self.dropout(h)))  # (B, joint units)
        return self.out_linear(self.dropout(h))[:, 0]  # (B,)


def check_width(given: int, wanted: int, role: str) -> None:
    """Raise UserError unless the condition embedding has the width of its layer, or is absent."""
    fits = given in (0, wanted)
    require(fits, f"the condition's layer is {wanted} wide: the {role}'s conditioner.dim must be {wanted} or null")
