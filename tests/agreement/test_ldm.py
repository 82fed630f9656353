"""RCG's LDM: U-Net with cross-attention, loss, gradients, and DDIM sampling from the recorded noise."""

import json
import re

import pytest
import torch

from helpers.recorded import Recorded, check_forward, unread
from rcg_lightning.core.diffusion import Noise
from rcg_lightning.core.samplers import DDIM, OffsetSpacing
from rcg_lightning.core.schedule import ScaledLinearSchedule
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.unet import CrossAttentionUNet
from rcg_lightning.official.encoders import INNER_ENCODER
from rcg_lightning.official.ldm import ldm_name, ldm_weights
from rcg_lightning.official.rdm import EMBEDDING, NETWORK
from rcg_lightning.official.tokenizers import vq_network
from rcg_lightning.pretrained import encoder_layouts
from rcg_lightning.pretrained.checkpoints import load_strictly, read_checkpoint, strip
from rcg_lightning.pretrained.encoders import MoCoV3Encoder
from rcg_lightning.pretrained.normalisation import PerSample
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.types import Classes, Vector

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
pytestmark = pytest.mark.golden("ldm")


def our_network(sizes):
    """The U-Net that the official settings describe."""
    return CrossAttentionUNet(
        sizes["model_channels"],
        sizes["channel_mult"],
        sizes["num_res_blocks"],
        sizes["attention_resolutions"],
        sizes["num_head_channels"],
        transformers=sizes["transformer_depth"],
    )


class Model:
    """Our denoiser and conditioner with the weights of an official file."""

    def __init__(self, golden, ema):
        params = golden.config["model_params"]
        sizes = params["unet_config"]["params"]
        io = golden.io
        self.content = read_checkpoint(golden.checkpoint, "LDM")
        if "in.rep" in io:
            self.parts, self.raw = (Vector(sizes["context_dim"]),), (io["in.rep"],)
        elif params["class_cond"]:
            self.parts = (Classes(params["cond_stage_config"]["params"]["n_classes"]),)
            self.raw = (io["in.class_label"],)
        else:
            self.parts, self.raw = (), ()
        schedule = ScaledLinearSchedule(params["timesteps"], params["linear_start"], params["linear_end"])
        self.denoiser = Denoiser(our_network(sizes), schedule, Noise())
        self.conditioner = Conditioner(dim=None if "in.rep" in io else sizes["context_dim"], drop=0.0, project=False)
        self.shape = (params["channels"], params["image_size"], params["image_size"])
        self.denoiser.build(self.shape, self.conditioner.build(self.parts, sizes["context_dim"]))
        self.weights = ldm_weights(self.content, self.parts, ema)
        load_strictly(self.denoiser.network, self.weights.network, "the file")
        load_strictly(self.conditioner, self.weights.conditioner, "the file")
        self.denoiser.eval()

    def condition(self, n, *raw):
        return self.conditioner(raw or tuple(part[:n] for part in self.raw), n)


@pytest.mark.parametrize("ema", [False, True], ids=["raw", "ema"])
def test_forward(golden, ema):
    check_forward(Model(golden, ema), golden, ema, CLOSE)


def test_ema_weights_differ_from_the_last(golden):
    assert not torch.allclose(golden.io["out.forward"], golden.io["out.forward_ema"])


def test_loss_and_gradients(golden):
    """Query, key and value are compared with parts of our fused projection."""
    model, io = Model(golden, ema=False), golden.io
    loss = model.denoiser.loss(io["in.x0"], io["in.t"], model.condition(len(io["in.x0"])), io["in.noise"]).mean()
    torch.testing.assert_close(loss.detach(), io["out.loss"], rtol=1e-5, atol=1e-6)
    loss.backward()
    table = dict(model.denoiser.network.named_parameters())

    def gradient(name):
        if match := re.search(r"\.attn1\.to_([qkv])\.", name):
            return table[ldm_name(name)].grad.chunk(3)["qkv".index(match[1])]
        return table[ldm_name(name)].grad

    norms = json.loads((golden.folder / "grad_norms.json").read_text())
    seen = set()
    for name, norm in norms.items():
        if not norm:  # none, or exactly zero: we have no such parameter, or it is a table that is not read
            assert re.search(r"attn2\.to_[qk]\.|\.norm2\.", name) or name == EMBEDDING, name
            continue
        ours = gradient(name.removeprefix(NETWORK))
        assert float(ours.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-5), name
        seen.add(ldm_name(name.removeprefix(NETWORK)))
    assert seen == table.keys()
    for name, expected in io.items():
        if name.startswith("grad.") and float(expected.abs().max()) > 0:
            ours = gradient(name.removeprefix(f"grad.{NETWORK}"))
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_sampling(golden):
    """Noise in every step with eta above 0, the last one included, which ends at timestep 0."""
    model, io = Model(golden, ema=True), golden.io
    start = io["in.x_T"]
    c = model.condition(len(start))
    found = [re.fullmatch(r"out\.ddim(\d+)_eta([\d.]+)\.final", name) for name in io]
    for match in filter(None, found):
        steps = int(match[1])
        noise = Recorded(start, io[f"in.noise_seq_{steps}"])

        def denoise(x, k, progress):
            return model.denoiser(x, torch.full((len(x),), k), c)

        sampler = DDIM(steps, float(match[2]), OffsetSpacing())
        states = [x for x, _ in sampler.trajectory(denoise, model.denoiser.schedule, noise, model.shape)]
        expected = io[match[0]]
        size = float(expected.abs().max())
        torch.testing.assert_close(states[-1] / size, expected / size, rtol=1e-3, atol=1e-3)
        inter = io[match[0].replace("final", "x_inter")][1:]  # the first entry is the start
        stored = [x for i, x in enumerate(states) if i == 0 or (len(states) - 1 - i) % 5 == 0]
        torch.testing.assert_close(torch.stack(stored) / size, inter / size, rtol=1e-3, atol=1e-3)
    assert any(found)


