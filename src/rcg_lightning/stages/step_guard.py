"""Skipping of training steps whose loss or gradients are not finite, decided on the device without waiting for it."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WINDOW = 100  # gradient norms whose median a spike is compared with


@dataclass(frozen=True)
class Update:
    """One update of a network; the tensors are () on the device.

    Attributes:
        step: training step, counted from 1.
        rate: learning rate.
        loss: this process's loss.
        norm: norm of the gradients averaged over all processes.
        skip: 1 where the update was skipped, else 0.
    """

    step: int
    rate: float
    loss: Tensor
    norm: Tensor
    skip: Tensor


@dataclass(frozen=True)
class StepValues:
    """Values of a training step, on the host; see ``Update``."""

    step: int
    rate: float
    loss: float
    norm: float


class StepGuard:
    """Skips a step on the device: weights, optimizer state, EMA weights and buffers stay as they were.

    Whether a step is skipped follows from its reduced gradients alone, so all processes agree (``Stage.backward`` makes
    the gradients of a loss that is not finite so too). Schedules and step counts on the host go on. A norm that
    overflows float32 counts as not finite.

    Attributes:
        spike: skip a step too whose gradient norm is this many times the median of the last ``WINDOW``; None for off.
        skip: () float32, 1 where the present step is skipped, else 0; None outside of training.
        total: number of skipped steps that the host has read of.
        last: the last step read.
        streak: the skipped steps in a row up to the last step read.
        unreported: skipped steps that are not yet reported to the user.
    """

    def __init__(self, spike: float | None = None) -> None:
        self.spike = spike
        self.skip: Tensor | None = None
        self._loss: Tensor | None = None
        self.unreported: list[StepValues] = []
        self.streak: list[StepValues] = []
        self.last: StepValues | None = None
        self.total = 0
        self.updates: list[Update] = []  # since the host read them
        self._norms: dict[str, Tensor] = {}  # network -> (WINDOW,) norms of the last updates that were not skipped
        self._counts: dict[str, int] = defaultdict(int)  # network -> updates
        self._buffers: list[Tensor] = []
        self._kept: list[Tensor] = []  # the buffers after the last step that was not skipped

    # -- on the device -------------------------------------------------------------------------------------------------

    def start(self, buffers: Iterable[Tensor]) -> None:
        """Begin a training whose steps change ``buffers``."""
        self._buffers = list(buffers)
        self._kept = [buffer.detach().clone() for buffer in self._buffers]

    def begin_step(self) -> None:
        """Begin a training step: its first update is skipped for its own gradients only."""
        self.skip = None

    def add_loss(self, loss: Tensor) -> None:
        """Add a loss () to those whose gradients the next update applies: losses of parts of a batch, as shares."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def check(self, optimizer: torch.optim.Optimizer, clip: float | None, step: int, name: str = "") -> Tensor:
        """Clip the gradients that ``optimizer`` is about to apply, and decide whether it skips them.

        After one skipped update the others of the same step are skipped too.

        Args:
            optimizer: of the network ``name``.
            clip: largest gradient norm; None for no clipping.
            step: training step, counted from 1.
            name: of the network.

        Returns:
            () norm of the gradients before clipping.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])  # type: ignore[misc]
        if clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        earlier, out = self.skip, torch.empty_like(norm, dtype=torch.float32)
        self.skip = torch.logical_not(norm < self._limit(name, norm), out=out)
        if earlier is not None:
            self.skip = torch.maximum(earlier, self.skip)
        self._remember(name, norm)
        loss, rate = norm if self._loss is None else self._loss, float(optimizer.param_groups[0]["lr"])
        self._loss = None
        self.updates.append(Update(step, rate, loss, norm, self.skip))
        skip_update(optimizer, self.skip)
        return norm

    def _limit(self, name: str, norm: Tensor) -> Tensor | float:
        """Return the gradient norm at which an update is skipped."""
        if self.spike is None:
            return torch.inf
        if name not in self._norms:
            self._norms[name] = torch.full((WINDOW,), torch.inf)
        self._norms[name] = self._norms[name].to(norm)
        # infinite until half of the window is filled
        return self.spike * self._norms[name].sort().values[WINDOW // 2 - 1]

    def _remember(self, name: str, norm: Tensor) -> None:
        if self.spike is not None:
            assert self.skip is not None
            slot = self._norms[name][self._counts[name] % WINDOW]
            slot.copy_(torch.where(self.skip > 0, slot, norm))
            self._counts[name] += 1

    def restore_buffers(self) -> None:
        """Undo the step's changes of the buffers where it is skipped."""
        if self.skip is not None:
            put_back(self._buffers, self._kept, self.skip)

    # -- on the host ---------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Count the steps skipped since the last call; the host waits for the device."""
        updates, self.updates = self.updates, []
        if not updates:
            return
        values = torch.stack([value.float() for u in updates for value in (u.loss, u.norm, u.skip)]).view(-1, 3)
        for update, (loss, norm, skip) in zip(updates, values.tolist(), strict=True):
            if self.streak and self.streak[-1].step == update.step:
                continue  # an earlier update of this step was skipped, and all since
            self.last = StepValues(update.step, update.rate, loss, norm)
            self.streak = [*self.streak, self.last] if skip else []
            self.unreported += [self.last] if skip else []
            self.total += int(skip)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run continues with."""
        return {"total": self.total, "norms": dict(self._norms), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue as the run that returned ``state``; {} starts afresh."""
        self.total, self._norms = int(state.get("total", 0)), dict(state.get("norms", {}))
        self._counts = defaultdict(int, state.get("counts", {}))


def skip_update(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """Make the next step of ``optimizer`` change nothing where ``skip`` () float32 is 1."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = skip  # type: ignore[attr-defined]  # fused kernels then change nothing
        return
    weights: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [*weights, *state_tensors(optimizer, skip.device)]
    kept, hooks = [tensor.detach().clone() for tensor in tensors], list[Callable[[], None]]()

    @torch.no_grad()
    def undo(*_: object) -> None:
        put_back(tensors, kept, skip)
        known = {id(tensor) for tensor in tensors}
        new = [v for v in state_tensors(optimizer, skip.device) if id(v) not in known]  # this step created them
        put_back(new, [torch.zeros_like(v) for v in new], skip)
        hooks.pop()()

    hooks.append(optimizer.register_step_post_hook(undo).remove)


def state_tensors(optimizer: torch.optim.Optimizer, device: torch.device) -> list[Tensor]:
    """Return the tensors of an optimizer's state that lie on ``device``."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, Tensor) and value.device == device]


@torch.no_grad()
def put_back(tensors: list[Tensor], kept: list[Tensor], skip: Tensor) -> None:
    """Set both lists to ``kept`` where ``skip`` () is 1, and to ``tensors`` elsewhere, in a few operations."""
    by_dtype: dict[torch.dtype, list[int]] = defaultdict(list)
    for i, tensor in enumerate(tensors):
        by_dtype[tensor.dtype].append(i)
    for indices in by_dtype.values():
        now, before = [tensors[i] for i in indices], [kept[i] for i in indices]
        flat, flat_before = (torch.cat([tensor.flatten() for tensor in group]) for group in (now, before))
        parts = torch.where(skip > 0, flat_before, flat).split([tensor.numel() for tensor in now])
        shaped = [part.view_as(tensor) for part, tensor in zip(parts, now)]
        torch._foreach_copy_(now, shaped)
        torch._foreach_copy_(before, shaped)
