"""Frozen autoencoders: their image range, their identity, and files of other kinds."""

import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.autoencoders import kl_network, save_kl, save_vq
from rcg_lightning.errors import UserError
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.networks.vqgan import VQGAN, MaskGITVQGAN
from rcg_lightning.pretrained.autoencoders import KLAutoencoder, VQAutoencoder
from rcg_lightning.pretrained.kl_checkpoints import load_kl
from rcg_lightning.pretrained.network_folder import load_network, save_network


@pytest.mark.parametrize("kind", [MaskGITVQGAN, VQGAN])
def test_images_are_scaled_to_the_networks_range_and_back(kind, tmp_path):
    frozen = VQAutoencoder(save_vq(tmp_path / "it", kind))
    network, _ = load_network(tmp_path / "it")
    low, high = kind.image_range
    image = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        z = network.encode(image * (high - low) + low)
        quantised, indices = network.quantise(z)
        made = (network.decode(quantised) - low) / (high - low)
    torch.testing.assert_close(frozen.encode(image), z)
    assert torch.equal(frozen.tokens(image), indices.flatten(1))
    torch.testing.assert_close(frozen.decode(z), made.clamp(0, 1))
    torch.testing.assert_close(frozen.decode_tokens(indices), made.clamp(0, 1))
    assert not any(parameter.requires_grad for parameter in frozen.network.parameters())


def test_identity_depends_on_weights_structure_and_range(tmp_path):
    own = VQAutoencoder(save_vq(tmp_path / "own")).identity
    network, settings = load_network(tmp_path / "own")
    save_network(tmp_path / "same", network, settings)
    save_network(tmp_path / "range", network, {**settings, "image_range": [-1.0, 1.0]})
    assert VQAutoencoder(tmp_path / "same").identity == own
    assert VQAutoencoder(tmp_path / "range").identity != own
    assert VQAutoencoder(save_vq(tmp_path / "other", seed=1)).identity != own


def test_a_folder_is_read_at_its_first_use_and_rejected_if_of_another_kind(tmp_path):
    missing = VQAutoencoder(tmp_path / "nothing")
    with pytest.raises(UserError, match="no network folder"):
        missing.shape((1, 8, 8))
    save_network(tmp_path / "encoder", SmallConvNet(1, 8, (8, 16)), {})
    with pytest.raises(UserError, match="SmallConvNet, which has no codebook"):
        _ = VQAutoencoder(tmp_path / "encoder").identity


@torch.no_grad()
def test_means_and_deviations_of_a_kl_autoencoder(tmp_path):
    frozen, network = KLAutoencoder(save_kl(tmp_path / "kl")), kl_network()
    image = torch.rand(2, 3, 8, 8)
    posterior = network.encode(2 * image - 1).latent_dist
    moments = frozen.moments(image)
    torch.testing.assert_close(moments, torch.cat([posterior.mean, posterior.std], dim=1))
    made = network.decode(posterior.mean).sample
    torch.testing.assert_close(frozen.decode(posterior.mean), (made / 2 + 0.5).clamp(0, 1))
    assert frozen.shape((3, 8, 8)) == moments[:, :4].shape[1:] == (4, 4, 4)
    for shape, message in (((1, 8, 8), "3 channels"), ((3, 7, 8), "7x8")):
        with pytest.raises(UserError, match=message):
            frozen.shape(shape)


NAMES = [
    (r"(encoder)\.down_blocks\.(\d)\.resnets\.", r"\1.down.\2.block."),
    (r"(encoder)\.down_blocks\.(\d)\.downsamplers\.0", r"\1.down.\2.downsample"),
    (r"(decoder)\.up_blocks\.0\.resnets\.", r"\1.up.1.block."),
    (r"(decoder)\.up_blocks\.1\.resnets\.", r"\1.up.0.block."),
    (r"(decoder)\.up_blocks\.0\.upsamplers\.0", r"\1.up.1.upsample"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_", "mid.attn_1."),
]


def original_layout(network):
    """The same weights under the names of the original code."""
    state = {}
    for name, tensor in network.state_dict().items():
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        linear = ".attn_1." in name and tensor.ndim == 2
        state[name] = (tensor[:, :, None, None] if linear else tensor).clone()
    return state


def test_a_kl_autoencoder_of_unequal_channels_is_rejected(tmp_path):
    state = original_layout(kl_network())
    state["quant_conv.weight"] = state["quant_conv.weight"][:2]
    save_file(state, tmp_path / "it.safetensors")
    with pytest.raises(UserError, match=r"z_channels \d+ and embed_dim 1: .* equal ones only"):
        load_kl(tmp_path / "it.safetensors")


def test_a_single_file_in_the_original_layout(tmp_path):
    folder = KLAutoencoder(save_kl(tmp_path / "kl"))
    state = original_layout(kl_network())
    whole = {f"first_stage_model.{name}": tensor for name, tensor in state.items()} | {"betas": torch.zeros(3)}
    torch.save({"state_dict": whole}, tmp_path / "sd.ckpt")
    save_file(state, tmp_path / "vae.safetensors")
    for name in ("sd.ckpt", "vae.safetensors"):
        assert KLAutoencoder(tmp_path / name).identity == folder.identity


def test_a_file_of_another_kind_is_reported(tmp_path):
    folder = save_kl(tmp_path / "kl")
    weights = folder / "diffusion_pytorch_model.safetensors"
    part = {name: tensor for name, tensor in original_layout(kl_network()).items() if "decoder.mid" not in name}
    save_file(part, tmp_path / "part.safetensors")
    (tmp_path / "torn.ckpt").write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "empty").mkdir()
    for source, message in (
        (tmp_path / "part.safetensors", "damaged"),
        (tmp_path / "torn.ckpt", "cannot be read"),
        (tmp_path / "empty", "config.json"),
        (weights, "given as a folder"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_kl(source)
        assert "\n" not in str(caught.value)
    save_file({name: tensor for name, tensor in load_file(weights).items() if "decoder.mid" not in name}, weights)
    with pytest.raises(UserError, match="another autoencoder"):
        load_kl(folder)


def test_an_error_of_diffusers_becomes_one_line(tmp_path, monkeypatch):
    def absent(*_args, **_more):
        raise OSError("no such\nlayer")

    folder = save_kl(tmp_path / "kl")
    monkeypatch.setattr("diffusers.AutoencoderKL.from_pretrained", absent)
    with pytest.raises(UserError, match="kl cannot be read as a KL autoencoder: no such layer"):
        load_kl(folder)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'rcg-lightning\[latents\]'"):
        load_kl("some/name")
