"""The bank of training images goes to the device of the samples once, not with each batch."""

import torch

from rcg_lightning.metrics import copy_rate
from rcg_lightning.metrics.copy_rate import CopyRate


def test_the_bank_moves_to_the_device_once(monkeypatch):
    used = []

    def nearest_images(images, bank):
        used.append(bank)
        return torch.zeros(len(images)), torch.zeros(len(images)).long()

    monkeypatch.setattr(copy_rate, "nearest_images", nearest_images)
    metric = CopyRate(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), 0.1)
    for _ in range(2):
        metric.update(torch.zeros(3, 1, 4, 4, dtype=torch.uint8, device="meta"))
    assert used[0] is used[1]
    assert used[0].device.type == "meta"
    assert metric.compute() == {"nearest": 0.0, "copy_rate": 1.0}
