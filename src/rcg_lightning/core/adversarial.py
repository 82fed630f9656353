"""Adversarial losses of generators and discriminators, their penalties, and the weight that balances two losses.

A discriminator outputs a logit for each example or for each of its patches: any shape. Every loss is a mean over them.
"""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rcg_lightning.arguments import NonNegativeFloat, PositiveInt, Range, UnitInterval
from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.samplers import Sampler


class AdversarialLoss(ConfigMixin):
    """The losses that a discriminator and a generator minimise: logits of any shape -> a scalar."""

    @abstractmethod
    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the discriminator's loss for logits of real examples and of generated ones."""

    @abstractmethod
    def generator(self, fake: Tensor) -> Tensor:
        """Return the generator's loss for the logits of its examples."""


class Hinge(AdversarialLoss):
    """Hinge loss: logits beyond a margin of 1 get no gradient (Lim & Ye 2017; BigGAN, IC-GAN, VQGAN)."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        return -fake.mean()


class Logistic(AdversarialLoss):
    """Binary cross-entropy with the non-saturating generator loss (Goodfellow et al. 2014, StyleGAN2).

    Args:
        real_target: target probability of real examples; 0.9 smooths the labels, so that the discriminator is less
            confident.
    """

    def __init__(self, real_target: Annotated[float, Range(0.5, 1, above=True)] = 1.0) -> None:
        self.real_target = real_target

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        real_as_real = F.softplus(-real).mean()
        real_as_fake = F.softplus(real).mean()
        real_loss = self.real_target * real_as_real + (1 - self.real_target) * real_as_fake
        return real_loss + F.softplus(fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()


class Minimax(Logistic):
    """The original minimax loss: the generator minimises log(1 - D), whose gradient vanishes early in training."""

    def generator(self, fake: Tensor) -> Tensor:
        return -F.softplus(fake).mean()


def accuracy(logits: Tensor, real: bool) -> Tensor:
    """Return the share of logits with the right sign."""
    return ((logits > 0) == real).float().mean()


def gradient_penalty(logits: Tensor, *examples: Tensor) -> Tensor:
    """Return R1 without its weight: the mean squared norm of the gradient of logits (B, …) by examples (B, …).

    The examples must require a gradient. Half the result is the penalty of Mescheder et al. 2018, eq. 9.
    """
    gradients = torch.autograd.grad(logits.sum(), examples, create_graph=True)
    return sum((g.float().square().flatten(1).sum(1) for g in gradients), torch.zeros((), device=logits.device)).mean()


class GradientPenalty(ConfigMixin):
    """R1 penalty on the gradient at real examples (Mescheder et al. 2018), applied every n steps (StyleGAN2).

    Args:
        weight: γ, for half the squared norm.
        every: n; the penalty is multiplied by n.
    """

    def __init__(self, weight: NonNegativeFloat = 10.0, every: PositiveInt = 1) -> None:
        self.weight, self.every = weight, every

    def due(self, step: int) -> bool:
        """Whether the penalty is applied at ``step``."""
        return step % self.every == 0

    def __call__(self, logits: Tensor, *examples: Tensor) -> Tensor:
        """Logits (B, …) and their examples (B, …), which require a gradient -> the weighted penalty, a scalar."""
        return self.weight / 2 * self.every * gradient_penalty(logits, *examples)


def path_lengths(images: Tensor, styles: Tensor) -> Tensor:
    """Return how far images (B, C, H, W) move for a small step of each of their styles (B, layers, D): (B,).

    StyleGAN2's estimate of the size of the Jacobian: the norm of a random projection's gradient. It is differentiable.
    """
    direction = torch.randn_like(images) / (images.shape[2] * images.shape[3]) ** 0.5
    (gradients,) = torch.autograd.grad((images * direction).sum(), styles, create_graph=True)
    return gradients.float().square().sum(2).mean(1).sqrt()


class PathLength(ConfigMixin):
    """Path-length penalty: steps in style space move images equally far everywhere (Karras et al. 2020).

    Args:
        weight: of the squared difference between the lengths and their running mean.
        every: n: applied every n steps and multiplied by n.
        decay: share of the running mean that a new value replaces.
        shrink: n: computed on 1 / n of the examples of a batch.
    """

    def __init__(
        self,
        weight: NonNegativeFloat = 2.0,
        every: PositiveInt = 4,
        decay: UnitInterval = 0.01,
        shrink: PositiveInt = 2,
    ) -> None:
        self.weight, self.every, self.decay, self.shrink = weight, every, decay, shrink

    def due(self, step: int) -> bool:
        """Whether the penalty is applied at ``step``."""
        return step % self.every == 0

    def __call__(self, lengths: Tensor, mean: Tensor) -> Tensor:
        """Lengths (B,) and their running mean, a scalar -> the weighted penalty."""
        return self.weight * self.every * (lengths - mean).square().mean()


class LeCam(ConfigMixin):
    """LeCam regularisation for small data sets: real logits stay near the running mean of fake ones, and vice versa.

    Source: Tseng et al. 2021, eq. 5.

    Args:
        weight: of the penalty.
        decay: share of the running means that new values replace.
    """

    def __init__(self, weight: NonNegativeFloat = 0.3, decay: UnitInterval = 0.01) -> None:
        self.weight, self.decay = weight, decay

    def __call__(self, real: Tensor, fake: Tensor, means: Tensor) -> Tensor:
        """Logits of real and of generated examples, and the running means of both (2,) -> the weighted penalty."""
        return self.weight * (F.relu(real - means[1]).square().mean() + F.relu(means[0] - fake).square().mean())


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    last: Tensor,
    average: Callable[[list[Tensor]], None] | None = None,
    most: float = 1e4,
) -> Tensor:
    """Return the weight that makes the gradients of two losses equally large (Esser et al. 2021, eq. 7), detached.

    Does not synchronise with the host. Both graphs stay usable.

    Args:
        reconstruction: the loss with weight 1, a scalar.
        adversarial: the loss to weight, a scalar.
        last: weight of the decoder's last layer, by which the gradients are taken.
        average: averages tensors over processes in place, so that all processes compute the weight of the whole batch.
        most: largest weight.
    """
    losses = (reconstruction, adversarial)
    gradients = [torch.autograd.grad(loss, last, retain_graph=True)[0].float().contiguous() for loss in losses]
    if average is not None:
        average(gradients)
    return (gradients[0].norm() / (gradients[1].norm() + 1e-4)).clamp(0, most).detach()


class OneStep(Sampler):
    """One pass from noise to example, as adversarial generators sample.

    Args:
        temperature: factor of the noise; below 1 samples are more typical and less diverse, as with truncation.
    """

    def __init__(self, temperature: NonNegativeFloat = 1.0) -> None:
        super().__init__(1, temperature)


def mean_distance(examples: Tensor) -> Tensor:
    """Return the mean distance between two of the examples (N, …), over √(entries of one): 0 if all are the same."""
    flat = examples.flatten(1).float()
    return torch.pdist(flat).mean() / flat.shape[1] ** 0.5


def twice_differentiable() -> AbstractContextManager[Any]:
    """Compute attention by plain matmuls: gradient penalties differentiate twice, which fused kernels cannot."""
    return sdpa_kernel(SDPBackend.MATH)
