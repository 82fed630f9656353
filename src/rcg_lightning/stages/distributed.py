"""What the processes of a run tell each other besides gradients that DDP averages by itself."""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed
from torch import Tensor


def several() -> bool:
    """Whether there is another process."""
    known = torch.distributed.is_available() and torch.distributed.is_initialized()
    return known and torch.distributed.get_world_size() > 1


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace floating-point tensors by their mean over all processes, with one message for each dtype."""
    _combine(tensors, mean=True)


@torch.no_grad()
def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their sum over all processes, with one message for each dtype."""
    _combine(tensors, mean=False)


def _combine(tensors: Iterable[Tensor], mean: bool) -> None:
    if not several():
        return
    kinds: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        kinds[tensor.dtype].append(tensor)
    for group in kinds.values():
        flat = torch.cat([tensor.flatten() for tensor in group])
        torch.distributed.all_reduce(flat)
        if mean:
            flat /= torch.distributed.get_world_size()
        parts = flat.split([tensor.numel() for tensor in group])
        torch._foreach_copy_(group, [part.view_as(tensor) for part, tensor in zip(parts, group)])
