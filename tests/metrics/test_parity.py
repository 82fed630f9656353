"""On the same features every metric equals that of torch-fidelity and the formulas computed by scipy."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn import functional
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.reference import Reference
from rcg_lightning.evaluation.reference_files import read_statistics
from rcg_lightning.evaluation.scorer import EVERY, score
from rcg_lightning.metrics.feature_extractors import ClassifierExtractor, InceptionExtractor
from rcg_lightning.metrics.feature_statistics import FeatureStatistics
from rcg_lightning.metrics.fid import fid
from rcg_lightning.metrics.kid import kid
from rcg_lightning.metrics.prdc import density_coverage, precision_recall

pytestmark = pytest.mark.slow

DIM, CLASSES = 64, 10


def features(count, seed, shift=0.0):
    """Positive, correlated and skewed, like Inception's."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(99)) / DIM**0.5
    return (torch.randn(count, DIM, generator=generator) @ mixing + shift).relu()


@pytest.fixture(scope="module")
def pair():
    return features(700, 0), features(900, 1, 0.1)


def moments(rows):
    metric = FeatureStatistics(DIM)
    for part in rows.split(128):
        metric.update(part)
    return metric.compute().moments


def test_frechet_distance(pair):
    ours = fid(*map(moments, pair))
    theirs = fid_statistics_to_metric(*map(fid_features_to_statistics, pair), False)
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    (mu1, cov1), (mu2, cov2) = (
        (np.mean(x, 0), np.cov(x, rowvar=False)) for x in (rows.double().numpy() for rows in pair)
    )
    root = scipy.linalg.sqrtm(cov1 @ cov2).real
    assert ours == pytest.approx(np.sum((mu1 - mu2) ** 2) + np.trace(cov1 + cov2 - 2 * root), rel=1e-9)


def test_kernel_distance_on_the_same_subsets(pair):
    expected = kid_features_to_metric(
        *(rows.double() for rows in pair), kid_subsets=20, kid_subset_size=200, verbose=False
    )
    mean, deviation = kid(*pair, subsets=20, size=200)
    assert mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    assert deviation == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-9)


def test_inception_score(pair):
    logits = pair[0][:, :CLASSES] * 3
    metric = FeatureStatistics(DIM, CLASSES)
    metric.update(pair[0], logits)
    theirs = isc_features_to_metric(logits, splits=1)["inception_score_mean"]
    assert metric.compute().inception_score(1)[0] == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("neighbours", [3, 5])
def test_precision_and_recall(pair, neighbours):
    theirs = prc_features_to_metric(
        *pair, prc_neighborhood=neighbours, prc_batch_size=10_000, save_cpu_ram=False, verbose=False
    )
    precision, recall = precision_recall(*pair, neighbours)
    assert 0.05 < recall < 0.95
    assert precision == pytest.approx(theirs["precision"], rel=1e-3)
    assert recall == pytest.approx(theirs["recall"], rel=1e-3)


def test_overlapping_sets_score_the_fraction_that_overlaps():
    """Five clusters far apart: precision is the fraction of samples in the reference's clusters, recall the reverse."""
    points = torch.rand(5, 100, 3, generator=torch.Generator().manual_seed(0))
    points[:, :, 0] += 20 * torch.arange(5)[:, None]
    real, samples = points[:4].flatten(0, 1), points[1:].flatten(0, 1)
    assert precision_recall(samples, real) == (0.75, 0.75)
    assert precision_recall(samples[:300], real) == (1.0, 0.75)
    assert precision_recall(samples, real[100:]) == (0.75, 1.0)
    assert density_coverage(samples, real)[1] == 0.75


class WithPositions(ClassifierExtractor):
    """A classifier whose spatial features are the means of the image's quarters."""

    spatial_dim = 4

    def extract(self, images):
        return super().extract(images)._replace(spatial=functional.avg_pool2d(images.float(), 4).flatten(1))


def test_a_reference_batch_in_the_adm_suites_layout_gives_the_metrics_of_its_images(extractor, samples, real, tmp_path):
    extractor = WithPositions(extractor.folder)
    measured = Reference.measure(real, None, extractor)
    train = measured.train
    arrays = {"mu": train.moments.mean, "sigma": train.moments.covariance}
    arrays |= {"mu_s": train.spatial.mean, "sigma_s": train.spatial.covariance, "arr_0": real.permute(0, 2, 3, 1)}
    np.savez(tmp_path / "batch.npz", **{name: value.numpy() for name, value in arrays.items()})
    expected = score(samples, measured, extractor, metrics=EVERY, neighbours=3)
    names = {"fd", "sfd", "is", "kd", "kd_std", "precision", "recall", "density", "coverage"}
    assert expected.keys() == names | {"nearest"}
    both = [fid_features_to_statistics(extractor(images).spatial) for images in (samples, real)]
    assert expected["sfd"] == pytest.approx(fid_statistics_to_metric(*both, False)["frechet_inception_distance"], 1e-6)
    reference = read_statistics(tmp_path / "batch.npz", extractor)
    found = score(samples, reference, extractor, metrics=EVERY, neighbours=3)
    assert found == {name: pytest.approx(expected[name], rel=1e-9) for name in names}
    bare = score(samples, read_statistics(tmp_path / "batch.npz"), extractor, metrics=EVERY)
    assert bare == {name: pytest.approx(expected[name], rel=1e-9) for name in ("fd", "sfd", "is")}
    np.savez(tmp_path / "images.npz", arr_0=arrays["arr_0"].numpy())
    alone = score(samples, read_statistics(tmp_path / "images.npz", extractor), extractor)
    assert alone["sfd"] == pytest.approx(expected["sfd"], rel=1e-9)
    np.savez(tmp_path / "other.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match="2048 features"):
        read_statistics(tmp_path / "other.npz", extractor)


def test_inception_features_pass_through_unchanged(inception_weights):
    generator = torch.Generator().manual_seed(0)
    samples, real = (torch.randint(0, n, (8, 3, 16, 16), dtype=torch.uint8, generator=generator) for n in (256, 200))
    inception = InceptionExtractor(inception_weights)
    reference = Reference.measure(real, None, inception)
    found = score(samples, reference, inception, metrics=frozenset({"is", "kd"}))
    fake, true = inception(samples), inception(real)
    expected = kid_features_to_metric(fake.pooled, true.pooled, kid_subsets=1, kid_subset_size=8, verbose=False)
    assert found["kd"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    isc = isc_features_to_metric(fake.logits, splits=1)
    assert found["is"] == pytest.approx(isc["inception_score_mean"], rel=1e-9)
    for moments, rows in ((reference.train.moments, true.pooled), (reference.train.spatial, true.spatial)):
        np.testing.assert_allclose(moments.covariance, np.cov(rows.double().T), rtol=1e-6, atol=1e-12)
