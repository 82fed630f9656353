"""Losses of generators and discriminators that play against each other, penalties, and the weight of one loss in two.

A discriminator says a logit for each example, or for each patch of one: any shape. Every loss is a mean over it.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.samplers import Sampler
from rcg_lightning.types import require


class AdversarialLoss(ConfigMixin):
    """What a discriminator and a generator minimise, from logits of any shape to a scalar."""

    @abstractmethod
    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the discriminator's loss for logits of real examples and of generated ones."""

    @abstractmethod
    def generator(self, fake: Tensor) -> Tensor:
        """Return the generator's loss for the logits of what it made."""


class Hinge(AdversarialLoss):
    """Logits beyond a margin of 1 are left alone (Lim & Ye 2017; BigGAN, IC-GAN, VQGAN)."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        return -fake.mean()


class Logistic(AdversarialLoss):
    """Binary cross-entropy; the generator wants its images called real (Goodfellow et al. 2014, StyleGAN2).

    Args:
        real_target: probability that the discriminator should give real examples; .9 keeps it from being too sure.
    """

    def __init__(self, real_target: float = 1.0) -> None:
        require(0.5 < real_target <= 1, f"real_target is a probability above .5, not {real_target}")
        self.real_target = real_target

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        sure = F.softplus(-real).mean()
        doubt = F.softplus(real).mean()
        return self.real_target * sure + (1 - self.real_target) * doubt + F.softplus(fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()


class Minimax(Logistic):
    """The value function as first published: the generator minimises log(1 - D), whose gradient vanishes early on."""

    def generator(self, fake: Tensor) -> Tensor:
        return -F.softplus(fake).mean()


def accuracy(logits: Tensor, real: bool) -> Tensor:
    """Return the share of logits that are on the right side of 0."""
    return ((logits > 0) == real).float().mean()


def gradient_penalty(logits: Tensor, *examples: Tensor) -> Tensor:
    """Return R1 without its weight: the mean squared norm of the gradient of logits (B, …) by examples (B, …).

    The examples need a gradient. Half of it is the penalty of Mescheder et al. 2018, eq. 9.
    """
    gradients = torch.autograd.grad(logits.sum(), examples, create_graph=True)
    return sum((g.float().square().flatten(1).sum(1) for g in gradients), torch.zeros((), device=logits.device)).mean()


class GradientPenalty(ConfigMixin):
    """R1: a discriminator should be flat at real examples (Mescheder et al. 2018), applied now and then (StyleGAN2).

    Args:
        weight: gamma, for half the squared norm.
        every: steps from one penalty to the next, which is so many times as heavy.
    """

    def __init__(self, weight: float = 10.0, every: int = 1) -> None:
        require(every > 0, f"a penalty is due every step or every few, not every {every}")
        self.weight, self.every = weight, every

    def due(self, step: int) -> bool:
        """Whether ``step`` is penalised."""
        return step % self.every == 0

    def __call__(self, logits: Tensor, *examples: Tensor) -> Tensor:
        """Logits (B, …) and the examples (B, …) that they are of, with gradient -> the weighted penalty, a scalar."""
        return self.weight / 2 * self.every * gradient_penalty(logits, *examples)


def path_lengths(images: Tensor, styles: Tensor) -> Tensor:
    """Return how far images (B, C, H, W) move for a small step of each of their styles (B, layers, D): (B,).

    The norm of a random projection's gradient, as StyleGAN2 estimates the size of the Jacobian; it can be minimised.
    """
    direction = torch.randn_like(images) / (images.shape[2] * images.shape[3]) ** 0.5
    (gradients,) = torch.autograd.grad((images * direction).sum(), styles, create_graph=True)
    return gradients.float().square().sum(2).mean(1).sqrt()


class PathLength(ConfigMixin):
    """A generator of styles should move images equally far everywhere (Karras et al. 2020), applied now and then.

    Args:
        weight: of the squared deviation of lengths from their running mean.
        every: steps from one penalty to the next, which is so many times as heavy.
        decay: how much of the running mean a new one replaces.
        shrink: one of so many rows of a batch is looked at.
    """

    def __init__(self, weight: float = 2.0, every: int = 4, decay: float = 0.01, shrink: int = 2) -> None:
        require(every > 0 and shrink > 0, "a path-length penalty is due every so many steps, on one of so many rows")
        self.weight, self.every, self.decay, self.shrink = weight, every, decay, shrink

    def due(self, step: int) -> bool:
        """Whether ``step`` is penalised."""
        return step % self.every == 0

    def __call__(self, lengths: Tensor, mean: Tensor) -> Tensor:
        """Lengths (B,) and their running mean, a scalar -> the weighted penalty."""
        return self.weight * self.every * (lengths - mean).square().mean()


class LeCam(ConfigMixin):
    """Keeps logits near the running means of the other side's, where images are few (Tseng et al. 2021, eq. 5).

    Args:
        weight: of the penalty.
        decay: how much of the running means a new one replaces.
    """

    def __init__(self, weight: float = 0.3, decay: float = 0.01) -> None:
        self.weight, self.decay = weight, decay

    def __call__(self, real: Tensor, fake: Tensor, means: Tensor) -> Tensor:
        """Logits of real and of made examples, and the running means of both (2,) -> the weighted penalty."""
        return self.weight * (F.relu(real - means[1]).square().mean() + F.relu(means[0] - fake).square().mean())


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    last: Tensor,
    average: Callable[[list[Tensor]], None] | None = None,
    most: float = 1e4,
) -> Tensor:
    """Return the weight at which two losses pull equally hard at a parameter (Esser et al. 2021, eq. 7), detached.

    No host synchronisation. Both graphs stay usable.

    Args:
        reconstruction: the loss with weight 1, a scalar.
        adversarial: the loss that is to be weighted, a scalar.
        last: weight of the decoder's last layer.
        average: averages tensors over processes in place, so that all of them find the weight of the whole batch.
        most: largest weight.
    """
    losses = (reconstruction, adversarial)
    pulls = [torch.autograd.grad(loss, last, retain_graph=True)[0].float().contiguous() for loss in losses]
    if average is not None:
        average(pulls)
    return (pulls[0].norm() / (pulls[1].norm() + 1e-4)).clamp(0, most).detach()


class OneStep(Sampler):
    """One pass from noise to example, as adversarial generators sample.

    Args:
        temperature: factor of the noise; below 1 samples are more typical and vary less, as truncation does it.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__(1, temperature)


def mean_distance(examples: Tensor) -> Tensor:
    """Return the mean distance between two of the examples (N, …), per entry: 0 where all are the same."""
    rows = examples.flatten(1).float()
    return torch.pdist(rows).mean() / rows.shape[1] ** 0.5
