"""Stages with several optimizers, such as a generator network and its discriminator: their training step."""

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
from rcg_lightning.stages.distributed import all_reduce_mean
from rcg_lightning.stages.optimization import Optimizer
from rcg_lightning.types import Batch, require


@dataclass(frozen=True)
class OptimizedNetwork:
    """A network with its own optimizer and losses.

    Attributes:
        name: prefix of its logs.
        modules: what its optimizer updates.
        optimizer: settings of the optimizer.
        losses: (a part of) a batch -> scalars to log; ``loss`` is minimised.
        updates: updates in each training step.
        start: first training step in which it is updated.
    """

    name: str
    modules: Sequence[nn.Module]
    optimizer: Optimizer
    losses: Callable[[Batch], dict[str, Tensor]]
    updates: int = 1
    start: int = 0

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters of its modules."""
        return (parameter for module in self.modules for parameter in module.parameters())


class AlternatingStage(Stage):
    """Updates several networks in turn, in manual optimisation.

    A training step reads one batch of the loader and makes every update of every network. The batch is cut into as
    many shares as the network with the most updates needs, and each share into ``accumulate`` parts whose gradients
    are added up; a network with fewer updates takes the last shares. So one batch is one step for checkpoints,
    validation, ``max_steps``, learning rates and resumption alike, and ``global_step`` counts these steps, not those of
    each optimizer. Set ``data.batch_size`` to the images that one process reads in a whole step.

    While one network is updated, the parameters of the others take no gradient. The gradients are averaged over the
    processes here and not by DDP, which would wait for those of the other networks. Buffers (batch statistics) are
    averaged too, so that all processes share one state. Batch normalisation still sees only the part of its process.

    A subclass returns its networks in the order of their updates. The network that has the stage's own ``optimizer``
    logs its losses without a prefix. A subclass may set ``accumulate``.
    """

    accumulate: int = 1
    steps: int = 0
    # the network whose optimizer steps, and the logs: for the hook that Lightning calls in between
    _in_update: tuple[OptimizedNetwork, dict[str, list[Tensor]]] | None = None

    @abstractmethod
    def optimized_networks(self) -> list[OptimizedNetwork]:
        """Return the networks in the order of their updates."""

    @property
    def automatic_optimization(self) -> bool:
        return False

    def trained_modules(self) -> list[nn.Module]:
        return [module for network in self.optimized_networks() if self._is_main(network) for module in network.modules]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of every network, for validation."""
        return {
            self._log_name(network, key): value
            for network in self.optimized_networks()
            for key, value in network.losses(batch).items()
        }

    def _is_main(self, network: OptimizedNetwork) -> bool:
        return network.optimizer is self.optimizer

    def _log_name(self, network: OptimizedNetwork, key: str) -> str:
        return key if self._is_main(network) else f"{network.name}_{key}"

    # -- training step -------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        supported = isinstance(self.trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        name = type(self).__name__
        require(supported, f"{name} has several optimizers: train it with trainer.strategy auto or ddp")

    def configure_optimizers(self) -> Any:
        optimizers, schedulers = [], []
        total = self.trainer.max_steps
        for network in self.optimized_networks():
            steps = total - network.start if total > network.start else total  # one that never starts: any schedule
            optimizer, scheduler = network.optimizer.make(network.modules, steps)
            optimizers.append(optimizer)
            schedulers.append({"scheduler": scheduler, "interval": "step", "name": f"lr-{network.name}"})
        return optimizers, schedulers

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        networks = self.optimized_networks()
        parts = split(batch, self.accumulate * max(network.updates for network in networks))
        logs: dict[str, list[Tensor]] = defaultdict(list)
        self.guard.begin_step()
        optimizers, schedulers = _as_list(self.optimizers()), _as_list(self.lr_schedulers())
        with self._without_ddp_reduction():
            for network, optimizer, scheduler in zip(networks, optimizers, schedulers, strict=True):
                if self.steps < network.start:
                    continue
                own = parts[-network.updates * self.accumulate :]
                others = [other for other in networks if other is not network]
                for i in range(network.updates):
                    share = own[i * self.accumulate :][: self.accumulate]
                    self._update(network, others, optimizer, share, logs)
                scheduler.step()
        all_reduce_mean(b for n in networks for m in n.modules for b in m.buffers() if b.is_floating_point())
        self.steps += 1
        self.finish_step()
        for name, values in logs.items():
            self.log(f"train/{name}", torch.stack(values).mean())

    def _update(
        self,
        network: OptimizedNetwork,
        others: list[OptimizedNetwork],
        optimizer: Any,
        parts: list[Batch],
        logs: dict[str, list[Tensor]],
    ) -> None:
        """Update one network by the mean gradient of some parts of the batch."""
        own = {id(parameter) for parameter in network.parameters()}
        with without_gradient(p for other in others for p in other.parameters() if id(p) not in own):
            for part in parts:
                losses = network.losses(part)
                self.manual_backward(losses["loss"] / len(parts))
                for key, value in losses.items():
                    logs[self._log_name(network, key)].append(value.detach())
        all_reduce_mean(p.grad for p in network.parameters() if p.grad is not None)  # before a scaler looks for inf
        if not self._is_main(network):
            optimizer._on_before_step = optimizer._on_after_step = _do_nothing  # Lightning counts only the main steps
        self._in_update = network, logs
        optimizer.step()
        self._in_update = None
        optimizer.zero_grad()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip the network's gradients, and log their norm at logged steps."""
        assert self._in_update is not None
        network, logs = self._in_update
        norm = self.guard.check(optimizer, network.optimizer.clip, self.steps + 1, network.name)
        if (self.steps + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            logs[f"{network.name}_gradient"].append(norm)

    def _without_ddp_reduction(self) -> AbstractContextManager[Any]:
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
        UserError: its size is not divisible by ``count``.
    """
    size = len(batch["index"])
    require(
        size % count == 0,
        f"a batch of {size} cannot be cut into {count} parts (updates times accumulate): change data.batch_size",
    )
    width = size // count
    cuts = [slice(i * width, (i + 1) * width) for i in range(count)]
    return [{name: examples[cut] for name, examples in batch.items()} for cut in cuts]  # type: ignore[misc, index]


@contextmanager
def without_gradient(parameters: Iterator[nn.Parameter]) -> Iterator[None]:
    """Switch the gradient of parameters off; afterwards, switch it on again for those that had it."""
    paused = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in paused:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in paused:
            parameter.requires_grad_(True)


def _as_list(value: Any) -> list[Any]:
    """Undo Lightning's unpacking of lists of one."""
    return value if isinstance(value, list) else [value]


def _do_nothing() -> None:
    pass
