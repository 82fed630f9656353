"""Large matmuls on CPUs by oneDNN, where torch's own way is the slower one.

torch multiplies float32 matrices by MKL, which leaves out the widest instructions of CPUs that are not Intel's. oneDNN,
which torch has for convolutions, uses them: on an AMD EPYC with AVX-512 it is twice as fast. Results are float32 of
float32 as before, and differ in the order of the sums alone.
"""

import inspect
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

LARGE = 2**22  # multiplications from which on it pays
_depth = 0


class OneDNNMatmul(Callback):
    """Large matmuls on CPUs are oneDNN's while the trainer runs.

    Args:
        on: None for where that is the faster library.
    """

    def __init__(self, on: bool | None = None) -> None:
        self.on = on
        self._stack = ExitStack()

    def setup(self, *_: Any, **__: Any) -> None:
        self._stack.close()  # of a run that has failed
        self._stack.enter_context(onednn_matmul(self.on))

    def teardown(self, *_: Any, **__: Any) -> None:
        self._stack.close()

    def on_exception(self, *_: Any, **__: Any) -> None:
        self._stack.close()


@cache
def worthwhile() -> bool:
    """Whether this machine is one on which oneDNN is the faster library: x86-64 with AVX-512, not by Intel."""
    vendor = ""
    with suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        vendor = next((line for line in lines if line.startswith("vendor_id")), "")
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and platform.machine() in ("x86_64", "AMD64")
    return wide and "AuthenticAMD" in vendor and torch.backends.mkl.is_available() and possible()


def possible() -> bool:
    """Whether this build of torch has oneDNN's product, and lets it take another's place for a while."""
    replaces = "allow_override" in inspect.signature(torch.library.Library.impl).parameters
    returns = hasattr(torch.library.Library, "_destroy")
    return (
        replaces and returns and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@contextmanager
def onednn_matmul(on: bool | None = None) -> Iterator[None]:
    """Inside it, large products of float32 matrices on a CPU, and linear maps therefore, are oneDNN's.

    Args:
        on: None for where it is worthwhile.
    """
    global _depth
    if _depth or not (worthwhile() if on is None else on and possible()):
        yield
        return
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("mm", _mm, "CPU", allow_override=True)
    kernels.impl("addmm", _addmm, "CPU", allow_override=True)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        kernels._destroy()


def _large(a: Tensor, b: Tensor) -> bool:
    fits = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] and a.dtype is b.dtype is torch.float32
    return fits and a.shape[0] * a.shape[1] * b.shape[1] >= LARGE


def _mm(a: Tensor, b: Tensor) -> Tensor:
    if _large(a, b):
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return torch.mm(a, b, out=a.new_empty(0))


def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    row = c.ndim == 1 and c.is_contiguous() and c.dtype is torch.float32  # what the bias of a linear map is
    if row and beta == alpha == 1 and _large(a, b) and c.shape[0] == b.shape[1]:
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), c, "none", [], "")
    return torch.addmm(c, a, b, beta=beta, alpha=alpha, out=a.new_empty(0))
