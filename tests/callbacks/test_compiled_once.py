"""Each network is compiled once for training and once for sampling: one graph a network, whatever the step."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from helpers import every_stage
from rcg_lightning.callbacks import compilation
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.data.seed_data_module import SeedDataModule
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from rcg_lightning.networks.unet import CrossAttentionUNet, UNet
from rcg_lightning.pretrained.codecs import Pixels
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.stages.sampling import GuidedSampling


def diffusion(network):
    return every_stage.generator("pixels", "class", False, network)


def stylegan2():
    return AdversarialStage(
        codec=Pixels(),
        condition=ClassCondition(),
        generator=StyleGAN2Generator(channel_base=64, channel_max=8),
        discriminator=StyleGAN2Discriminator(channel_base=64, channel_max=8),
        conditioner=Conditioner(drop=0.0),
        discriminator_conditioner=Conditioner(drop=0.0),
        optimizer=AdamW(1e-2),
        discriminator_optimizer=AdamW(1e-2),
        ema=EMA(0.5, buffers=True),
        tile=2,
    )


# a stage, and the graphs of its training: a network of a GAN has two, as it is trained and as the other one uses it
STAGES = {
    "MLP": (lambda: diffusion(None), 1),
    "DiT": (lambda: diffusion(DiT(2, 16, 2, 2)), 1),
    "UNet": (lambda: diffusion(UNet(8, [1, 2], 1, [2], 8, groups=4, checkpointing=True, dropout=0.1)), 1),
    "UNet of LDM": (lambda: diffusion(CrossAttentionUNet(8, [1, 2], 1, [1, 2], 8, groups=4)), 1),
    "MAGE": (lambda: every_stage.masked(False), 1),
    "BigGAN": (lambda: every_stage.gan(False), 4),
    "StyleGAN2": (stylegan2, 4),
    "tokenizer": (lambda: every_stage.tokenizer(False), 4),
    "MoCo": (every_stage.moco, 3),
}


class Graphs(Callback):
    """Counts the graphs that exist after each step."""

    def __init__(self, counters):
        self.counters, self.counts = counters, []

    def on_train_batch_end(self, *_):
        self.counts.append(self.counters["stats"]["unique_graphs"])


@pytest.fixture
def counters(monkeypatch):
    """Compile networks alone, without code, and return dynamo's counters: how often it traces is counted."""
    from torch._dynamo.utils import counters

    compile = torch.compile

    def networks_only(function, **settings):
        return compile(function, backend="eager", **settings) if function.__name__ == "_call_impl" else function

    monkeypatch.setattr(compilation.torch, "compile", networks_only)
    torch.compiler.reset()
    counters.clear()
    yield counters
    torch.compiler.reset()


@pytest.mark.parametrize("name", STAGES)
def test_a_network_is_compiled_once_for_training_and_once_for_sampling(name, counters, trainer, digits, tmp_path):
    make, expected = STAGES[name]
    stage, graphs = make(), Graphs(counters)
    run = trainer(tmp_path, 6, compile=True, val_check_interval=3, callbacks=[graphs])
    run.fit(stage, datamodule=digits(batch_size=16))
    assert graphs.counts[2:] == [expected] * 4
    assert not counters["graph_break"]
    if not isinstance(stage, Generator):
        return
    counters.clear()
    guided = not isinstance(stage, AdversarialStage)
    module = GuidedSampling(stage, Guidance(2.0) if guided else None)
    trainer(tmp_path / "samples", 1, compile=True).predict(module, SeedDataModule(range(9), 8))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_guidance_in_an_interval_has_two_shapes_and_two_graphs(counters, trainer, digits, tmp_path):
    stage = diffusion(None).build(digits().spec).eval()
    module = GuidedSampling(stage, Guidance(2.0, interval=(0.2, 0.7)))
    trainer(tmp_path, 1, compile=True).predict(module, SeedDataModule(range(20), 7))
    assert counters["stats"]["unique_graphs"] == 2
