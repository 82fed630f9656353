"""Count the calls that make the host wait for the device: with HostSyncs() as syncs: …; assert not syncs.found."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {  # operators whose result the host needs: a number in Python, or a shape that depends on values
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


def needs_values(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call needs values that only the device has; ``output_size`` gives that of repeat_interleave before."""
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    return name in WAITS


def has_mask(index: Iterable[Any]) -> bool:
    """Whether an index holds booleans: then only the device knows the shape of the result."""
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in index)


def crosses(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a copy between devices is one that the host waits for: all but non-blocking ones to an accelerator."""
    source, target = (args[1], args[0].device) if name == "copy_" else (args[0], kwargs.get("device"))
    if target is None or target.type == source.device.type or "meta" in (target.type, source.device.type):
        return False
    if not source.numel():  # nothing is copied
        return False
    at_once = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
    return target.type == "cpu" or not at_once


def waits_for(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of the operator ``name`` makes the host wait for an accelerator."""
    indexed = name in ("index", "index_put", "index_put_", "_unsafe_index") and has_mask(args[1])
    moved = name in ("_to_copy", "copy_") and crosses(name, args, kwargs)
    return needs_values(name, kwargs) or indexed or moved


class HostSyncs(TorchDispatchMode):
    """Counts, by operator, the calls inside the context that would make the host wait for an accelerator.

    Attributes:
        found: number of calls of each such operator; ``calls``: number of calls of every operator.

    Calls on a CPU are counted as on other devices, so most uses need no accelerator. Copies between devices count,
    except non-blocking ones to an accelerator. Values that Python reads from a CPU's memory without an operator, such
    as by ``tolist``, do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        if waits_for(name, args, kwargs):
            self.found[name] += 1
        return func(*args, **kwargs)
