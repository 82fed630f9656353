"""Exponential moving averages (EMA) of a stage's trained weights."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from rcg_lightning.arguments import BelowOne, NonNegativeInt, Share
from rcg_lightning.config import ConfigMixin
from rcg_lightning.core import fused_kernels
from rcg_lightning.types import require


@dataclass(frozen=True)
class _Tensors:
    """The tensors of an update: ``averages`` follow ``weights``, and ``copies`` equal ``originals``."""

    averages: list[Tensor]
    weights: list[Tensor]
    copies: list[Tensor]
    originals: list[Tensor]


class EMA(ConfigMixin, nn.Module):
    """EMA copies of an explicit list of modules, updated once after each optimizer step.

    By default only parameters are averaged, and buffers are copied. With ``warmup`` the decay at update n is
    min(decay, (1 + n) / (10 + n)), as in the official RDM and LDM. Those update *before* the optimizer step and once
    per micro-batch; here the update comes after the step, so the EMA weights are one step ahead of theirs.

    Args:
        decay: one decay, or several by name, each with its own copy.
        warmup: whether the decay starts small and grows.
        start: number of updates during which the EMA weights equal the weights (the official IC-GAN: 20,000).
        buffers: whether buffers are averaged as well (IC-GAN); integer buffers, such as counts, are always copied.
    """

    def __init__(
        self,
        decay: BelowOne | dict[str, BelowOne] = 0.9999,
        warmup: bool = False,
        start: NonNegativeInt = 0,
        buffers: bool = False,
    ) -> None:
        super().__init__()
        self.decays = dict(decay) if isinstance(decay, Mapping) else {"ema": decay}
        self.warmup, self.start, self.buffers_too = warmup, start, buffers
        self.updates = 0
        # listed once: a walk through all modules takes the host as long as dozens of launches
        self._listed: tuple[tuple[int, ...], dict[str, _Tensors]] | None = None
        self._longest = 1.0  # decay above which a half-life is longer than the run
        self.copies = nn.ModuleDict()
        keys = [_key(name) for name in self.decays]
        require(bool(keys), "EMA needs at least one decay")
        for name, key in zip(self.decays, keys):
            fits = key != "" and not hasattr(self.copies, key) and keys.count(key) == 1
            require(fits, f"EMA weights cannot be named {name!r}: choose another name, such as short or long")

    def build(self, modules: Mapping[str, nn.Module]) -> None:
        """Create a copy of ``modules`` for each decay, with their present weights."""
        for name in self.decays:
            copies = nn.ModuleDict({key: copy.deepcopy(module) for key, module in modules.items()})
            self.copies[_key(name)] = copies.requires_grad_(False).eval()

    def averaged(self, name: str | None = None) -> nn.ModuleDict:
        """Return the modules with the EMA weights of decay ``name``, by default of the first decay."""
        return self.copies[_key(name or next(iter(self.decays)))]  # type: ignore[return-value]

    def train(self, mode: bool = True) -> "EMA":
        """Stay in evaluation mode whatever ``mode`` is."""
        return super().train(False)

    @torch.no_grad()
    def update(self, modules: Mapping[str, nn.Module], skip: Tensor | None = None) -> None:
        """Update all EMA weights from ``modules`` by a few multi-tensor operations, without waiting for the device.

        Args:
            modules: those of ``build``.
            skip: () float32 on the device, 1 where the step of ``modules`` was skipped: then the weights stay.
        """
        self.updates += 1
        warm_decay = (1 + self.updates) / (10 + self.updates) if self.warmup else 1.0
        key = tuple(id(tensor) for module in modules.values() for tensor in (module, next(module.parameters(), None)))
        if self._listed is None or self._listed[0] != key:
            self._listed = key, {name: self._tensors(name, modules) for name in self.decays}
        for name, decay in self.decays.items():
            tensors = self._listed[1][name]
            rate = 1.0 if self.updates <= self.start else 1 - min(self.decay_now(decay), warm_decay)
            self.move(tensors.averages, tensors.weights, rate, skip)
            if tensors.copies:
                torch._foreach_copy_(tensors.copies, tensors.originals)

    def _tensors(self, name: str, modules: Mapping[str, nn.Module]) -> "_Tensors":
        copies = self.copies[_key(name)]
        buffers = list(zip(copies.buffers(), (b for module in modules.values() for b in module.buffers())))
        averaged = [pair for pair in buffers if self.buffers_too and pair[1].is_floating_point()]
        copied = [pair for pair in buffers if not (self.buffers_too and pair[1].is_floating_point())]
        return _Tensors(
            averages=[*copies.parameters(), *(ema for ema, _ in averaged)],
            weights=[*(p for module in modules.values() for p in module.parameters()), *(b for _, b in averaged)],
            copies=[ema for ema, _ in copied],
            originals=[buffer for _, buffer in copied],
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._listed = None  # a move to another device replaces buffers
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # a copy without the modules would follow copies of their weights, which nothing trains
        return {**self.__dict__, "_listed": None}

    def decay_now(self, decay: float) -> float:
        """Return the decay of this update, given the one that was set."""
        return min(decay, self._longest)

    def fit_to(self, steps: int) -> str | None:
        """Shorten a decay whose half-life is longer than a run of ``steps`` to a fifth of it; return a line about it.

        Without it, more than half of the EMA weights would be the initial ones when the run ends.
        """
        left = max(self.decays.values()) ** steps if steps > 0 else 0.0
        self._longest = 1.0
        if self.warmup or self.start or left <= 0.5:
            return None
        self._longest = 0.5 ** (5 / steps)
        return (
            f"EMA decay {max(self.decays.values())}: after {steps} steps {left:.0%} of the EMA weights would be the "
            f"initial ones, so it is {self._longest:.4g} in this run"
        )

    def move(self, ema_weights: list[Tensor], weights: list[Tensor], rate: float, skip: Tensor | None = None) -> None:
        """Interpolate ``ema_weights`` towards ``weights`` by ``rate`` as ``lerp_unless`` does."""
        lerp_unless(skip, ema_weights, weights, rate)

    def get_extra_state(self) -> Tensor:
        """Return the number of updates, as a tensor because a state dict holds tensors."""
        return torch.tensor(self.updates, dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        self.updates = int(state)


class PowerEMA(EMA):
    """EMA whose half-life is a share of the steps so far, so that it fits a run of any length, also a continued one.

    Half of the average comes from the last ``half_life`` of the run, and the initial weights vanish after a few steps.
    It is the power-function average of Karras et al. (2024, EDM2), with exponent ln 2 / half_life.

    Args:
        half_life: one share, or several by name, each with its own copy.
        buffers: whether buffers are averaged as well; integer buffers are always copied.
    """

    def __init__(self, half_life: Share | dict[str, Share] = 0.1, buffers: bool = False) -> None:
        shares = half_life if isinstance(half_life, Mapping) else {"ema": half_life}
        super().__init__(dict.fromkeys(shares, 0.0), buffers=buffers)
        self.decays = dict(shares)  # read by ``decay_now`` only; elsewhere its names

    def decay_now(self, decay: float) -> float:
        return 0.5 ** (1 / (decay * self.updates))

    def fit_to(self, steps: int) -> str | None:
        return None


@torch.no_grad()
def lerp_unless(skip: Tensor | None, averages: list[Tensor], weights: list[Tensor], rate: float) -> None:
    """Interpolate ``averages`` towards ``weights`` by ``rate`` in one operation, unless ``skip`` is 1 on the device.

    Args:
        skip: () float32; None for never. With rate 1, averages that equal the weights stay as they are anyway.
        averages: tensors with the memory layout of ``weights``.
        weights: as many tensors.
        rate: in [0, 1].
    """
    if skip is None or rate == 1:
        torch._foreach_lerp_(averages, weights, rate)
    elif fused_kernels.available(skip.device) and len({tensor.dtype for tensor in (*averages, *weights)}) == 1:
        # average - rate · (average - weight), as a step of SGD with weight decay 1, whose fused kernel can be skipped
        settings = {"weight_decay": 1.0, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "is_first_step": False}
        torch._fused_sgd_(averages, weights, [], lr=rate, maximize=True, found_inf=skip, **settings)
    else:
        torch._foreach_lerp_(averages, [torch.where(skip > 0, a, w) for a, w in zip(averages, weights)], rate)


def _key(name: str) -> str:
    """Return the name of a decay without dots, which a state dict does not allow."""
    return name.replace(".", "_")
