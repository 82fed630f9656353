"""IC-GAN on StyleGAN2: styles, images, logits and losses of the official code."""

import pytest
import torch

from helpers.recorded import unread
from rcg_lightning.core.adversarial import Logistic
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from rcg_lightning.networks.stylegan2_blocks import EqualisedMaps
from rcg_lightning.official.icgan_stylegan2 import stylegan2_discriminator_weights, stylegan2_generator_weights
from rcg_lightning.pretrained.checkpoints import load_strictly, read_checkpoint
from rcg_lightning.types import Classes, Vector

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
pytestmark = pytest.mark.golden("icgan_stylegan2")


def parts_of(settings):
    classes = (Classes(settings["c_dim"]),) if settings["c_dim"] else ()
    return (*classes, Vector(settings["h_dim"])) if settings["h_dim"] else classes


def loaded(golden, role, network, read):
    """Return network and conditioner with the official weights, in eval mode."""
    settings = golden.config[role]
    parts = parts_of(settings)
    shape = (settings["img_channels"], settings["img_resolution"], settings["img_resolution"])
    width = network.condition_width(shape)
    conditioner = Conditioner(dim=[width] * len(parts), drop=0.0, maps=EqualisedMaps())
    network.build(shape, conditioner.build(parts, width))
    found = read(read_checkpoint(golden.checkpoint, "IC-GAN")[role], parts)
    load_strictly(network, found.network, role)
    load_strictly(conditioner, found.conditioner, role)
    return network.eval(), conditioner.eval()


def generator(golden, truncation=1.0):
    settings = golden.config["G"]
    synthesis = settings["synthesis_kwargs"]
    network = StyleGAN2Generator(
        settings["z_dim"],
        settings["w_dim"],
        settings["mapping_kwargs"]["num_layers"],
        synthesis["channel_base"],
        synthesis["channel_max"],
        truncation=truncation,
        clamp=synthesis["conv_clamp"],
    )
    return loaded(golden, "G", network, stylegan2_generator_weights)


def discriminator(golden):
    settings = golden.config["D"]
    network = StyleGAN2Discriminator(
        settings["mapping_kwargs"]["num_layers"],
        settings["channel_base"],
        settings["channel_max"],
        settings["epilogue_kwargs"]["mbstd_group_size"],
        clamp=settings["conv_clamp"],
    )
    return loaded(golden, "D", network, stylegan2_discriminator_weights)


def raw(golden):
    """Raw condition: class indices of the recorded one-hot vectors, then features."""
    io = golden.io
    classes = (io["in.c"].argmax(1),) if "in.c" in io else ()
    return (*classes, io["in.h"]) if "in.h" in io else classes


@torch.no_grad()
def test_styles_and_images(golden):
    io = golden.io
    network, conditioner = generator(golden)
    c = conditioner(raw(golden), len(io["in.z"]))
    torch.testing.assert_close(network.styles(io["in.z"], c), io["out.ws"], **CLOSE)
    torch.testing.assert_close(network(io["in.z"], c), io["out.img_noise_const"], **CLOSE)
    done = 0
    for name, expected in io.items():
        if name.startswith("out.img_trunc"):
            share = float(name.removeprefix("out.img_trunc").partition("_")[0])
            truncated, _ = generator(golden, share)
            torch.testing.assert_close(truncated(io["in.z"], c), expected, **CLOSE)
            done += 1
    assert done
    for module in network.modules():
        if hasattr(module, "strength"):
            module.strength.zero_()
    torch.testing.assert_close(network(io["in.z"], c), io["out.img_noise_none"], **CLOSE)


@torch.no_grad()
def test_logits_and_losses(golden):
    io = golden.io
    network, conditioner = discriminator(golden)
    c = conditioner(raw(golden), len(io["in.x"]))
    made, real = network(io["out.img_noise_const"], c), network(io["in.x"], c)
    torch.testing.assert_close(made[:, None], io["out.D_of_img"], **CLOSE)
    torch.testing.assert_close(real[:, None], io["out.D_of_x"], **CLOSE)
    torch.testing.assert_close(Logistic().generator(made), io["out.loss_G_softplus"], **CLOSE)
    torch.testing.assert_close(Logistic().discriminator(real, made), io["out.loss_D"], **CLOSE)


def test_every_tensor_is_accounted_for(golden):
    content = read_checkpoint(golden.checkpoint, "IC-GAN")
    key_maps = {"G": stylegan2_generator_weights, "D": stylegan2_discriminator_weights}
    for role, read in key_maps.items():
        parts = parts_of(golden.config[role])
        skipped = unread(content[role], read(content[role], parts))
        classes = {f"mapping.embed.{kind}" for kind in ("weight", "bias")}  # become a table
        assert skipped
        assert all(name.endswith("resample_filter") for name in skipped - classes)
        with pytest.raises(UserError, match="not given"):
            read(content[role], parts[:-1])
        with pytest.raises(UserError, match="not for"):
            read(content[role], (*parts[:-1], Vector(3)))
    with pytest.raises(UserError, match="no StyleGAN2 generator"):
        stylegan2_generator_weights(content["D"], ())


def test_a_class_is_a_row_with_the_bias_inside(golden):
    """The recorded file may have no classes: the official formula is W one-hot / √classes + b."""
    content = read_checkpoint(golden.checkpoint, "IC-GAN")["D"]
    torch.manual_seed(0)
    weight, bias = torch.randn(4, 5), torch.randn(4)
    others = {name: tensor for name, tensor in content.items() if not name.startswith("mapping.embed")}
    official = {**others, "mapping.embed.weight": weight, "mapping.embed.bias": bias}
    conditioner = Conditioner(drop=0.0, maps=EqualisedMaps())
    conditioner.build((Classes(5),), 4)
    load_strictly(conditioner, stylegan2_discriminator_weights(official, (Classes(5),)).conditioner, "it")
    expected = torch.nn.functional.one_hot(torch.arange(5)).float() @ weight.T / 5**0.5 + bias
    torch.testing.assert_close(conditioner((torch.arange(5),), 5), expected)
