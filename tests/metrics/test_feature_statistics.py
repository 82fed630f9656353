import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from rcg_lightning.core.counter_rng import mix
from rcg_lightning.errors import UserError
from rcg_lightning.metrics.feature_statistics import FeatureStatistics
from rcg_lightning.metrics.fid import Moments, fid
from rcg_lightning.metrics.metric_name import metric_name

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torchmetrics")

DIM, CLASSES = 24, 7


class Projection(torch.nn.Module):
    """A mock of Inception for torchmetrics: images are flattened and projected, in float64."""

    num_features = DIM

    def __init__(self, width=DIM):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(3 * 16, width, dtype=torch.float64, generator=generator))

    def forward(self, images):
        return (images.flatten(1).double() / 255) @ self.weight


def random_images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256 - 40 * seed, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)


def statistics(images, batch=64, **settings):
    metric = FeatureStatistics(DIM, CLASSES, **settings)
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        metric.update(Projection()(part), Projection(CLASSES)(part))
    return metric


def test_fid_equals_torchmetrics():
    real, fake = random_images(300, 0), random_images(280, 1)
    theirs = FrechetInceptionDistance(feature=Projection())
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = fid(statistics(fake).compute().moments, statistics(real).compute().moments)
    assert ours == pytest.approx(theirs.compute().item(), rel=1e-9)


def test_inception_score_of_one_split_equals_torchmetrics():
    images = random_images(300, 0)
    theirs = InceptionScore(feature=Projection(CLASSES), splits=1)
    theirs.update(images)
    assert statistics(images).compute().inception_score()[0] == pytest.approx(theirs.compute()[0].item(), rel=1e-10)


def test_inception_score_of_ten_splits_equals_torchmetrics_on_the_same_splits():
    summary = statistics(random_images(300, 0)).compute()
    theirs = []
    for split in range(10):
        metric = InceptionScore(feature=Projection(CLASSES), splits=1)
        metric.update(random_images(300, 0)[mix(torch.arange(300)) % 10 == split])
        theirs.append(metric.compute()[0].item())
    assert summary.inception_score(splits=10) == pytest.approx((np.mean(theirs), np.std(theirs, ddof=1)), rel=1e-10)


def test_metrics_do_not_depend_on_the_batch_size():
    images, reference = random_images(300, 1), statistics(random_images(200, 0)).compute()
    small, large = statistics(images, 7).compute(), statistics(images, 300).compute()
    assert fid(small.moments, reference.moments) == pytest.approx(fid(large.moments, reference.moments), rel=1e-10)
    for splits in (1, 10):
        assert small.inception_score(splits) == pytest.approx(large.inception_score(splits), rel=1e-10)


def test_two_processes_give_the_statistics_of_one():
    images, names = random_images(301, 1), torch.arange(301)
    parts = names[:140], names[140:]
    whole = FeatureStatistics(DIM, CLASSES, store_features=True)
    other = FeatureStatistics(DIM, CLASSES, store_features=True)
    names_of_states = iter(other._defaults)  # states are gathered in this order

    def gather(state, group=None):
        others = getattr(other, next(names_of_states))
        return [state, torch.cat(others) if isinstance(others, list) else others]

    first = FeatureStatistics(
        DIM, CLASSES, store_features=True, dist_sync_fn=gather, distributed_available_fn=lambda: True
    )
    for metric, part in ((whole, names), (first, parts[0]), (other, parts[1])):
        metric.update(Projection()(images[part]), Projection(CLASSES)(images[part]), part)
    merged, expected = first.compute(), whole.compute()
    assert merged.count == 301
    torch.testing.assert_close(merged.moments.covariance, expected.moments.covariance, rtol=1e-12, atol=1e-12)
    assert merged.inception_score(10) == pytest.approx(expected.inception_score(10), rel=1e-12)
    assert torch.equal(merged.features, expected.features)


def test_state_survives_half_precision_and_reset_empties_it():
    images = random_images(100, 0)
    metric = statistics(images, store_features=True).half()
    before = metric.compute()
    metric.reset()
    metric.update(Projection()(images), Projection(CLASSES)(images))
    after = metric.compute()
    torch.testing.assert_close(after.moments.covariance, before.moments.covariance, rtol=1e-12, atol=1e-12)
    assert after.moments.mean.dtype == torch.float64
    assert after.inception_score(10) == pytest.approx(before.inception_score(10), rel=1e-12)
    assert after.features.shape == (100, DIM)


