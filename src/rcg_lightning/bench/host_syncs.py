"""Counts what makes the host wait for the device: with HostSyncs() as syncs: …; assert not syncs.found."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {  # operators whose result the host needs to go on: a number in Python, or a shape that depends on values
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "bincount",
    "histc",
    "repeat_interleave",
}


def counts_values(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call depends on values that only the device has; a number of repeats, for one, may be known before."""
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    return name in WAITS


def masks(index: Iterable[Any]) -> bool:
    """Whether an index holds booleans: then the shape of the result is known to the device alone."""
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in index)


class HostSyncs(TorchDispatchMode):
    """Counts, by operator, the calls inside it that would stop a host until an accelerator is done.

    Attributes:
        found: how often each such operator was called; ``calls``, how often each operator at all.

    It sees what is called on a CPU as well as on other devices, so for most of it no accelerator is needed. Copies
    between devices count, but for those to an accelerator that do not block; what Python reads from a CPU's
    memory without an operator, by ``tolist`` for one, does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        indexed = name in ("index", "index_put", "index_put_", "_unsafe_index") and masks(args[1])
        moved = name in ("_to_copy", "copy_") and self._crosses(name, args, kwargs)
        if counts_values(name, kwargs) or indexed or moved:
            self.found[name] += 1
        return func(*args, **kwargs)

    @staticmethod
    def _crosses(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        source, target = (args[1], args[0].device) if name == "copy_" else (args[0], kwargs.get("device"))
        if target is None or target.type == source.device.type or "meta" in (target.type, source.device.type):
            return False
        at_once = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        return target.type == "cpu" or not at_once
