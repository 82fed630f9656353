import time

import pytest
import timm
import torch
from safetensors.torch import save_file

from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.normalisation import Identity
from rcg_lightning.pretrained.timm_encoder import TimmEncoder
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder, save_encoder

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
    assert encoder.preprocess(image).shape == (2, 3, 160, 160)
    assert encoder.preprocess.crop == model.pretrained_cfg["crop_pct"]
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


# the smallest model of each family: convolutions take images of any size, others are built for theirs
FAMILIES = {
    "test_resnet": False,
    "test_convnext": False,
    "test_efficientnet": False,
    "mobilenetv3_small_050": False,
    "test_mambaout": False,
    "test_nfnet": False,
    "vit_tiny_patch16_224": True,
    "test_vit_relpos": True,
    "swin_s3_tiny_224": True,
    "swinv2_cr_tiny_224": True,
    "test_maxvit": True,
    "test_coatnet": True,
    "levit_128s": True,
    "mobilevit_xxs": False,
}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_family_takes_images_of_a_chosen_size(name, monkeypatch):
    monkeypatch.setattr("torch.nn.init.trunc_normal_", lambda tensor, *a, **k: tensor.normal_(std=0.02))  # 20 x faster
    image = torch.rand(2, 3, 40, 50)
    encoder = TimmEncoder(name, pretrained=False, size=96, normalise=Identity())
    feature = encoder(image)
    assert feature.shape == (2, encoder.dim)
    assert feature.isfinite().all()
    assert encoder.preprocess(image).shape == (2, 3, 96, 96)
    network = encoder._frozen.module[1]
    pixels = torch.zeros(1, 3, 160, 160)
    if FAMILIES[name]:  # it was built for 96 pixels and fits no others
        with pytest.raises((RuntimeError, AssertionError)):
            network(pixels)
    else:
        assert network(pixels).shape == (1, encoder.dim)
    assert encoder.feature_map(image).ndim == 4


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", NAME])
def test_weights_are_read_for_another_size(name, tmp_path):
    torch.manual_seed(1)
    save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    published, other = (TimmEncoder(name, tmp_path / "w.safetensors", size=size) for size in (None, 96))
    image = torch.rand(1, 3, 96, 96)
    assert published(image).shape == other(image).shape
    assert published.identity != other.identity


def test_an_impossible_size_is_reported():
    with pytest.raises(UserError, match=r"efficientformer_l1 for images of 100 pixels a side: .*choose another size"):
        TimmEncoder("efficientformer_l1", pretrained=False, size=100).setup()


def test_weights_that_fit_their_own_size_only_are_rejected_for_another(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.nn.init.trunc_normal_", lambda tensor, *a, **k: tensor)
    name = "levit_128s.fb_dist_in1k"
    save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"levit_128s.* 96 pixels a side: .*attention_biases.*leave it out"):
        TimmEncoder(name, tmp_path / "w.safetensors", size=96).setup()


def test_a_pooling_determines_the_size_of_the_representation():
    usual = TimmEncoder("test_resnet", pretrained=False, size=64)
    both = TimmEncoder("test_resnet", pretrained=False, size=64, pool="catavgmax")
    assert both.dim == 2 * usual.dim == both(torch.rand(1, 3, 64, 64)).shape[1]
    with pytest.raises(UserError, match="not one vector"):
        TimmEncoder("test_resnet", pretrained=False, pool="").setup()
    with pytest.raises(UserError, match="cannot build test_vit"):
        TimmEncoder("test_vit", pretrained=False, pool="nonsense").setup()


@pytest.mark.parametrize("name", [NAME, "test_resnet.r160_in1k"])
def test_a_network_folder_holds_a_timm_model(name, tmp_path):
    torch.manual_seed(3)
    model = timm.create_model(name)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    pool = "avg" if "vit" in name else None
    encoder = TimmEncoder(name, tmp_path / "w.safetensors", pool=pool, size=96)
    save_encoder(tmp_path / "encoder", encoder)
    (tmp_path / "w.safetensors").unlink()
    kept, image = TrainedEncoder(tmp_path / "encoder"), torch.rand(2, 3, 40, 40)
    assert kept.identity == encoder.identity
    assert torch.equal(kept(image), encoder(image))
    assert torch.equal(kept.feature_map(image), encoder.feature_map(image))


def test_an_own_normalisation_is_not_kept(tmp_path):
    with pytest.raises(UserError, match="own normalisation"):
        save_encoder(tmp_path / "encoder", TimmEncoder(NAME, pretrained=False, normalise=Identity()))
