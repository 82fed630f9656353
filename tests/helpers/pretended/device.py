"""The pretended GPU: tensors that claim to lie on device "gpu" and hold their values in CPU memory.

They are wrapper subclasses, which every operator meets below autograd and autocast.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.pretended.backend import BACKEND, GPU, on_gpu
from helpers.pretended.rules import check_devices, line_of_ours, operator, tensors_of, waits


class Record:
    """What happened on the device while it was recorded.

    Attributes:
        kernels: launches by operator.
        waits: times that the host waited, by operator and line of ours.
    """

    def __init__(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def start(self) -> None:
        _records.append(self)

    def stop(self) -> None:
        _records.remove(self)


_records: list[Record] = []


@contextmanager
def recorded() -> Iterator[Record]:
    """Record what happens on the device."""
    record = Record()
    record.start()
    try:
        yield record
    finally:
        record.stop()


class OnGPU(Tensor):
    """A tensor on the pretended device.

    Args:
        held: its values, in CPU memory.
    """

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> "OnGPU":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "layout": held.layout}
        kind = {"dtype": held.dtype, "device": GPU, "requires_grad": requires_grad}
        return Tensor._make_wrapper_subclass(cls, held.shape, **layout, **kind)  # type: ignore[attr-defined]

    def __init__(self, held: Tensor, requires_grad: bool = False) -> None:
        self.held = held

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"OnGPU({self.held})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert gpu:0 device type tensor to numpy. Use Tensor.cpu() to copy it to the host")

    __array__ = numpy  # type: ignore[assignment]

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied: Tensor = OnGPU(self.held.detach().clone())
            is_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return execute(func, args, kwargs or {})


def held(value: Any) -> Any:
    """Return an operator's argument with the values in place of the tensors on the device."""
    if isinstance(value, OnGPU):
        return value.held
    return type(value)(map(held, value)) if type(value) in (list, tuple) else value


def placed(value: Any) -> Any:
    """Return an operator's result with its tensors on the device."""
    if isinstance(value, Tensor):
        # a view of a parameter is an ordinary tensor in inference mode, too
        with torch.inference_mode(value.is_inference()) if torch.is_inference_mode_enabled() else nullcontext():
            return value if isinstance(value, OnGPU) else OnGPU(value)
    return type(value)(map(placed, value)) if type(value) in (list, tuple) else value


def execute(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Carry out an operator as a GPU would, and record it."""
    tensors, target = list(tensors_of((*args, *kwargs.values()))), kwargs.get("device")
    host = [tensor for tensor in tensors if not isinstance(tensor, OnGPU)]
    is_there = len(host) < len(tensors)
    if not is_there and (target is None or not on_gpu(target)):
        return func(*args, **kwargs)
    op = operator(func)
    if op.is_composed:  # in inference mode
        with PretendedDevice():
            return func.decompose(*args, **kwargs)
    if op.name in ("is_pinned", "_pin_memory"):  # the host's memory is never pinned here
        return False if op.name == "is_pinned" else args[0]
    if host and is_there:
        check_devices(func, args, tensors, host)
    result_is_there = is_there if target is None else on_gpu(target)
    if op.name == "copy_":
        result_is_there = isinstance(args[0], OnGPU)
    note(func, args, kwargs, result_is_there)
    result = compute(func, args, kwargs)
    if op.returned is not None:
        return written_argument(func, args, kwargs)
    if op.name == "_to_copy" and result_is_there != is_there:
        result = result.clone()  # memory of another device is never shared
    return placed(result) if result_is_there else result


def compute(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Apply an operator to the values in CPU memory."""
    given = {key: held(value) for key, value in kwargs.items()}
    if given.get("device") is not None and on_gpu(given["device"]):
        given["device"] = torch.device("cpu")
    if not operator(func).is_random:
        return func(*map(held, args), **given)
    if given.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the CPU cannot fill a tensor on the GPU, {line_of_ours()}")
    with BACKEND.random_numbers():
        return func(*map(held, args), **given)


def note(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result_is_there: bool) -> None:
    """Add an operator to the records."""
    if not _records:
        return
    op = operator(func)
    waited = f"{op.name} at {line_of_ours()}" if waits(func, args, kwargs) else None
    for record in _records:
        if result_is_there and op.launches:
            record.kernels[op.name] += 1
        if waited:
            record.waits[waited] += 1


def written_argument(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return the argument that an operator has changed and returns.

    Raises:
        NotImplementedError: its shape is another now, which a tensor on the device cannot follow.
    """
    op = operator(func)
    position, name = op.returned  # type: ignore[misc]
    changed = args[position] if position < len(args) else kwargs[name]
    if op.reshapes:  # the tensor on the device follows its values
        with no_dispatch():
            func(*args, **kwargs)
    if isinstance(changed, OnGPU) and changed.held.shape != changed.shape:
        raise NotImplementedError(f"{func} changes the shape of a tensor, {line_of_ours()}")
    return changed


class PretendedDevice(TorchDispatchMode):
    """Inside of it, tensors can be created on and moved to device "gpu"."""

    def __enter__(self) -> Any:
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor builds its values on the host first
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return execute(func, args, kwargs or {})
