"""A whole evaluation by the ADM suite's protocol, with its file layout, Inception's file layout and PNG images."""

import json

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from rcg_lightning.cli.main import main
from rcg_lightning.evaluation.image_grid import save_images
from rcg_lightning.evaluation.reference import Reference
from rcg_lightning.evaluation.reference_files import read_statistics
from rcg_lightning.metrics.feature_extractors import INCEPTION_FILE, InceptionExtractor

pytestmark = pytest.mark.slow


def images(count, seed, darkest=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    return (darkest + smooth * (255 - darkest)).to(torch.uint8)


def distance(rows, mean, variances):
    """Fréchet distance of features (n, d) to a Gaussian with diagonal covariance, from their singular values."""
    centred = (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5
    cross = np.linalg.svd(centred * np.sqrt(variances), compute_uv=False).sum()
    return np.square(rows.mean(0) - mean).sum() + np.square(centred).sum() + variances.sum() - 2 * cross


@pytest.fixture
def suite(inception_weights, tmp_path, monkeypatch):
    """Samples, a reference batch, and Inception's weights in torch's cache; returns the features of both sets."""
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / INCEPTION_FILE).symlink_to(inception_weights)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("rcg_lightning.pretrained.downloads.require_sha256", lambda *_: None)
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    samples, real = images(8, 0), images(10, 1, 30)
    save_images([samples], tmp_path / "png", (f"{i:02d}.png" for i in range(8)))
    layers = ["2048", "logits_unbiased"]
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", layers, feature_extractor_weights_path=str(inception_weights)
    )
    spatial_features = []
    network.Mixed_6d.branch1x1.register_forward_hook(
        lambda block, inputs, output: spatial_features.append(output[:, :7])
    )
    found = [network(part) for part in (samples, real)]
    spatial = [part.permute(0, 2, 3, 1).flatten(1).double().numpy() for part in spatial_features]
    rng = np.random.default_rng(0)
    arrays = {"arr_0": real.permute(0, 2, 3, 1).numpy()}
    for name, rows in (("", found[1][0].double().numpy()), ("_s", spatial[1])):
        arrays |= {
            f"mu{name}": rows.mean(0),
            f"sigma{name}": np.diag(rows.var(0) + rng.uniform(1e-4, 1e-3, rows.shape[1])),
        }
    np.savez(tmp_path / "batch.npz", **arrays)
    return tmp_path, found, spatial[0], arrays


def test_metrics_equal_direct_computation_on_the_same_features(suite, capsys, monkeypatch):
    folder, (samples, real), spatial, arrays = suite
    words = ["--samples", folder / "png", "--protocol", "adm-256", "--statistics", folder / "batch.npz"]
    code = main([str(word) for word in ["evaluate", *words, "--accelerator", "cpu", "--out", folder / "metrics.json"]])
    assert code == 0, capsys.readouterr().err
    content = json.loads((folder / "metrics.json").read_text())
    metrics = {name.partition("/")[0]: value for name, value in content["metrics"].items()}
    assert "fid/inception_8_statistics" in content["metrics"]
    fid = distance(samples[0].double().numpy(), arrays["mu"], arrays["sigma"].diagonal())
    assert metrics["fid"] == pytest.approx(fid, rel=1e-3)
    assert metrics["sfid"] == pytest.approx(distance(spatial, arrays["mu_s"], arrays["sigma_s"].diagonal()), rel=1e-3)
    assert metrics["is"] == pytest.approx(
        isc_features_to_metric(samples[1], splits=1)["inception_score_mean"], rel=1e-3
    )
    near = prc_features_to_metric(
        samples[0], real[0], prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=False, verbose=False
    )
    assert (metrics["precision"], metrics["recall"]) == pytest.approx((near["precision"], near["recall"]), rel=1e-3)

    record = content["protocol"]
    assert record["name"] == "adm-256 with another weights, number"  # these weights are random
    assert (record["format"], record["reference"]["file"]) == ("png", "batch.npz")

    (stored,) = (folder / "cache" / "statistics").iterdir()
    monkeypatch.setattr(Reference, "measure", None)  # the images of the reference batch are not measured again
    again = read_statistics(folder / "batch.npz", InceptionExtractor())
    torch.testing.assert_close(again.train.features, real[0], rtol=1e-3, atol=1e-5)
    assert (again.name, again.train.images, again.train.size) == ("statistics", None, (32, 32))
    stored.unlink()
    with pytest.raises(TypeError):
        read_statistics(folder / "batch.npz", InceptionExtractor())


def test_an_unwritable_cache_only_costs_time(extractor, real, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").write_text("no folder")
    np.savez(tmp_path / "images.npz", arr_0=real.permute(0, 2, 3, 1).numpy())
    found = read_statistics(tmp_path / "images.npz", extractor)
    assert len(found.train.features) == len(real)
    assert "computed again" in caplog.text
