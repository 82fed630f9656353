"""What CUDA does with an operator's arguments: which mixes of devices it rejects, and where the host waits."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from helpers.pretended.backend import on_gpu
from rcg_lightning.bench.host_syncs import waits_for

OURS = "rcg_lightning/"
COPIES = {"_to_copy", "copy_", "_foreach_copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
# operators without the tag of elementwise ones that take a number from the host's memory as well
TAKE_NUMBERS = {"fill_", "fill", "masked_fill", "masked_fill_", "where", "index_fill", "index_fill_", "lerp", "lerp_"}
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "is_pinned"}


@dataclass(frozen=True)
class Operator:
    """What is known of an operator.

    Attributes:
        name: without its overload.
        launches: whether it launches a kernel: it is neither a view nor an allocation.
        takes_numbers: whether CUDA lets it mix tensors () of the host with those of the GPU.
        is_random: whether it takes random numbers.
        is_composed: whether it consists of other operators, which autograd usually takes in its place.
        reshapes: whether it changes the shape of its argument.
        returned: position and name of the argument that it changes and returns; None for other operators.
    """

    name: str
    launches: bool
    takes_numbers: bool
    is_random: bool
    is_composed: bool
    reshapes: bool
    returned: tuple[int, str] | None


@cache
def operator(func: Any) -> Operator:
    """Describe a torch operator."""
    name, schema = func.overloadpacket.__name__, func._schema
    results = [value.alias_info for value in schema.returns if value.alias_info is not None]
    written = [i for i, value in enumerate(schema.arguments) if value.alias_info and value.alias_info.is_write]
    is_in_place = len(schema.returns) == 1 and len(results) == 1 and results[0].is_write
    elementwise = torch.Tag.pointwise in func.tags or name.startswith("_foreach")
    return Operator(
        name=name,
        launches=all(alias.is_write for alias in results) and name not in ALLOCATIONS,
        takes_numbers=elementwise or name in TAKE_NUMBERS or name in INDEXING,
        is_random=torch.Tag.nondeterministic_seeded in func.tags,
        is_composed=func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd),
        reshapes=torch.Tag.inplace_view in func.tags,
        returned=(written[0], schema.arguments[written[0]].name) if is_in_place else None,
    )


def tensors_of(values: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors among an operator's arguments, of which some are lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (part for part in value if isinstance(part, Tensor))


def check_devices(func: Any, args: Sequence[Any], tensors: Sequence[Tensor], host: Sequence[Tensor]) -> None:
    """Raise RuntimeError where CUDA rejects ``tensors`` of two devices, of which ``host`` lie in the host's memory."""
    op = operator(func)
    if op.name in COPIES:
        return
    if op.name in INDEXING and on_gpu(args[0].device):  # indices of the host are copied
        host = [] if len(args) < 3 else [value for value in tensors_of(args[2:3]) if not on_gpu(value.device)]
    if any(tensor.ndim > 0 or not op.takes_numbers for tensor in host):
        shapes = ", ".join(f"{tensor.device.type} {tuple(tensor.shape)}" for tensor in tensors)
        raise RuntimeError(f"{func} mixes devices, {line_of_ours()}: {shapes}")


def waits(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the host waits for the GPU."""
    name = operator(func).name
    copied = name in INDEXING and any(not on_gpu(index.device) and index.ndim for index in tensors_of(args[1]))
    return copied or waits_for(name, args, kwargs)


def line_of_ours() -> str:
    """Return the innermost line of this project on the stack, such as ``stages/base.py:120``."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if OURS in path:
            return f"{path.rsplit(OURS, 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside of this project"
