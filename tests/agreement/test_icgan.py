"""IC-GAN's BigGAN: images, logits, losses, gradients and buffers of the official code, in eval and train mode."""

import json

import pytest
import torch

from helpers.recorded import unread
from rcg_lightning.core.adversarial import Hinge
from rcg_lightning.errors import UserError
from rcg_lightning.networks.biggan import BigGANDiscriminator, BigGANGenerator
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.spectral import SpectralMaps
from rcg_lightning.official import icgan_biggan as official
from rcg_lightning.pretrained.checkpoints import load_strictly, read_checkpoint
from rcg_lightning.types import Classes, Vector

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
BUFFERS = {"rtol": 1e-5, "atol": 1e-5}
biggan = pytest.mark.golden("icgan_biggan", "cc_icgan_biggan")


class Model:
    """One official network and its conditioner: called with an example and a raw condition."""

    def __init__(self, golden, file, read, network, widths, shape, tables):
        self.content = read_checkpoint(golden.folder / file, "IC-GAN")
        feature = golden.io["in.feat_g"].shape[1]
        classes = (Classes(golden.config["kwargs"]["n_classes"]),) if "in.y_g" in golden.io else ()
        self.parts = (*classes, Vector(feature))
        self.weights, self.network = read(self.content, self.parts), network
        self.conditioner = Conditioner(dim=widths[-len(self.parts) :], drop=0.0, maps=SpectralMaps(tables))
        network.build(shape, self.conditioner.build(self.parts, 0))
        load_strictly(network, self.weights.network, file)
        load_strictly(self.conditioner, self.weights.conditioner, file)
        self.train(False)

    @property
    def makes(self):
        return isinstance(self.network, BigGANGenerator)

    def train(self, mode=True):
        self.network.train(mode)
        self.conditioner.train(mode)

    def c(self, io, *which):
        """Embed the features, and labels if recorded, of ``which``: g or real."""
        names = (["in.y_"] if f"in.y_{which[0]}" in io else []) + ["in.feat_"]
        raw = tuple(torch.cat([io[name + w] for w in which]) for name in names)
        return self.conditioner(raw, len(raw[0]))

    def tensors(self, back, gradients=False):
        """State or gradients, in official names."""
        found = [dict(m.named_parameters()) if gradients else m.state_dict() for m in (self.network, self.conditioner)]
        if gradients:
            found = [{name: p.grad for name, p in part.items()} for part in found]
        return back(*found)


def sides(text):
    """``64_32`` names two sides of maps that attention follows, ``0`` none."""
    return [int(side) for side in text.split("_") if int(side)]


def generator(golden, file="G.pth"):
    kwargs = golden.config["kwargs"]
    network = BigGANGenerator(kwargs["G_ch"], kwargs["dim_z"], kwargs["hier"], sides(kwargs["G_attn"]))
    widths = [kwargs["shared_dim"], kwargs["shared_dim_feat"]]
    shape = tuple(golden.io["in.x_real"].shape[1:])
    model = Model(golden, file, official.biggan_generator_weights, network, widths, shape, tables=False)
    assert network.noise_dim == golden.config["effective_dim_z"]
    return model


