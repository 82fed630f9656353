"""Large matmuls on CPUs by oneDNN, where it is faster than torch's default library.

torch multiplies float32 matrices with MKL, which does not use the widest instructions of CPUs other than Intel's.
oneDNN, which torch includes for convolutions, uses them: on an AMD EPYC with AVX-512 it is twice as fast. Inputs and
results are float32 as before; only the order of the sums differs.
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

from rcg_lightning.arguments import Checked

LARGE = 2**22  # multiplications above which oneDNN is faster
_depth = 0


class OneDNNMatmul(Checked, Callback):
    """Computes large matmuls on CPUs by oneDNN while the trainer runs.

    Args:
        enabled: None for the machines where it is faster.
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = enabled
        self._stack = ExitStack()

    def setup(self, *_: Any, **__: Any) -> None:
        self._stack.close()  # left open by a run that failed
        self._stack.enter_context(onednn_matmul(self.enabled))

    def teardown(self, *_: Any, **__: Any) -> None:
        self._stack.close()

    def on_exception(self, *_: Any, **__: Any) -> None:
        self._stack.close()


@cache
def is_faster() -> bool:
    """Whether oneDNN is faster on this machine: on AMD's x86-64 with AVX-512."""
    vendor = ""
    with suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        vendor = next((line for line in lines if line.startswith("vendor_id")), "")
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and platform.machine() in ("x86_64", "AMD64")
    return wide and "AuthenticAMD" in vendor and torch.backends.mkl.is_available() and is_available()


def is_available() -> bool:
    """Whether this build of torch has oneDNN's matmul and can replace its own by it and undo that."""
    replaceable = "allow_override" in inspect.signature(torch.library.Library.impl).parameters
    restorable = hasattr(torch.library.Library, "_destroy")
    has_matmul = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return replaceable and restorable and has_matmul


@contextmanager
def onednn_matmul(enabled: bool | None = None) -> Iterator[None]:
    """Compute large float32 matmuls on a CPU, and so linear layers, by oneDNN inside this context.

    Args:
        enabled: None for the machines where it is faster.
    """
    global _depth
    if _depth or not (is_faster() if enabled is None else enabled and is_available()):
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
    is_bias = c.ndim == 1 and c.is_contiguous() and c.dtype is torch.float32
    if is_bias and beta == alpha == 1 and _large(a, b) and c.shape[0] == b.shape[1]:
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), c, "none", [], "")
    return torch.addmm(c, a, b, beta=beta, alpha=alpha, out=a.new_empty(0))
