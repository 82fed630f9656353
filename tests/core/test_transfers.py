"""Copies between host and devices: the host goes on only where the values cannot change or be freed under a copy."""

from types import SimpleNamespace

import pytest
import torch

from rcg_lightning.core.transfers import from_pinned_memory, to_device


@pytest.mark.parametrize("move", [to_device, from_pinned_memory])
@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [("cpu", "cuda", True), ("cpu", "mps", False), ("cuda", "cpu", False), ("cpu", "cpu", False)],
)
def test_the_host_goes_on_only_where_it_is_safe(move, source, target, expected):
    def to(device, non_blocking):
        return device.type, non_blocking

    values = SimpleNamespace(device=torch.device(source), to=to, pin_memory=lambda: values)
    assert move(values, torch.device(target)) == (target, expected)


def test_only_a_gpus_copies_are_pinned():
    values = torch.arange(3)
    assert from_pinned_memory(values, torch.device("cpu")) is values
