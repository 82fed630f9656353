"""Copies from the host to a device."""

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Move values to ``device``; the host does not wait for a GPU to take its own values."""
    # pageable memory is read before the call returns, so ``values`` may be freed
    at_once = values.device.type == "cpu" and device.type not in ("cpu", "mps")
    return values.to(device, non_blocking=at_once)


def from_pinned_memory(values: Tensor, device: torch.device) -> Tensor:
    """Move values to ``device``; a GPU copies the host's from pinned memory, while the host goes on."""
    pinned = device.type == "cuda" and values.device.type == "cpu"
    return to_device(values.pin_memory() if pinned else values, device)
