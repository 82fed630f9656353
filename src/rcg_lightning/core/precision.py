"""Precision of float32 matmuls and convolutions, and of networks that are used frozen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

Float32Precision = Literal["highest", "high"]  # float32, or TF32: 10 bits of mantissa, several times faster
FrozenPrecision = Literal["highest", "high", "bf16"]


def set_float32_precision(precision: Float32Precision) -> None:
    """Set how NVIDIA GPUs compute float32: matmuls and cuDNN's convolutions alike.

    ``torch.set_float32_matmul_precision`` sets matmuls alone, and those of CPUs too, which stay in float32 here.
    """
    matmul: Any = torch.backends.cuda.matmul
    convolution: Any = torch.backends.cudnn
    matmul.allow_tf32 = convolution.allow_tf32 = precision == "high"


@contextmanager
def float32_precision(precision: Float32Precision) -> Iterator[None]:
    """Compute float32 in ``precision`` inside this context."""
    matmul: Any = torch.backends.cuda.matmul
    convolution: Any = torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    set_float32_precision(precision)
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


def uses_tensor_cores(device: str, precision: str) -> bool:
    """Whether matmuls and convolutions run on an NVIDIA GPU's tensor cores, for which channels last is the layout.

    Args:
        device: type of the device.
        precision: a ``FrozenPrecision``; anything but ``highest`` is below float32.
    """
    return device == "cuda" and precision != "highest"


@contextmanager
def frozen_precision(precision: FrozenPrecision, device: torch.device) -> Iterator[None]:
    """Compute in ``precision`` inside this context, whatever autocast and precision are outside.

    ``bf16`` is autocast: matmuls and convolutions in bf16, norms and sums as autocast has them on ``device``.
    """
    half = precision == "bf16"
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=half),
        float32_precision("high" if precision == "high" else "highest"),
    ):
        yield


def with_precision(identity: str, precision: FrozenPrecision) -> str:
    """Return the identity of what a network makes in ``precision``; full float32 adds nothing."""
    return identity if precision == "highest" else f"{identity}-{precision}"


def without_precision(identity: str) -> str:
    """Return the identity in full float32 of the network in ``identity``."""
    return identity.removesuffix("-high").removesuffix("-bf16")
