"""The pretended device itself: values, mixed devices, waits, random numbers and CUDA's autocast lists."""

import copy
import io

import pytest
import torch
from torch import nn

from helpers.pretended.backend import GPU
from helpers.pretended.device import recorded
from rcg_lightning.metrics.copy_rate import copy_threshold
from rcg_lightning.pretrained.preprocess import Preprocess


def on_gpu(*shape):
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape).to(GPU)


def test_values_gradients_and_views_are_those_of_the_cpu():
    torch.manual_seed(0)
    here = nn.Linear(4, 3)
    there, x = copy.deepcopy(here).to(GPU), torch.randn(5, 4)
    here(x).square().sum().backward()
    loss = there(x.to(GPU)).square().sum()
    loss.backward()
    assert there.weight.device == GPU
    assert torch.equal(there.weight.grad.cpu(), here.weight.grad)
    base = on_gpu(2, 3)
    base[1].zero_()
    assert base.tolist() == [[1, 2, 3], [0, 0, 0]]


def test_a_checkpoint_is_written_from_it():
    content = io.BytesIO()
    torch.save(nn.Linear(2, 2).to(GPU).state_dict(), content)
    content.seek(0)
    assert {value.device.type for value in torch.load(content, map_location="cpu").values()} == {"cpu"}


@pytest.mark.parametrize(
    "mix",
    [
        lambda: on_gpu(3) + torch.ones(3),
        lambda: torch.cat([on_gpu(3), torch.ones(3)]),
        lambda: on_gpu(2, 2) @ torch.ones(2, 2),
        lambda: torch.ones(3)[torch.tensor([0, 1], device=GPU)],
        lambda: torch.stack([on_gpu(3).sum(), torch.tensor(1.0)]),
        lambda: torch.randn(3, device=GPU, generator=torch.Generator()),
        lambda: on_gpu(3).numpy(),
    ],
)
def test_mixed_devices_are_rejected(mix):
    with pytest.raises((RuntimeError, TypeError), match=r"mixes devices|cannot fill|can't convert"):
        mix()


def test_numbers_of_the_host_may_be_mixed_in():
    x = on_gpu(3) * torch.tensor(2.0)
    x[0] = 5
    assert x.tolist() == [5, 4, 6]


@pytest.mark.parametrize(
    ("wait", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.any()), "_local_scalar_dense"),
        (lambda x: x.cpu(), "_to_copy"),
        (lambda x: torch.ones(3).to(GPU), "_to_copy"),
        (lambda x: torch.tensor([1.0, 2.0], device=GPU), "_to_copy"),
        (lambda x: x[x > 1], "index"),
        (lambda x: x[torch.tensor([0, 1])], "index"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.repeat_interleave(x.long()), "repeat_interleave"),
        (lambda x: x.tolist(), "_to_copy"),
        (lambda x: x.add_(torch.ones(3).to(GPU)), "_to_copy"),
    ],
)
def test_waits_are_recorded(wait, name):
    x = on_gpu(3)
    with recorded() as record:
        wait(x)
    assert [key.split()[0] for key in record.waits] == [name]


def test_work_that_does_not_wait_is_only_counted():
    x, index = on_gpu(3), torch.tensor([0, 2]).to(GPU)
    with recorded() as record:
        torch.ones(3).to(GPU, non_blocking=True)
        torch.ones(0).to(GPU)
        x[index].add_(torch.full((2,), 3.0, device=GPU)).view(2, 1)
        torch.where(x > 2, x, x)
    assert not record.waits
    assert record.kernels == {"_to_copy": 2, "index": 1, "full": 1, "add_": 1, "gt": 1, "where": 1}


def test_the_line_of_ours_is_named():
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8, device=GPU)
    with pytest.raises(RuntimeError, match=r"mixes devices, pretrained/preprocess.py:\d+"):
        Preprocess([0.5], [0.5])(images.float())
    with recorded() as record:
        copy_threshold(images, images)
    assert any(" at metrics/copy_rate.py:" in wait for wait in record.waits)


def test_its_random_numbers_are_its_own():
    torch.manual_seed(0)
    first = torch.randn(3, device=GPU).cpu()
    here = torch.randn(3)
    torch.manual_seed(0)
    assert torch.equal(torch.randn(3), here)
    assert torch.equal(torch.randn(3, device=GPU).cpu(), first)
    with torch.random.fork_rng(devices=[0], device_type=GPU.type):
        torch.randn(3, device=GPU)
    torch.manual_seed(0)
    torch.randn(3, device=GPU)
    after = torch.gpu.get_rng_state()
    torch.randn(3)
    assert torch.equal(torch.gpu.get_rng_state(), after)


@pytest.mark.parametrize(
    ("compute", "dtype"),
    [
        (lambda x: x @ x, torch.bfloat16),
        (lambda x: nn.functional.layer_norm(x, [2]), torch.float32),
        (lambda x: x.bfloat16().softmax(-1), torch.float32),
        (lambda x: x.bfloat16().sum(0), torch.float32),
        (lambda x: x.bfloat16() * 2, torch.bfloat16),
        (lambda x: torch.addcmul(x, x.bfloat16(), x), torch.float32),
        (lambda x: x.bfloat16().exp(), torch.float32),
    ],
)
def test_autocast_computes_in_cudas_precision(compute, dtype):
    x = on_gpu(2, 2)
    with torch.autocast(GPU.type, torch.bfloat16):
        assert compute(x).dtype == dtype


def test_autocast_promotes_no_more_than_cuda_does():
    x, low = on_gpu(2, 2), on_gpu(2, 2).bfloat16()
    with torch.autocast(GPU.type, torch.bfloat16):
        with pytest.raises(RuntimeError, match="dtype"):
            torch.lerp(x, low, 0.5)
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            nn.functional.binary_cross_entropy(x.sigmoid(), x.sigmoid())
