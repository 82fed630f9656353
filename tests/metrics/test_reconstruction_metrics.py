import math

import pytest
import torch
import torchvision

from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.reference import Reference
from rcg_lightning.evaluation.scorer import score
from rcg_lightning.metrics.metric_name import metric_name
from rcg_lightning.metrics.reconstruction import Reconstruction, reconstruction_scores


def pairs(original, error, size=50):
    reconstruction = (original.int() + error).clamp(0, 255).to(torch.uint8)
    return list(zip(original.split(size), reconstruction.split(size)))


def test_psnr_follows_from_the_error():
    original = torch.full((90, 1, 16, 16), 100, dtype=torch.uint8)
    found = reconstruction_scores(pairs(original, 10))
    assert found["psnr"] == pytest.approx(20 * math.log10(25.5), rel=1e-5)
    mixed = torch.zeros(90, 1, 1, 1, dtype=torch.int)
    mixed[:45], mixed[45:] = 10, 20
    both = reconstruction_scores(pairs(original, mixed))["psnr"]
    assert both == pytest.approx(10 * math.log10(25.5 * 12.75), rel=1e-5)  # of each image, then the mean


def test_exact_reconstructions_are_perfect(real, extractor):
    found = reconstruction_scores(pairs(real, 0), extractor)
    assert found["psnr"] == math.inf
    assert found["ssim"] == pytest.approx(1)
    assert found["rfd"] == pytest.approx(0, abs=1e-9)


def test_metrics_depend_on_the_error_and_not_on_the_batches(real, extractor):
    good, other = (reconstruction_scores(pairs(real, 10, size), extractor) for size in (50, 33))
    bad = reconstruction_scores(pairs(real, 60), extractor)
    assert good == pytest.approx(other, rel=1e-5)
    assert good["psnr"] > bad["psnr"]
    assert good["ssim"] > bad["ssim"]
    assert good["rfd"] < bad["rfd"]


def test_a_reference_replaces_the_originals(real, samples, extractor):
    reference = Reference.measure(samples, None, extractor)
    found = reconstruction_scores(pairs(real, 10), extractor, reference)
    reconstructions = torch.cat([reconstruction for _, reconstruction in pairs(real, 10)])
    assert found["rfd"] == pytest.approx(score(reconstructions, reference, extractor)["fd"], rel=1e-4)
    assert metric_name("rfd", "inception", 5000, "train") == "rfid/inception_5k_train"


def test_pairs_that_do_not_fit_are_rejected(real):
    with pytest.raises(UserError, match="do not fit"):
        reconstruction_scores([(real[:5], real[:4])])
    with pytest.raises(UserError, match="extractor"):
        Reconstruction(reference=Reference("", None))  # type: ignore[arg-type]


def test_lpips_with_random_weights_in_the_published_layout(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setattr("rcg_lightning.pretrained.downloads.require_sha256", lambda *_: None)
    generator = torch.Generator().manual_seed(0)
    original = torch.randint(0, 200, (6, 1, 32, 32), dtype=torch.uint8, generator=generator)
    noise = torch.randint(0, 55, original.shape, generator=generator)
    none, little, much = (
        reconstruction_scores(pairs(original, error, 4), lpips="squeeze")["lpips"] for error in (0, noise // 4, noise)
    )
    assert none == 0 < little < much
    uneven = reconstruction_scores(pairs(original, noise, 5), lpips="squeeze")["lpips"]
    assert uneven == pytest.approx(much, rel=1e-4)
    with pytest.raises(UserError, match="32 pixels"):
        reconstruction_scores(pairs(original[..., :16, :16], 0), lpips="squeeze")
