"""Metrics and neighbours are of full float32, whatever precision a training or a sampling has set."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rcg_lightning.core.precision import float32_precision
from rcg_lightning.data.kmeans import kmeans
from rcg_lightning.data.neighbours import knn_accuracy, nearest
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.reference import Reference
from rcg_lightning.evaluation.scorer import score
from rcg_lightning.metrics.feature_extractors import ClassifierExtractor, InceptionExtractor
from rcg_lightning.metrics.prdc import density_coverage, precision_recall
from rcg_lightning.metrics.reconstruction import Reconstruction
from rcg_lightning.metrics.tag_prediction import vote
from rcg_lightning.sampling.loading import same_encoder

MATMULS = ("mm", "addmm", "bmm", "baddbmm", "_euclidean_dist", "_cdist_forward", "convolution")


class Watch(TorchDispatchMode):
    """Records whether float32 matmuls and convolutions may use TF32."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.overloadpacket.__name__ in MATMULS and args[0].dtype == torch.float32:
            self.seen.append(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
        return operator(*args, **kwargs or {})


def features(count=40):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(count))


def reconstructed():
    images = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    Reconstruction().update(images, images.flip(0))


COMPUTED = {
    "nearest": lambda: nearest(features(), features(50), 3),
    "kmeans": lambda: kmeans(features(), 3),
    "knn accuracy": lambda: knn_accuracy(features(), torch.zeros(40).long(), features(50), torch.zeros(50).long(), 3),
    "precision and recall": lambda: precision_recall(features(), features(50)),
    "density and coverage": lambda: density_coverage(features(), features(50)),
    "votes": lambda: vote(features()[:, None], features(50)),
    "SSIM": reconstructed,
}


@pytest.mark.parametrize("name", COMPUTED)
def test_no_metric_is_computed_in_less_than_float32(name):
    with float32_precision("high"), Watch() as watch:
        COMPUTED[name]()
        assert torch.backends.cuda.matmul.allow_tf32
    assert watch.seen
    assert not any(watch.seen)


def test_features_of_different_precision_are_not_compared(extractor, samples, real):
    half = ClassifierExtractor(extractor.folder, "bf16")
    assert half.name == "classifier-bf16"
    assert half.identity == extractor.identity.replace("classifier-", "classifier-bf16-")
    rounded, exact = half(samples).pooled, extractor(samples).pooled
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
    reference = Reference.measure(real, None, extractor)
    with pytest.raises(UserError, match=r"made by classifier-bf16-.*: make the reference again"):
        score(samples, reference, half, metrics=frozenset({"fd"}))


def test_inception_in_less_precision_makes_no_fid():
    assert InceptionExtractor().name == "inception"
    assert InceptionExtractor(precision="high").name == "inception-high"


def test_representations_of_another_precision_are_used_with_a_warning(caplog):
    spec = SimpleNamespace(identities={"representation": "one-bf16"})
    generator = SimpleNamespace(spec=spec)
    same_encoder(generator, "one-bf16", "--encoder")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        same_encoder(generator, "one", "--encoder")
    assert caplog.messages == ["--encoder: representations of one, the generator was trained with one-bf16"]
    with pytest.raises(UserError, match="encoder other"):
        same_encoder(generator, "other", "--encoder")
