"""Random numbers are those of the CPU's generator, whatever device asks."""

import torch
import torch.nn.functional as F

from rcg_lightning.gpu_check.host_randomness import HostRandomness


def test_every_kind_of_draw_is_the_cpus():
    def drawn():
        torch.manual_seed(3)
        x = torch.rand(50)
        parts = [x, torch.randn_like(x), torch.empty(50).uniform_(), torch.bernoulli(x), F.dropout(x, 0.4, True)]
        return torch.cat([*parts, torch.randint(9, (5,)), torch.randperm(9)])

    plain = drawn()
    with HostRandomness():
        assert torch.equal(drawn(), plain)


def test_the_dropout_of_gpus_draws_what_the_cpus_draws():
    x = torch.randn(200)
    torch.manual_seed(0)
    expected = F.dropout(x, 0.3, True)
    torch.manual_seed(0)
    with HostRandomness():
        found, mask = torch.native_dropout(x, 0.3, True)
    torch.testing.assert_close(found, expected)
    assert torch.equal(mask, expected != 0)


def test_numbers_for_another_device_are_moved_there():
    with HostRandomness():
        assert torch.rand(3, device="meta").device.type == "meta"
        assert torch.empty(3, device="meta").normal_().device.type == "meta"
