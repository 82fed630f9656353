"""IC-GAN on StyleGAN2: styles, images, logits and losses of the official code."""

import pytest
import torch

from helpers.recorded import unread
from rcg_lightning.core.adversarial import Logistic
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from rcg_lightning.networks.stylegan2_blocks import EqualisedMaps, MappingNetwork
from rcg_lightning.official.icgan_stylegan2 import stylegan2_discriminator_weights, stylegan2_generator_weights
from rcg_lightning.pretrained.checkpoints import load_strictly, read_checkpoint, strip
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
    settings, io = golden.config["G"], golden.io
    classes = (io["in.c"].argmax(1),) if settings["c_dim"] else ()
    return (*classes, io["in.h"]) if settings["h_dim"] else classes


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
        for last in parts[-1:]:
            with pytest.raises(UserError, match="not given"):
                read(content[role], parts[:-1])
            wider = Classes(last.count + 1) if isinstance(last, Classes) else Vector(last.dim + 1)
            with pytest.raises(UserError, match="not for"):
                read(content[role], (*parts[:-1], wider))
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


def with_classes(state, classes):
    """The official state dict with a class embedding in front of that of the features, if it has none."""
    if "mapping.embed.weight" in state:
        return state
    first = state["mapping.fc0.weight"]
    # the embeddings are as wide as the other one, else as the styles
    width = len(state.get("mapping.embed_feats.weight", state["mapping.fc1.weight"]))
    embedding = {"mapping.embed.weight": torch.randn(width, classes), "mapping.embed.bias": torch.randn(width)}
    return {**state, **embedding, "mapping.fc0.weight": torch.cat([first, torch.randn(len(first), width)], 1)}


def official_mapping(state, one_hot, features, noise=None, lr_multiplier=0.01):
    """The official mapping network, from the names and shapes of its state dict."""

    def normalised(x):
        return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()

    def dense(name, x, gain=1.0):
        weight, bias = state[f"mapping.{name}.weight"], state[f"mapping.{name}.bias"]
        return x @ weight.T * gain / weight.shape[1] ** 0.5 + bias * gain

    given = {"embed": one_hot, "embed_feats": features}
    embedded = torch.cat([dense(name, x) for name, x in given.items() if x is not None], 1)
    x = torch.cat([normalised(each) for each in (noise, embedded) if each is not None], 1)
    layer = 0
    while f"mapping.fc{layer}.weight" in state:
        x = torch.nn.functional.leaky_relu(dense(f"fc{layer}", x, lr_multiplier), 0.2) * 2**0.5
        layer += 1
    return x


@torch.no_grad()
def test_a_mapping_with_classes_in_closed_form(golden):
    """A one-hot vector times the class matrix joins the embedding of the features, before one normalisation."""
    torch.manual_seed(0)
    settings, io = golden.config["G"], golden.io
    content = read_checkpoint(golden.checkpoint, "IC-GAN")
    label, count = torch.arange(len(io["in.z"])), settings["c_dim"] or len(io["in.z"]) + 3
    one_hot, features = torch.eye(count)[label], io.get("in.h")
    readers = {"G": stylegan2_generator_weights, "D": stylegan2_discriminator_weights}
    for role, read in readers.items():
        state = with_classes(content[role], count)
        parts = (Classes(count), *([] if features is None else [Vector(features.shape[1])]))
        found = read(state, parts)
        width = len(state["mapping.embed.weight"])
        conditioner = Conditioner(dim=[width] * len(parts), drop=0.0, maps=EqualisedMaps())
        conditioner.build(parts, width)
        load_strictly(conditioner, found.conditioner, role)
        layers = sum(name.startswith("mapping.layers.") and name.endswith(".weight") for name in found.network)
        noise = io["in.z"] if role == "G" else None
        dims = [0 if noise is None else noise.shape[1], width * len(parts), len(state["mapping.fc0.weight"])]
        mapping = MappingNetwork(*dims, layers, 0.01)
        load_strictly(mapping, strip(found.network, "mapping."), role)
        c = conditioner.eval()((label, *([] if features is None else [features])), len(label))
        made = mapping(noise, c) if noise is not None else mapping(c)
        torch.testing.assert_close(made, official_mapping(state, one_hot, features, noise), **CLOSE)
