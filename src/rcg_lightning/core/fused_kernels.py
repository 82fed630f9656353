"""Devices whose fused optimizer kernels torch has, and which can skip a step without waiting for the device."""

import torch

DEVICES = frozenset({"cpu", "cuda"})


def available(device: torch.device) -> bool:
    """Whether ``device`` has them."""
    return device.type in DEVICES
