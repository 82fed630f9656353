"""Fixtures for evaluation: a data set of blobs, and extractors with random weights."""

import numpy as np
import pytest
import torch

from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.image_split import ArraySplit, Source
from rcg_lightning.metrics.feature_extractors import ClassifierExtractor
from rcg_lightning.networks.classifier import Classifier
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.pretrained.network_folder import save_network


def blobs(count, seed):
    """Return grey 8x8 images with a bright blob at a random position, (N, 1, 8, 8) uint8."""
    rng = np.random.default_rng(seed)
    at, width = rng.uniform(1, 6, (count, 2, 1, 1)), rng.uniform(1, 3, (count, 1, 1))
    y, x = np.mgrid[:8, :8]
    light = np.exp(-((y - at[:, 0]) ** 2 + (x - at[:, 1]) ** 2) / width)
    return (light * 255).astype(np.uint8)[:, None]


class Blobs(Source):
    def train(self):
        return ArraySplit(blobs(600, 0), None, None, "train")

    def evaluation(self):
        return ArraySplit(blobs(200, 1), None, None, "evaluation")


@pytest.fixture
def data():
    return ImageDataModule(Blobs())


@pytest.fixture
def extractor(tmp_path):
    """An untrained classifier of 5 classes with 12 features, as an extractor."""
    torch.manual_seed(0)
    network = Classifier(SmallConvNet(1, 8, (8, 12)), 5)
    save_network(tmp_path / "classifier", network, {"image": [1, 8, 8], "classes": 5, "dim": 12})
    return ClassifierExtractor(tmp_path / "classifier")


@pytest.fixture
def samples():
    """Images that differ a little from real ones."""
    return torch.from_numpy(blobs(300, 2) // 2 + 40)


@pytest.fixture
def real():
    """250 images of the training distribution."""
    return torch.from_numpy(blobs(250, 0))


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory):
    """Random weights in torch-fidelity's layout."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    class Empty(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            return None

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    network = Empty("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    for block in network.modules():  # like trained ones: features vanish under initial statistics
        if isinstance(block, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(block.running_mean, std=0.01)
            torch.nn.init.normal_(block.bias, std=0.01)
            torch.nn.init.uniform_(block.running_var, 0.12, 0.4)
            torch.nn.init.uniform_(block.weight, 1.0, 1.5)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Keep caches of tests out of the user's folder."""
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "caches"))
