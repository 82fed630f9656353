"""A small extractor of features for metrics in training."""

import pytest
import torch

from rcg_lightning.metrics.feature_extractors import ClassifierExtractor
from rcg_lightning.networks.classifier import Classifier
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.pretrained.network_folder import save_network


@pytest.fixture
def extractor(tmp_path):
    """An untrained classifier of digits."""
    torch.manual_seed(0)
    network = Classifier(SmallConvNet(1, 8, (4, 6)), 10)
    save_network(tmp_path / "classifier", network, {"image": [1, 8, 8], "classes": 10, "dim": 6})
    return ClassifierExtractor(tmp_path / "classifier")
