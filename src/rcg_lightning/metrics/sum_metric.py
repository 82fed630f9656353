"""The base of metrics that add up over batches and processes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class SumMetric(Metric):
    """Base of metrics whose states are float64 sums; on MPS, which has no float64, they stay on the CPU.

    Where processes are to be summed, move it to the device of the distributed backend before use.
    """

    full_state_update = False
    _kinds: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = {}  # of rows, by their states' names

    @property
    def update_called(self) -> bool:
        """Always: a process without a share is not the mistake that torchmetrics warns of."""
        return True

    def add_sums(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Add a state of zeros for each name."""
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def add_rows(self, kinds: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        """Add a list of batches (B, *shape) for each name, given the shape and type of a row."""
        self._kinds = kinds
        for name in kinds:
            self.add_state(name, [], dist_reduce_fx="cat")

    def rows(self, name: str) -> Tensor:
        """Return the rows (N, *shape) of all batches, after synchronisation of all processes."""
        found = getattr(self, name)
        shape, dtype = self._kinds[name]
        if isinstance(found, Tensor):
            return found
        return torch.cat([torch.empty(0, *shape, dtype=dtype, device=self.device), *found])

    def _sync_dist(self, *args: Any, **settings: Any) -> None:
        for name, (shape, dtype) in self._kinds.items():
            if isinstance(getattr(self, name), list) and not getattr(self, name):  # a process that saw nothing
                setattr(self, name, [torch.empty(0, *shape, dtype=dtype, device=self.device)])
        super()._sync_dist(*args, **settings)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        if fn(torch.empty(0)).device.type == "mps":
            return self
        return super()._apply(fn, *args, **kwargs)