def test_certain_and_balanced_predictions_score_the_number_of_classes():
    metric = FeatureStatistics(2, 4)
    logits = 1000 * torch.eye(4).repeat(25, 1)
    metric.update(torch.randn(100, 2), logits)
    assert metric.compute().inception_score()[0] == pytest.approx(4, rel=1e-12)


def test_splits_are_balanced_when_classes_come_in_turns():
    metric = FeatureStatistics(2, 10)
    metric.update(torch.randn(2000, 2), 50 * torch.eye(10).repeat(200, 1), torch.arange(2000))
    assert metric.compute().inception_score(10)[0] > 9.5  # a split by the plain remainder would score 1


def test_moments_are_restored_from_their_file(tmp_path):
    moments = statistics(random_images(100, 0), identity="abc").compute().moments
    moments.save(tmp_path / "made" / "stats.npz")
    loaded = Moments.load(tmp_path / "made" / "stats.npz")
    assert torch.equal(loaded.covariance, moments.covariance)
    assert (loaded.count, loaded.identity) == (100, "abc")


def test_published_statistics_have_mu_and_sigma_only(tmp_path):
    np.savez(tmp_path / "adm.npz", mu=np.zeros(DIM, np.float32), sigma=np.eye(DIM, dtype=np.float32), mu_s=np.zeros(3))
    loaded = Moments.load(tmp_path / "adm.npz")
    assert loaded.identity is None
    assert fid(loaded, statistics(random_images(100, 0), identity="abc").compute().moments) > 0


def test_wrong_files_and_features_are_rejected(tmp_path):
    np.savez(tmp_path / "other.npz", arr_0=np.zeros((3, 4)))
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    for name, message in (
        ("other.npz", "mu and sigma"),
        ("broken.npz", "cannot be read"),
        ("none.npz", "no reference"),
    ):
        with pytest.raises(UserError, match=message):
            Moments.load(tmp_path / name)
    np.savez(tmp_path / "half.npz", mu_s=np.zeros(3))
    with pytest.raises(UserError, match="sigma_s"):
        Moments.load(tmp_path / "half.npz", "_s")
    np.savez(tmp_path / "nan.npz", mu=np.zeros(3), sigma=np.full((3, 3), np.nan))
    with pytest.raises(UserError, match="NaN"):
        Moments.load(tmp_path / "nan.npz")
    for sigma in (-np.eye(3), np.triu(np.ones((3, 3)))):
        np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=sigma)
        with pytest.raises(UserError, match=r"odd\.npz: sigma is no covariance"):
            Moments.load(tmp_path / "odd.npz")
    for mu in (np.array(["x"] * 3), np.zeros(3, complex)):
        np.savez(tmp_path / "odd.npz", mu=mu, sigma=np.eye(3))
        with pytest.raises(UserError, match=r"odd\.npz.* numbers"):
            Moments.load(tmp_path / "odd.npz")
    one, other = (statistics(random_images(100, 0), identity=identity).compute().moments for identity in "ab")
    with pytest.raises(UserError, match="reference again"):
        fid(one, other)
    with pytest.raises(UserError, match="at least 2"):
        statistics(random_images(1, 0)).compute()
    assert statistics(random_images(2, 0)).compute().moments.count == 2
    without_classes = FeatureStatistics(2)
    with pytest.raises(UserError, match="NaN"):
        without_classes.update(torch.tensor([[0.0, float("nan")]]))
    without_classes.update(torch.randn(9, 2))
    with pytest.raises(UserError, match="no class logits"):
        without_classes.compute().inception_score()


def test_names_contain_extractor_count_and_reference():
    assert metric_name("fd", "inception", 5000, "train") == "fid/inception_5k_train"
    assert metric_name("fd", "classifier", 1346, "train") == "fd/classifier_1346_train"
    assert metric_name("sfd", "inception", 50_000, "train") == "sfid/inception_50k_train"
    assert metric_name("kd_std", "inception", 50_000, "train") == "kid_std/inception_50k_train"
    assert metric_name("density", "inception", 50_000, "train") == "density/inception_50k_train"
    assert metric_name("is", "inception", 50_000) == "is/inception_50k"
