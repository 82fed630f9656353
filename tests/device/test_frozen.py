"""Frozen networks, and all that builds or rebuilds a network, restore the random numbers of CPU and device."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from helpers.device_stages import STAGES
from helpers.pretended.backend import GPU
from rcg_lightning.metrics.feature_extractors import InceptionExtractor
from rcg_lightning.pretrained.autoencoders import KLAutoencoder, VQAutoencoder
from rcg_lightning.pretrained.frozen import Frozen
from rcg_lightning.pretrained.network_folder import load_network
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder
from rcg_lightning.stages.base import Stage
from rcg_lightning.types import DataSpec

COLUMNS = {"representation": {"shape": [6]}, "instance": {"shape": [6]}, "cluster": {"shape": [], "sizes": [9, 9]}}
SPEC = DataSpec((1, 8, 8), 10, COLUMNS)


@contextmanager
def same_random_numbers():
    """Check that the next random numbers are those that would have come anyway."""
    torch.manual_seed(1)
    before = torch.get_rng_state(), torch.gpu.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(torch.gpu.get_rng_state(), before[1])


@pytest.mark.parametrize("name", ["frozen", "encoder", "kl", "vq", "inception", "folder"])
def test_frozen_networks(name, frozen_networks, inception_weights):
    images = torch.full((2, 1, 8, 8), 0.5, device=GPU)
    uses = {
        "frozen": lambda: Frozen(lambda: nn.Linear(8, 2))(images),
        "encoder": lambda: TrainedEncoder(frozen_networks.encoder)(images),
        "kl": lambda: KLAutoencoder(frozen_networks.kl).moments(images),
        "vq": lambda: VQAutoencoder(frozen_networks.tokenizer).tokens(images),
        "inception": lambda: InceptionExtractor(inception_weights).setup(),
        "folder": lambda: load_network(frozen_networks.encoder),
    }
    with same_random_numbers():
        uses[name]()


@pytest.mark.parametrize("name", STAGES)
def test_stages_that_are_built(name, frozen_networks):
    stage = STAGES[name](frozen_networks)
    with same_random_numbers():
        stage.build(SPEC)


def test_stages_that_are_loaded(fitted):
    path = fitted("rdm", "32-true").last
    with same_random_numbers():
        Stage.load(path, GPU)
