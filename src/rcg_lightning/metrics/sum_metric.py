"""The base of metrics that sum over batches and processes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class SumMetric(Metric):
    """Base of metrics whose states are float64 sums, or lists of batches.

    With several processes, move the metric to the device of the distributed backend before use. MPS has no float64:
    there the states stay on the CPU.
    """

    full_state_update = False
    _lists: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = {}  # shape and type of an example, by name

    @property
    def update_called(self) -> bool:
        """Always true: a process may have no examples, and torchmetrics would warn of that."""
        return True

    def add_sums(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Add a state of zeros for each name."""
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def add_lists(self, examples: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        """Add a list of batches (B, *shape) for each name, given the shape and type of an example."""
        self._lists = examples
        for name in examples:
            self.add_state(name, [], dist_reduce_fx="cat")

    def concatenated(self, name: str) -> Tensor:
        """Return the examples (N, *shape) of all batches, of all processes after synchronisation."""
        batches = getattr(self, name)
        shape, dtype = self._lists[name]
        if isinstance(batches, Tensor):
            return batches
        return torch.cat([torch.empty(0, *shape, dtype=dtype, device=self.device), *batches])

    def _sync_dist(self, *args: Any, **settings: Any) -> None:
        for name, (shape, dtype) in self._lists.items():
            if isinstance(getattr(self, name), list) and not getattr(self, name):  # a process without examples
                setattr(self, name, [torch.empty(0, *shape, dtype=dtype, device=self.device)])
        super()._sync_dist(*args, **settings)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        if fn(torch.empty(0)).device.type == "mps":
            return self
        return super()._apply(fn, *args, **kwargs)
