"""Exponential moving averages of what a stage trains."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rcg_lightning.config import ConfigMixin
from rcg_lightning.types import require


class EMA(ConfigMixin, nn.Module):
    """Averaged copies of an explicit list of modules, updated once after each optimizer step.

    Only parameters are averaged, unless told otherwise; buffers are taken over as they are. With ``warmup`` the decay
    at update n is min(decay, (1 + n) / (10 + n)), as in the official RDM and LDM (which update *before* the optimizer
    step and once per micro-batch; here it is after the step, so the average is one step ahead of theirs).

    Args:
        decay: one decay, or several by name: then each has its own copy.
        warmup: whether to start with a faster average.
        start: updates before which an average is the weights themselves (the official IC-GAN: 20,000).
        buffers: whether buffers are averaged as well (IC-GAN); those that count are taken over.
    """

    def __init__(
        self,
        decay: float | dict[str, float] = 0.9999,
        warmup: bool = False,
        start: int = 0,
        buffers: bool = False,
    ) -> None:
        super().__init__()
        self.decays = dict(decay) if isinstance(decay, Mapping) else {"ema": decay}
        self.warmup, self.start, self.buffers_too = warmup, start, buffers
        self.updates = 0
        self.copies = nn.ModuleDict()
        keys = [_key(name) for name in self.decays]
        require(bool(keys), "EMA keeps at least one average: give a decay")
        for name, key in zip(self.decays, keys):
            fits = key != "" and not hasattr(self.copies, key) and keys.count(key) == 1
            require(fits, f"an average cannot be called {name!r} here: give it another name, such as short or long")

    def build(self, modules: Mapping[str, nn.Module]) -> None:
        """Start one copy of ``modules`` for each decay, from their present weights."""
        for name in self.decays:
            copies = nn.ModuleDict({key: copy.deepcopy(module) for key, module in modules.items()})
            self.copies[_key(name)] = copies.requires_grad_(False).eval()

    def averaged(self, name: str | None = None) -> nn.ModuleDict:
        """Return the copies of decay ``name``, by default those of the first."""
        return self.copies[_key(name or next(iter(self.decays)))]  # type: ignore[return-value]

    def train(self, mode: bool = True) -> "EMA":
        """Averaged copies are only ever evaluated."""
        return super().train(False)

    @torch.no_grad()
    def update(self, modules: Mapping[str, nn.Module]) -> None:
        """Move every average towards the present weights by a few multi-tensor operations; the host waits for none."""
        self.updates += 1
        warm = (1 + self.updates) / (10 + self.updates) if self.warmup else 1.0
        moved = [p for module in modules.values() for p in module.parameters()]
        buffers = [b for module in modules.values() for b in module.buffers()]
        taken_over = [not (self.buffers_too and b.is_floating_point()) for b in buffers]
        moved += [b for b, taken in zip(buffers, taken_over) if not taken]
        for name, decay in self.decays.items():
            copies = self.copies[_key(name)]
            copied = list(copies.buffers())
            shadows: list[Tensor] = [*copies.parameters(), *(b for b, taken in zip(copied, taken_over) if not taken)]
            rate = 1.0 if self.updates <= self.start else 1 - min(decay, warm)
            self.move(shadows, moved, rate)
            whole = [(averaged, buffer) for averaged, buffer, taken in zip(copied, buffers, taken_over) if taken]
            if whole:
                torch._foreach_copy_([averaged for averaged, _ in whole], [buffer for _, buffer in whole])

    def move(self, ema_weights: list[Tensor], weights: list[Tensor], rate: float) -> None:
        """Move each of ``ema_weights`` towards its weight by ``rate`` of the way, all by one operation."""
        torch._foreach_lerp_(ema_weights, weights, rate)

    def get_extra_state(self) -> Tensor:
        """The update count, as a tensor because a state dict holds tensors."""
        return torch.tensor(self.updates, dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        self.updates = int(state)


def _key(name: str) -> str:
    """Return the name of an average as a state dict can have it: without dots."""
    return name.replace(".", "_")
