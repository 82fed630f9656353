import time

import pytest
import timm
import torch
from safetensors.torch import save_file

from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.normalisation import Identity
from rcg_lightning.pretrained.timm_encoder import TimmEncoder

NAME = "test_vit.r160_in1k"  # timm's own tiny model: 160 pixels, crop 0.95


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    return timm.create_model(NAME).eval()


def test_local_file_gives_the_models_features(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = TimmEncoder(NAME, tmp_path / "w.safetensors", normalise=Identity())
    image = torch.rand(2, 3, 64, 64)
    ours = encoder(image)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(encoder.preprocess(image)), pre_logits=True)
    torch.testing.assert_close(ours, expected)
    assert ours.shape[1] == encoder.dim
    assert (encoder.preprocess.size, encoder.preprocess.crop) == (160, model.pretrained_cfg["crop_pct"])
    assert str(tmp_path) in encoder.report()


def test_pooling_and_files_without_a_classifier(model, tmp_path):
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head")}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    image = torch.rand(2, 3, 160, 160)
    token = TimmEncoder(NAME, tmp_path / "w.pth", pool="token", normalise=Identity())
    mean = TimmEncoder(NAME, tmp_path / "w.pth", pool="avg", normalise=Identity())
    with torch.no_grad():
        tokens = model.forward_features(token.preprocess(image))
    torch.testing.assert_close(token(image), tokens[:, 0])
    assert not torch.allclose(mean(image), token(image))
    assert mean.identity != token.identity


def test_incomplete_file_is_rejected(model, tmp_path):
    state = model.state_dict()
    del state["blocks.0.attn.qkv.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.qkv\.weight"):
        TimmEncoder(NAME, tmp_path / "w.safetensors").setup()


def test_a_random_network_is_always_the_same():
    first, second = TimmEncoder(NAME, pretrained=False), TimmEncoder(NAME, pretrained=False)
    assert first.identity == second.identity
    assert "random" in first.report()


def test_missing_weights_offline_are_reported_at_once(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        TimmEncoder("vit_base_patch14_dinov2.lvd142m").setup()
    assert time.perf_counter() - start < 5
    for part in ("model.safetensors", "timm/vit_base_patch14_dinov2.lvd142m", "as weights", "HF_HUB_OFFLINE"):
        assert part in str(caught.value)


def test_cached_weights_are_used_without_asking_the_hub(model, monkeypatch, tmp_path):
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: str(tmp_path / "model.safetensors"))
    assert str(tmp_path) in TimmEncoder(NAME).report()


@pytest.mark.parametrize(
    ("name", "hint"), [("vit_bass_patch16_224", "did you mean"), ("vit_base_patch16_224.no", "augreg")]
)
def test_unknown_names_are_reported_with_known_ones(name, hint):
    with pytest.raises(UserError, match=hint):
        TimmEncoder(name).setup()