def discriminator(golden):
    kwargs = golden.config["kwargs"]
    network = BigGANDiscriminator(kwargs["D_ch"], sides(kwargs["D_attn"]))
    shape = tuple(golden.io["in.x_real"].shape[1:])
    width = network.condition_width(shape)
    widths = [width // 2] * 2 if "in.y_g" in golden.io else [width]
    return Model(golden, "D.pth", official.biggan_discriminator_weights, network, widths, shape, tables=True)


@biggan
@torch.no_grad()
def test_evaluation(golden):
    io, g, d = golden.io, generator(golden), discriminator(golden)
    c = g.c(io, "g")
    torch.testing.assert_close(c, io["out.eval.condition_embedding"], **CLOSE)
    fake = g.network(io["in.z"], c)
    torch.testing.assert_close(fake, io["out.eval.G"], **CLOSE)
    ema = generator(golden, "G_ema.pth")
    torch.testing.assert_close(ema.network(io["in.z"], ema.c(io, "g")), io["out.eval.G_ema"], **CLOSE)
    d_fake, d_real = d.network(fake, d.c(io, "g")), d.network(io["in.x_real"], d.c(io, "real"))
    torch.testing.assert_close(d_fake[:, None], io["out.eval.D_fake"], **CLOSE)
    torch.testing.assert_close(d_real[:, None], io["out.eval.D_real"], **CLOSE)
    summed = io["out.eval.hinge_D_real"] + io["out.eval.hinge_D_fake"]
    torch.testing.assert_close(Hinge().discriminator(d_real, d_fake), summed, **CLOSE)
    torch.testing.assert_close(Hinge().generator(d_fake), io["out.eval.hinge_G"], **CLOSE)
    for model, back in ((g, official.official_biggan_generator), (d, official.official_biggan_discriminator)):
        for name, tensor in model.tensors(back).items():  # evaluation changes no buffer
            torch.testing.assert_close(tensor, model.content[name], rtol=0, atol=0)


@biggan
@torch.no_grad()
def test_without_a_condition(golden):
    if "out.eval.D_real_unconditional" not in golden.io:
        pytest.skip("not recorded")
    d, x = discriminator(golden), golden.io["in.x_real"]
    alone = BigGANDiscriminator(d.network.channels, d.network.attention)
    alone.build(tuple(x.shape[1:]), 0)
    load_strictly(alone, d.weights.network, "D.pth")
    logits = alone.eval()(x, x.new_zeros(len(x), 0))
    torch.testing.assert_close(logits[:, None], golden.io["out.eval.D_real_unconditional"], **CLOSE)


def check_gradients(golden, step, gradients):
    recorded = json.loads((golden.folder / "grad_norms.json").read_text())[f"{step}_step"]
    assert recorded
    for name, norm in recorded.items():
        if norm is None:
            assert gradients.get(name) is None, name
        else:
            assert float(gradients[name].norm()) == pytest.approx(norm, rel=1e-3, abs=1e-5), name
    whole = {n.removeprefix(f"grad.train{step}."): t for n, t in golden.io.items() if n.startswith(f"grad.train{step}")}
    assert whole
    for name, expected in whole.items():
        torch.testing.assert_close(gradients[name], expected, rtol=1e-3, atol=1e-5)


@biggan
def test_training(golden):
    """A pass of the discriminator, then one of the generator; each updates statistics and singular vectors."""
    io, g, d = golden.io, generator(golden), discriminator(golden)
    g.train()
    d.train()
    with torch.no_grad():
        fake = g.network(io["in.z"], g.c(io, "g"))
    logits = d.network(torch.cat([fake, io["in.x_real"]]), d.c(io, "g", "real"))
    d_fake, d_real = logits.chunk(2)
    torch.testing.assert_close(d_fake[:, None], io["out.trainD.D_fake"], **CLOSE)
    torch.testing.assert_close(d_real[:, None], io["out.trainD.D_real"], **CLOSE)
    loss = Hinge().discriminator(d_real, d_fake)
    torch.testing.assert_close(loss, io["out.trainD.loss_real"] + io["out.trainD.loss_fake"], **CLOSE)
    loss.backward()
    check_gradients(golden, "D", d.tensors(official.official_biggan_discriminator, gradients=True))

    backs = {"D": (d, official.official_biggan_discriminator), "G": (g, official.official_biggan_generator)}
    after = {role: model.tensors(back) for role, (model, back) in backs.items()}
    names = [name for name in io if name.startswith("out.afterD.")]
    assert names
    for name in names:
        role, _, tensor = name.removeprefix("out.afterD.").partition(".")
        torch.testing.assert_close(after[role][tensor], io[name], **BUFFERS)

    fake = g.network(io["in.z"], g.c(io, "g"))
    d_fake = d.network(fake, d.c(io, "g"))
    torch.testing.assert_close(d_fake[:, None], io["out.trainG.D_fake"], **CLOSE)
    loss = Hinge().generator(d_fake)
    torch.testing.assert_close(loss, io["out.trainG.loss"], **CLOSE)
    loss.backward()
    check_gradients(golden, "G", g.tensors(official.official_biggan_generator, gradients=True))


@biggan
def test_every_tensor_is_accounted_for(golden):
    for model, back in (
        (generator(golden), official.official_biggan_generator),
        (discriminator(golden), official.official_biggan_discriminator),
    ):
        skipped = unread(model.content, model.weights)
        assert model.tensors(back).keys() | skipped == model.content.keys()
        assert skipped == (set() if len(model.parts) == 2 else {"shared.weight"} & model.content.keys())
        with pytest.raises(UserError, match="not for Vector"):
            key_map_of(model)(model.content, (*model.parts[:-1], Vector(3)))
        with pytest.raises(UserError, match="trained with a vector"):
            key_map_of(model)(model.content, model.parts[:-1])
        with pytest.raises(UserError, match="or both in this order"):
            key_map_of(model)(model.content, (*model.parts, Classes(3)))
        other = official.biggan_discriminator_weights if model.makes else official.biggan_generator_weights
        with pytest.raises(UserError, match=f"but an IC-GAN {'generator' if model.makes else 'discriminator'}"):
            other(model.content, model.parts)


def key_map_of(model):
    return official.biggan_generator_weights if model.makes else official.biggan_discriminator_weights


@pytest.mark.parametrize("kind", ["icgan", "cc_icgan"])
@pytest.mark.parametrize("size", ["", "halfcap_"])
def test_full_size_files_fit(manifest, kind, size):
    """The published models for 256 pixels, without their memory."""
    files = {role: manifest(f"{kind}_{size}biggan_res256_{role}") for role in "GD"}
    parts = (Vector(2048),) if kind == "icgan" else (Classes(1000), Vector(2048))
    channels = 64 if size else 96
    networks = [BigGANGenerator(channels, 120, attention=[64]), BigGANDiscriminator(channels, attention=[64])]
    weights = (
        official.biggan_generator_weights(files["G"], parts),
        official.biggan_discriminator_weights(files["D"], parts),
    )
    for network, read, file in zip(networks, weights, files.values()):
        width = network.condition_width((3, 256, 256))
        both = [128, 512] if isinstance(network, BigGANGenerator) else [width // 2] * 2
        alone = 512 if isinstance(network, BigGANGenerator) else width
        tables = isinstance(network, BigGANDiscriminator)
        with torch.device("meta"):
            conditioner = Conditioner(dim=both if len(parts) == 2 else alone, drop=0.0, maps=SpectralMaps(tables))
            network.build((3, 256, 256), conditioner.build(parts, 0))
            load_strictly(network, read.network, "the file")
            load_strictly(conditioner, read.conditioner, "the file")
        ignored = {"shared.weight"} & file.keys() if len(parts) == 1 else set()
        assert len(read.network) + len(read.conditioner) + len(ignored) == len(file)
    assert networks[0].noise_dim == 119  # 120 / 7, rounded down
