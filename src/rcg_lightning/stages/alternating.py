"""Stages that several optimizers train, such as a generator and its discriminator: their step, written once."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.distributed import average
from rcg_lightning.stages.optimization import Optimizer
from rcg_lightning.types import Batch, require


@dataclass(frozen=True)
class OptimizedNetwork:
    """One of several that take turns in a step, each with an optimizer of its own.

    Attributes:
        name: what its logs begin with.
        modules: what its optimizer moves.
        optimizer: settings of the optimizer.
        losses: from (a part of) a batch to scalars to be logged; ``loss`` is the one that is minimised.
        steps: how often it moves in a step.
        since: the first step of the training in which it plays.
    """

    name: str
    modules: Sequence[nn.Module]
    optimizer: Optimizer
    losses: Callable[[Batch], dict[str, Tensor]]
    steps: int = 1
    since: int = 0

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that its modules hold."""
        return (parameter for module in self.modules for parameter in module.parameters())


class AlternatingStage(Stage):
    """A stage whose players take turns, in manual optimisation.

    A step is one batch of the loader, and every turn of every player in it. The batch is cut into as many shares as
    the busiest player has turns, and each share into ``accumulate`` parts whose gradients are added up. So one batch
    is one step for checkpoints, validation, ``max_steps``, learning rates and resumption alike; ``global_step`` counts
    steps and not those of each optimizer. Set ``data.batch_size`` to what one process takes for a whole step.

    While a player moves, the others' weights take no gradient. The processes' gradients are averaged here and not by
    DDP, which would wait for those of the players that do not move; buffers (statistics of batches) are averaged too,
    so that all processes keep one and the same state. A network that normalises by its batch still sees its own
    process's part alone.

    A subclass returns its players, in the order of their turns. The one with the stage's own ``optimizer`` is the
    stage's own player: its losses are logged without a name in front. A subclass may set ``accumulate``.
    """

    accumulate: int = 1
    steps: int = 0
    _moving: tuple[OptimizedNetwork, dict[str, list[Tensor]]] | None = (
        None  # while an optimizer steps: whose, and the logs
    )

    @abstractmethod
    def optimized_networks(self) -> list[OptimizedNetwork]:
        """Return who takes turns, in their order."""

    @property
    def automatic_optimization(self) -> bool:
        return False

    def trained(self) -> list[nn.Module]:
        return [module for network in self.optimized_networks() if self._is_own(network) for module in network.modules]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Every player's losses, for validation."""
        optimized_networks = self.optimized_networks()
        return {
            self._named(network, key): value
            for network in optimized_networks
            for key, value in network.losses(batch).items()
        }

    def _is_own(self, network: OptimizedNetwork) -> bool:
        return network.optimizer is self.optimizer

    def _named(self, network: OptimizedNetwork, key: str) -> str:
        return key if self._is_own(network) else f"{network.name}_{key}"

    # -- the step ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        fits = isinstance(self.trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        name = type(self).__name__
        require(fits, f"{name} has several optimizers: train it with trainer.strategy auto or ddp")
        require(self.accumulate > 0, f"{name}: accumulate is at least 1, not {self.accumulate}")

    def configure_optimizers(self) -> Any:
        optimizers, schedulers = [], []
        total = self.trainer.max_steps
        for network in self.optimized_networks():
            own = total - network.since if total > network.since else total  # one that never plays needs no law
            optimizer, scheduler = network.optimizer.make(network.modules, own)
            optimizers.append(optimizer)
            schedulers.append({"scheduler": scheduler, "interval": "step", "name": f"lr-{network.name}"})
        return optimizers, schedulers

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        optimized_networks = self.optimized_networks()
        parts = split(batch, self.accumulate * max(network.steps for network in optimized_networks))
        logs: dict[str, list[Tensor]] = defaultdict(list)
        turns = zip(optimized_networks, _listed(self.optimizers()), _listed(self.lr_schedulers()), strict=True)
        with self._no_reducer():
            for network, optimizer, scheduler in turns:
                if self.steps < network.since:
                    continue
                own = parts[-network.steps * self.accumulate :]
                for share in range(network.steps):
                    moving = own[share * self.accumulate :][: self.accumulate]
                    self._turn(network, optimized_networks, optimizer, moving, logs)
                scheduler.step()
        average(b for p in optimized_networks for m in p.modules for b in m.buffers() if b.is_floating_point())
        self.steps += 1
        self.after_step()
        for name, values in logs.items():
            self.log(f"train/{name}", torch.stack(values).mean())

    def _turn(
        self,
        network: OptimizedNetwork,
        optimized_networks: list[OptimizedNetwork],
        optimizer: Any,
        parts: list[Batch],
        logs: dict[str, list[Tensor]],
    ) -> None:
        """Move one player by the gradients of some parts of the batch."""
        moved = {id(parameter) for parameter in network.parameters()}
        with without_gradient(p for other in optimized_networks for p in other.parameters() if id(p) not in moved):
            for part in parts:
                losses = network.losses(part)
                self.manual_backward(losses["loss"] / len(parts))
                for key, value in losses.items():
                    logs[self._named(network, key)].append(value.detach())
        average(p.grad for p in network.parameters() if p.grad is not None)  # before a scaler looks for infinities
        if not self._is_own(network):
            optimizer._on_before_step = optimizer._on_after_step = _nothing  # Lightning counts the others' steps only
        self._moving = network, logs
        optimizer.step()
        self._moving = None
        optimizer.zero_grad()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Log the norm of the player's gradients now and then, and clip them."""
        assert self._moving is not None
        network, logs = self._moving
        if (self.steps + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            gradients = [p.grad for p in network.parameters() if p.grad is not None]
            logs[f"{network.name}_gradient"].append(torch.nn.utils.get_total_norm(gradients))
        if self._is_own(network):
            self.configure_gradient_clipping(optimizer)
        elif network.optimizer.clip is not None:
            self.clip_gradients(optimizer, network.optimizer.clip, "norm")

    def _no_reducer(self) -> AbstractContextManager[Any]:
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """The step count, as a tensor because a state dict holds tensors."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)


def split(batch: Batch, count: int) -> list[Batch]:
    """Cut a batch into ``count`` equal parts, in order.

    Raises:
        UserError: it cannot be cut so.
    """
    size = len(batch["index"])
    require(
        size % count == 0,
        f"a batch of {size} cannot be cut into {count} parts (turns times accumulate): choose another data.batch_size",
    )
    width = size // count
    cuts = [slice(i * width, (i + 1) * width) for i in range(count)]
    return [{name: rows[cut] for name, rows in batch.items()} for cut in cuts]  # type: ignore[misc, index]


@contextmanager
def without_gradient(parameters: Iterator[nn.Parameter]) -> Iterator[None]:
    """Let parameters take no gradient for a while, and those of them that did take it again afterwards."""
    paused = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in paused:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in paused:
            parameter.requires_grad_(True)


def _listed(found: Any) -> list[Any]:
    """What Lightning gives as a list, unless there is one only."""
    return found if isinstance(found, list) else [found]


def _nothing() -> None:
    pass
