"""timm's evaluation transform: equal to timm's own, which runs on Pillow images."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

from rcg_lightning.pretrained.normalisation import Identity
from rcg_lightning.pretrained.timm_encoder import TimmEncoder
from rcg_lightning.pretrained.timm_preprocess import TimmPreprocess

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
SIZES = [(32, 32), (47, 90), (91, 46), (300, 211)]  # of images, which are enlarged and shrunk


def image_of(height, width):
    """Noise and edges, whose bicubic resize leaves the range."""
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[: height // 2, : width // 2] = 255 * (np.indices((height // 2, width // 2)).sum(0) // 5 % 2)[..., None]
    return pixels


def as_batch(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("mode", "crop", "target"),
    [
        ("center", 0.875, (64, 64)),
        ("center", 0.95, (63, 63)),
        ("center", 1.15, (64, 64)),  # volo's: black border
        ("center", 0.9, (80, 60)),  # sapiens': not square
        ("squash", 0.9, (64, 64)),
        ("border", 1.0, (64, 64)),
        ("border", 0.9, (63, 64)),
    ],
)
def test_agrees_with_timm(size, interpolation, mode, crop, target):
    pixels = image_of(*size)
    settings = {"crop_pct": crop, "crop_mode": mode, "interpolation": interpolation, "mean": MEAN, "std": STD}
    expected = create_transform((3, *target), **settings)(Image.fromarray(pixels))[None]
    ours = TimmPreprocess(MEAN, STD, target, crop, mode, interpolation)(as_batch(pixels))
    assert ours.shape == expected.shape
    steps = (ours - expected).abs() * torch.tensor(STD)[:, None, None] * 255  # in grey values
    # a value exactly between two grey values may be rounded to the other one; they are frequent at few bilinear weights
    assert steps.max() < 1.01
    assert (steps > 0.01).float().mean() < (2e-3 if interpolation == "bicubic" else 5e-2)


def test_a_gradient_passes():
    image = as_batch(image_of(40, 30)).requires_grad_()
    TimmPreprocess(size=(16, 16))(image).square().sum().backward()
    assert image.grad.isfinite().all()
    assert (image.grad != 0).float().mean() > 0.5


def test_the_encoder_gives_the_features_of_timm(tmp_path):
    torch.manual_seed(3)
    model = timm.create_model("test_vit.r160_in1k").eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    encoder = TimmEncoder("test_vit.r160_in1k", tmp_path / "w.pth", normalise=Identity())
    transform = create_transform(**timm.data.resolve_model_data_config(model))
    for size in SIZES:
        pixels = image_of(*size)
        with torch.no_grad():
            features = model.forward_features(transform(Image.fromarray(pixels))[None])
            expected = model.forward_head(features, pre_logits=True)
        error = (encoder(as_batch(pixels)) - expected).norm() / expected.norm()
        assert error < 1e-3


def test_settings_are_part_of_an_encoders_identity(monkeypatch):
    name = "test_resnet.r160_in1k"
    first = TimmEncoder(name, pretrained=False).identity
    assert first == TimmEncoder(name, pretrained=False).identity
    others = [{"crop_pct": 0.5}, {"crop_mode": "squash"}, {"interpolation": "bicubic"}]
    config = timm.get_pretrained_cfg(name)
    assert config.interpolation == "bilinear"
    identities = {first, TimmEncoder(name, pretrained=False, size=96).identity}
    for other in others:
        changed = timm.models._pretrained.PretrainedCfg(**{**config.to_dict(remove_source=False), **other})
        monkeypatch.setattr("rcg_lightning.pretrained.timm_encoder.published_config", lambda name, c=changed: c)
        identities.add(TimmEncoder(name, pretrained=False).identity)
    assert len(identities) == 5
