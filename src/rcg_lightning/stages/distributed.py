"""All-reduce of tensors other than the gradients that DDP averages by itself."""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed
from torch import Tensor


def is_distributed() -> bool:
    """Whether the run has more than one process."""
    initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
    return initialised and torch.distributed.get_world_size() > 1


@torch.no_grad()
def all_reduce_mean(tensors: Iterable[Tensor]) -> None:
    """Replace floating-point tensors by their mean over all processes, with one message for each dtype."""
    _all_reduce(tensors, mean=True)


@torch.no_grad()
def all_reduce_sum(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sum over all processes, with one message for each dtype."""
    _all_reduce(tensors, mean=False)


def _all_reduce(tensors: Iterable[Tensor], mean: bool) -> None:
    if not is_distributed():
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_dtype[tensor.dtype].append(tensor)
    for group in by_dtype.values():
        flat = torch.cat([tensor.flatten() for tensor in group])
        torch.distributed.all_reduce(flat)
        if mean:
            flat /= torch.distributed.get_world_size()
        parts = flat.split([tensor.numel() for tensor in group])
        torch._foreach_copy_(group, [part.view_as(tensor) for part, tensor in zip(parts, group)])
