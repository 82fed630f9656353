"""Weights cast once for autocast: fewer casts, and the same numbers to the last bit."""

from contextlib import nullcontext

import pytest
import torch

from helpers import every_stage
from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.networks.cast_weights import cast_weights
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.rdm_mlp import ResidualMLP
from rcg_lightning.networks.unet import UNet
from rcg_lightning.stages import generator as generator_file
from rcg_lightning.types import DataSpec

SPEC = DataSpec((1, 8, 8), 10, {"representation": {"shape": [6]}})
CPU = torch.device("cpu")


def diffusion(network):
    return lambda make_stage: make_stage(ClassCondition(), denoiser=Denoiser(network), guidance=Guidance(2.0))


STAGES = {
    "mlp": diffusion(ResidualMLP(16, 2)),
    "dit": diffusion(DiT(2, 16, 2, 2)),
    "unet": diffusion(UNet(16, (1, 2), 1, (4,), 8, 8)),
    "masked": lambda _: every_stage.masked(False),
    "gan": lambda _: every_stage.gan(False),
}


@pytest.mark.parametrize("name", STAGES)
def test_samples_under_autocast_are_the_same_to_the_bit(make_stage, awake, monkeypatch, name):
    stage = awake(STAGES[name](make_stage).build(SPEC)).eval()

    def sample():
        with torch.autocast("cpu", torch.bfloat16), HostSyncs() as counter:
            return stage.sample({"seed": torch.arange(4)}, tile=4), counter.calls["_to_copy"]

    (once, few), weights = sample(), {name: p.dtype for name, p in stage.named_parameters()}
    assert set(weights.values()) == {torch.float32}
    monkeypatch.setattr(generator_file, "cast_weights", lambda *_: nullcontext())
    always, many = sample()
    assert torch.equal(once, always)
    assert few < many or name == "gan"  # its layers derive their weights from the trained ones, in float32


def test_weights_come_back_and_nothing_is_cast_without_autocast():
    linear = torch.nn.Linear(3, 4)
    shared = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Embedding(3, 3))
    shared[1].weight = shared[0].weight
    before = dict(linear.named_parameters())
    with cast_weights([linear], CPU):
        assert linear.weight is before["weight"]
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        with cast_weights([linear, linear, shared], CPU):
            assert linear.weight.dtype == linear.bias.dtype == torch.bfloat16
            assert not linear.weight.is_inference()
            assert shared[0].weight.dtype == torch.float32
            assert shared[0].bias.dtype == torch.bfloat16
            with cast_weights([linear], CPU):
                pass
            assert linear.weight.dtype == torch.bfloat16
        with pytest.raises(ValueError, match="stop"), cast_weights([linear], CPU):
            raise ValueError("stop")
    assert dict(linear.named_parameters()) == before