def test_loss_from_images(golden):
    """The encoder and the autoencoder inside the file read the recorded images, which are in [-1, 1]."""
    if "out.rep_from_images" not in golden.io:
        pytest.skip("not recorded")
    model, io, arch = Model(golden, ema=False), golden.io, golden.config["encoder"]
    encoder, _ = MoCoV3Encoder(heads=arch["num_heads"]).build(
        encoder_layouts.split_head(strip(model.content["model"], INNER_ENCODER), "head.", {}), "the file"
    )
    image = io["in.images"]
    with torch.no_grad():
        rep = PerSample()(encoder.eval()(Preprocess(size=arch["img_size"])((image + 1) / 2)))
        z = first_stage(model).encode(image)
        loss = model.denoiser.loss(z, io["in.t"], model.condition(len(z), rep), io["in.noise"]).mean()
    torch.testing.assert_close(rep, io["out.rep_from_images"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, io["out.loss_from_images"], rtol=1e-4, atol=1e-5)


def first_stage(model):
    network, weights = vq_network(model.content)
    load_strictly(network, weights, "the file")
    return network.eval()


def test_samples_become_images(golden):
    """Latents are quantised, decoded, clamped and scaled to [0, 1]."""
    autoencoder = first_stage(Model(golden, ema=True))
    done = 0
    for name, expected in golden.io.items():
        if not name.endswith(".image01"):
            continue
        with torch.no_grad():
            z, _ = autoencoder.quantise(golden.io[name.replace("image01", "final")])
            image = (autoencoder.decode(z).clamp(-1, 1) + 1) / 2
        torch.testing.assert_close(image, expected, rtol=1e-3, atol=1e-3)
        done += 1
    assert done


@pytest.mark.parametrize("ema", [False, True], ids=["raw", "ema"])
def test_every_tensor_is_accounted_for(golden, ema):
    model = Model(golden, ema)
    content = model.content["model"]
    skipped = {name for name in unread(content, model.weights) if name.startswith("model_ema." if ema else NETWORK)}
    inert = {name for name in skipped if re.search(r"attn2\.?to_[qk]\.?weight|\.?norm2\.?(weight|bias)$", name)}
    fused = {name for name in skipped if re.search(r"attn1\.?to_[qkv]\.?weight$", name)}
    folded = {name for name in skipped if re.search(r"attn1\.?to_out|attn2\.?to_(v|out)", name)}
    counters = {"model_ema.decay", "model_ema.num_updates"}
    assert inert
    assert fused
    assert bool(folded) == (not model.parts)
    assert skipped - inert - fused - folded == (counters if ema else set())


def test_an_unconditional_file_attends_to_a_constant(golden):
    """Built from the recorded file: its context is the embedding of a single class."""
    content = dict(read_checkpoint(golden.checkpoint, "LDM")["model"])
    content[EMBEDDING] = content[EMBEDDING][:1]
    sizes = golden.config["model_params"]["unet_config"]["params"]
    conditional, unconditional = our_network(sizes), our_network(sizes)
    shape = tuple(golden.io["in.x"].shape[1:])
    conditional.build(shape, sizes["context_dim"])
    unconditional.build(shape, 0)
    one = ldm_weights({"model": content}, (Classes(1),))
    load_strictly(conditional, one.network, "it")
    none = ldm_weights({"model": content}, ())
    load_strictly(unconditional, none.network, "it")
    assert none.conditioner == {}
    assert one.conditioner["parts.0.table.weight"].shape == (1, sizes["context_dim"])
    x, t = golden.io["in.x"], golden.io["in.t"]
    with torch.no_grad():
        expected = conditional(x, t, content[EMBEDDING].expand(len(x), -1))
        torch.testing.assert_close(unconditional(x, t, torch.zeros(len(x), 0)), expected, **CLOSE)


def test_misfits_are_reported(golden):
    content = Model(golden, ema=False).content
    rows = len(content["model"][EMBEDDING])
    for parts, message in (
        ((Classes(rows), Vector(2)), "one condition at most"),
        ((Vector(7),), "not 7"),
        ((Classes(rows + 1),), f"not {rows + 1}"),
    ):
        with pytest.raises(UserError, match=message):
            ldm_weights(content, parts)
    bare = {name: tensor for name, tensor in content["model"].items() if not name.startswith("model_ema.")}
    with pytest.raises(UserError, match="no EMA weights"):
        ldm_weights({"model": bare}, ())
    with pytest.raises(UserError, match="no LDM checkpoint but a DINO"):
        ldm_weights({"teacher": {}}, ())


@pytest.mark.parametrize("ema", [False, True], ids=["raw", "ema"])
def test_full_size_files_are_read_completely(manifest, ema):
    """The default sizes are those of LDM-8; nothing is built in memory."""
    names = manifest("ldm_8_repcond")
    parts = (Vector(names[EMBEDDING].shape[1]),)
    weights = ldm_weights({"model": names}, parts, ema)
    with torch.device("meta"):
        network, conditioner = CrossAttentionUNet(), Conditioner(drop=0.0, project=False)
        network.build((4, 32, 32), conditioner.build(parts, network.condition_width))
    load_strictly(network, weights.network, "it")
    assert not conditioner.state_dict()
    assert not weights.conditioner
