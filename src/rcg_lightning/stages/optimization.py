"""Settings of optimizers and learning-rate schedules, from which a stage creates torch's objects.

Learning rates are absolute. In a config, write the effective batch size of a learning rate next to it.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import LambdaLR

from rcg_lightning.arguments import BelowOne, NonNegativeFloat, NonNegativeInt, PositiveFloat, Range, UnitInterval
from rcg_lightning.config import ConfigMixin
from rcg_lightning.core import fused_kernels
from rcg_lightning.types import require


class LRSchedule(ConfigMixin):
    """Learning-rate schedule: the factor of the base rate at each step. Warm-up is linear, in optimizer steps.

    A warm-up as long as the run takes a tenth of it instead, so that the run trains.
    """

    def __init__(self, warmup: NonNegativeInt = 0) -> None:
        self.warmup = warmup

    def factor(self, step: int, total: int) -> float:
        """Return the factor for ``step`` in [0, total); ``total`` is -1 where training has no set end."""
        warmup = self.warmup_steps(total)
        if step < warmup:
            return (step + 1) / warmup
        return self.after_warmup(step - warmup, total - warmup)

    def warmup_steps(self, total: int) -> int:
        """Return the steps of the warm-up in a run of ``total`` steps."""
        return total // 10 if 0 <= total <= self.warmup else self.warmup

    def decay_start(self, total: int) -> int | None:
        """Return the step of a run of ``total`` at which a constant rate begins to decay; None if it never does."""
        return None

    @abstractmethod
    def after_warmup(self, step: int, total: int) -> float:
        """Return the factor for ``step`` of ``total`` after the warm-up."""


class ConstantLR(LRSchedule):
    """Warm-up, then the base rate."""

    def after_warmup(self, step: int, total: int) -> float:
        return 1.0


class CosineLR(LRSchedule):
    """Warm-up, then half a cosine down to ``final`` times the base rate at the last step."""

    def __init__(self, warmup: NonNegativeInt = 0, final: UnitInterval = 0.0) -> None:
        super().__init__(warmup)
        self.final = final

    def after_warmup(self, step: int, total: int) -> float:
        require(total > 0, "a cosine learning rate needs an end: set trainer.max_steps")
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))


class StableDecayLR(LRSchedule):
    """Warm-up, then the base rate, and at the end a linear decay to ``final`` times the base rate.

    All lengths are shares of the run. As the rate is constant before the decay, a longer run continues from there: the
    trainer keeps that checkpoint (``undecayed.ckpt``). Known as warmup-stable-decay (Hu et al. 2024).

    Args:
        warmup: share of the run, at most 1000 steps.
        decay: share of the steps after the warm-up.
        final: factor of the base rate at the end.
    """

    longest = 1000  # steps of the warm-up in a long run

    def __init__(
        self, warmup: BelowOne = 0.05, decay: Annotated[float, Range(0, 0.2)] = 0.2, final: UnitInterval = 0.0
    ) -> None:
        super().__init__()
        self.share, self.decay, self.final = warmup, decay, final

    def warmup_steps(self, total: int) -> int:
        return self.longest if total < 0 else min(int(self.share * total), self.longest)

    def decay_start(self, total: int) -> int | None:
        warmup = self.warmup_steps(total)
        return warmup + self._stable(total - warmup) if self.decay and total > 0 else None

    def after_warmup(self, step: int, total: int) -> float:
        stable = self._stable(total)
        if total < 0 or step < stable:
            return 1.0
        return 1 - (1 - self.final) * min((step - stable + 1) / (total - stable + 1), 1.0)

    def _stable(self, total: int) -> int:
        """Return how many of ``total`` steps after the warm-up have the base rate."""
        return total - int(self.decay * total)


class ExponentialLR(LRSchedule):
    """Warm-up, then the base rate divided by ``ratio`` at every step, but never below ``floor`` times the base rate.

    Goodfellow et al. (2014) and Mirza & Osindero (2014) divide .1 by 1.000004 and by 1.00004, down to 1e-6.
    """

    def __init__(
        self, ratio: Annotated[float, Range(1)], floor: UnitInterval = 0.0, warmup: NonNegativeInt = 0
    ) -> None:
        super().__init__(warmup)
        self.ratio, self.floor = ratio, floor

    def after_warmup(self, step: int, total: int) -> float:
        return max(self.ratio**-step, self.floor)


class Optimizer(ConfigMixin):
    """Settings of an optimizer; ``make`` creates it for the trained parameters of some modules.

    Args:
        lr: absolute learning rate.
        lr_schedule: factor of the learning rate at each step.
        clip: largest gradient norm; None for no clipping.
    """

    def __init__(self, lr: NonNegativeFloat, lr_schedule: LRSchedule, clip: PositiveFloat | None) -> None:
        self.lr, self.lr_schedule, self.clip = lr, lr_schedule, clip

    def make(self, modules: Iterable[nn.Module], total_steps: int) -> tuple[TorchOptimizer, LambdaLR]:
        """Return the optimizer and its scheduler, which steps once per optimizer step."""
        named = {name: p for module in modules for name, p in _named(module) if p.requires_grad}
        optimizer = self.create(named)
        return optimizer, LambdaLR(optimizer, lambda step: self.lr_schedule.factor(step, total_steps))

    @abstractmethod
    def create(self, named: dict[str, nn.Parameter]) -> TorchOptimizer:
        """Return the optimizer of these parameters."""


class AdamW(Optimizer):
    """AdamW, fused where torch has a fused kernel.

    Args:
        weight_decay: decoupled weight decay.
        decay_vectors: whether one-dimensional parameters and biases decay too (official RDM: yes; MAGE: no).
    """

    def __init__(
        self,
        lr: NonNegativeFloat = 1e-3,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.999),
        weight_decay: NonNegativeFloat = 0.01,
        eps: NonNegativeFloat = 1e-8,
        decay_vectors: bool = True,
        lr_schedule: LRSchedule | None = None,
        clip: PositiveFloat | None = None,
    ) -> None:
        super().__init__(lr, lr_schedule or ConstantLR(), clip)
        self.betas, self.weight_decay, self.eps, self.decay_vectors = betas, weight_decay, eps, decay_vectors

    def create(self, named: dict[str, nn.Parameter]) -> TorchOptimizer:
        vectors = [p for name, p in named.items() if p.ndim <= 1 or name.endswith(".bias")]
        undecayed = [] if self.decay_vectors else vectors
        undecayed_ids = {id(p) for p in undecayed}
        groups: list[dict[str, Any]] = [{"params": [p for p in named.values() if id(p) not in undecayed_ids]}]
        if undecayed:
            groups.append({"params": undecayed, "weight_decay": 0.0})
        fused, betas = _fusible(named), (self.betas[0], self.betas[1])
        return torch.optim.AdamW(
            groups, lr=self.lr, betas=betas, weight_decay=self.weight_decay, eps=self.eps, fused=fused
        )


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, fused where torch has a fused kernel.

    Args:
        momentum: momentum at the first step.
        final_momentum: momentum after a linear increase; None for a constant momentum.
        momentum_steps: steps of the increase.
        weight_decay: coupled weight decay.
        max_norm: largest norm of the weights into one unit of a linear layer, enforced after every step, as in the
            training of maxout networks (Goodfellow et al. 2013); None for no limit.
    """

    def __init__(
        self,
        lr: NonNegativeFloat = 0.1,
        momentum: BelowOne = 0.9,
        weight_decay: NonNegativeFloat = 0.0,
        lr_schedule: LRSchedule | None = None,
        clip: PositiveFloat | None = None,
        final_momentum: BelowOne | None = None,
        momentum_steps: NonNegativeInt = 0,
        max_norm: PositiveFloat | None = None,
    ) -> None:
        super().__init__(lr, lr_schedule or ConstantLR(), clip)
        self.momentum, self.weight_decay, self.max_norm = momentum, weight_decay, max_norm
        self.final_momentum, self.momentum_steps = final_momentum, momentum_steps

    def make(self, modules: Iterable[nn.Module], total_steps: int) -> tuple[TorchOptimizer, LambdaLR]:
        modules = list(modules)
        optimizer, scheduler = super().make(modules, total_steps)
        if self.final_momentum is not None:
            scheduler = _LambdaLRWithMomentum(optimizer, scheduler.lr_lambdas[0], self._momentum)
        if self.max_norm is not None:
            linear = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]
            weights: list[Tensor] = [layer.weight for layer in linear]
            max_norm = self.max_norm
            optimizer.register_step_post_hook(lambda *_: _clip_row_norms(weights, max_norm))
        return optimizer, scheduler

    def create(self, named: dict[str, nn.Parameter]) -> TorchOptimizer:
        fused = _fusible(named)
        optimizer = torch.optim.SGD(
            named.values(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, fused=fused
        )
        if self.momentum:  # the fused kernel does not initialise the buffers in a first step that it skips
            optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in named.values()})
        return optimizer

    def _momentum(self, step: int) -> float:
        assert self.final_momentum is not None
        progress = min(step / self.momentum_steps, 1.0) if self.momentum_steps else 1.0
        return self.momentum + (self.final_momentum - self.momentum) * progress


class _LambdaLRWithMomentum(LambdaLR):
    """A learning-rate scheduler that sets the momentum too."""

    def __init__(
        self, optimizer: TorchOptimizer, factor: Callable[[int], float], momentum: Callable[[int], float]
    ) -> None:
        self._momentum = momentum
        super().__init__(optimizer, factor)

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        for group in self.optimizer.param_groups:
            group["momentum"] = self._momentum(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name != "_momentum"}


@torch.no_grad()
def _clip_row_norms(weights: list[Tensor], max_norm: float) -> None:
    for weight in weights:
        weight.copy_(weight.renorm(2, 0, max_norm))


def _fusible(named: dict[str, nn.Parameter]) -> bool | None:
    """Return torch's argument ``fused``; None lets torch choose another implementation."""
    return all(fused_kernels.available(p.device) and p.is_floating_point() for p in named.values()) or None


def _named(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Parameters by names that stay distinct when several modules share one optimizer."""
    return ((f"{id(module)}.{name}", parameter) for name, parameter in module.named_parameters())
