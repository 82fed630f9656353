"""The official RDM: network, embedding, loss, gradients and DDIM sampling from the recorded noise."""

import json
import re
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from helpers.recorded import Recorded
from rcg_lightning.core.diffusion import Clean, Posterior, add_noise
from rcg_lightning.core.samplers import DDIM, OffsetSpacing
from rcg_lightning.core.schedule import ScaledLinearSchedule
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.layers import sinusoidal_embedding
from rcg_lightning.networks.rdm_mlp import ResidualMLP
from rcg_lightning.official.encoders import INNER_ENCODER
from rcg_lightning.official.rdm import EMBEDDING, NETWORK, rdm_name, rdm_weights
from rcg_lightning.pretrained import encoder_layouts
from rcg_lightning.pretrained.checkpoints import load_strictly, read_checkpoint, strip
from rcg_lightning.pretrained.encoders import MoCoV3Encoder
from rcg_lightning.pretrained.normalisation import PerSample
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.types import Classes

OUTPUT = {"rtol": 1e-6, "atol": 2e-6}  # tight enough to show a swapped LayerNorm eps
TABLES = {"rtol": 1e-6, "atol": 1e-8}
pytestmark = pytest.mark.golden("rdm")


@dataclass
class Model:
    denoiser: Denoiser
    conditioner: Conditioner
    raw: tuple[Tensor, ...]
    official: dict[str, Tensor]

    @classmethod
    def load(cls, golden, ema):
        params = golden.config["model_params"]
        sizes = params["unet_config"]["params"]
        schedule = ScaledLinearSchedule(params["timesteps"], params["linear_start"], params["linear_end"])
        network = ResidualMLP(
            sizes["model_channels"], sizes["num_res_blocks"], sizes["bottleneck_channels"], sizes["time_embed_dim"]
        )
        assert params["parameterization"] == "x0"
        denoiser = Denoiser(network, schedule, Clean())
        official = read_checkpoint(golden.checkpoint, "RDM")["model"]
        weights = rdm_weights({"model": official}, ema)
        conditional = sizes.get("use_context", False)
        rows, width = official[EMBEDDING].shape
        conditioner = Conditioner(dim=width, drop=0.0)  # no label is ever dropped
        denoiser.build((sizes["in_channels"],), conditioner.build((Classes(rows),) if conditional else (), width))
        load_strictly(network, weights.network, "the file")
        load_strictly(conditioner, weights.conditioner, "the file")
        raw = (golden.io["in.class_label"],) if conditional else ()
        return cls(denoiser.eval(), conditioner.eval(), raw, official)

    def condition(self, n):
        return self.conditioner(tuple(part[:n] for part in self.raw), n)


def flat(tensor):
    """The official layout (…, B, C, 1, 1) -> (…, B, C)."""
    return tensor.flatten(-3)


@pytest.mark.parametrize("ema", [False, True], ids=["raw", "ema"])
@torch.no_grad()
def test_network(golden, ema):
    model, io = Model.load(golden, ema), golden.io
    x, t = flat(io["in.x"]), io["in.t"]
    output = model.denoiser(x, t, model.condition(len(x))).mean
    torch.testing.assert_close(output, flat(io["out.model_ema" if ema else "out.model"]), **OUTPUT)
    if not ema:
        one = model.denoiser(x[:1], t[2:3], model.condition(1)).mean
        torch.testing.assert_close(one, flat(io["out.model_batch1"]), **OUTPUT)


def test_embeddings(golden):
    model, io = Model.load(golden, ema=False), golden.io
    sizes = golden.config["model_params"]["unet_config"]["params"]
    t_emb = sinusoidal_embedding(io["in.t"], sizes["model_channels"])
    torch.testing.assert_close(t_emb, io["out.timestep_embedding"], **OUTPUT)
    table = model.official[EMBEDDING]
    torch.testing.assert_close(table[io["in.class_label"]], io["out.class_embedding"][:, 0], **OUTPUT)
    if model.raw:
        torch.testing.assert_close(model.condition(len(io["in.t"])), io["out.class_embedding"][:, 0], **OUTPUT)


def test_schedule_tables_of_the_file(golden):
    model = Model.load(golden, ema=False)
    schedule, theirs = model.denoiser.schedule, model.official
    bars = schedule.alphas_bar[1:]
    ours = {
        "betas": schedule.betas(),
        "alphas_cumprod": bars,
        "alphas_cumprod_prev": schedule.alphas_bar[:-1],
        "sqrt_alphas_cumprod": bars.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bars).sqrt(),
        "sqrt_recip_alphas_cumprod": (1 / bars).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / bars - 1).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - bars).log(),
    }
    assert ours.keys() <= theirs.keys()
    for name, table in ours.items():
        torch.testing.assert_close(table.float(), theirs[name], rtol=1e-6, atol=1e-7)
    signal, sigma = schedule.scales(torch.arange(schedule.steps))
    torch.testing.assert_close(signal, theirs["sqrt_alphas_cumprod"], **TABLES)
    torch.testing.assert_close(sigma, theirs["sqrt_one_minus_alphas_cumprod"], **TABLES)


def training_loss(model, golden, z):
    io = golden.io
    return model.denoiser.loss(z, io["in.t"], model.condition(len(z)), flat(io["in.noise"])).mean()


def test_loss_and_gradients(golden):
    model, io = Model.load(golden, ema=False), golden.io
    z = flat(io["in.x0"])
    x = add_noise(z, io["in.t"], flat(io["in.noise"]), model.denoiser.schedule)
    torch.testing.assert_close(x, flat(io["out.q_sample"]), **OUTPUT)
    model.denoiser.requires_grad_()
    model.conditioner.requires_grad_()
    loss = training_loss(model, golden, z)
    torch.testing.assert_close(loss.detach(), io["out.loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.detach(), io["out.loss_simple"], rtol=1e-5, atol=1e-6)
    loss.backward()

    ours = {}
    named = dict(model.denoiser.network.named_parameters())
    norms = json.loads((golden.folder / "grad_norms.json").read_text())
    assert norms
    for name, norm in norms.items():
        if name == EMBEDDING:
            ours[name] = next((p.grad for p in model.conditioner.parameters()), None)
        else:
            ours[name] = named[rdm_name(name.removeprefix(NETWORK))].grad
        assert (ours[name] is None) == (norm is None), name
        if norm is not None:
            assert float(ours[name].norm()) == pytest.approx(norm, rel=1e-3, abs=1e-5), name
    assert len(norms) == len(named) + 1
    whole = {name.removeprefix("grad."): tensor for name, tensor in io.items() if name.startswith("grad.")}
    assert whole
    for name, expected in whole.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-3, atol=1e-5)


def test_loss_from_images(golden):
    model, io, arch = Model.load(golden, ema=False), golden.io, golden.config["encoder_arch"]
    encoder = MoCoV3Encoder(head=golden.config["encoder_withproj"], heads=arch["num_heads"])
    network, _ = encoder.build(
        encoder_layouts.split_head(strip(model.official, INNER_ENCODER), "head.", {}), "the file"
    )
    with torch.no_grad():
        z = PerSample()(network.eval()(Preprocess(size=arch["img_size"])(io["in.images"])))
        loss = training_loss(model, golden, z)
    torch.testing.assert_close(z, flat(io["out.rep_from_images"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, io["out.loss_from_images"], rtol=1e-4, atol=1e-5)


def ddim_runs(golden):
    """(name, steps, eta) of every recorded run."""
    found = [re.fullmatch(r"out\.(ddim(\d+)_eta([\d.]+))\.final", name) for name in golden.io]
    runs = [(match[1], int(match[2]), float(match[3])) for match in found if match]
    assert runs
    return runs


def stored(steps, entries):
    """Steps that the official code stored: all, or the first and those after which a multiple of 25 is left."""
    if entries == steps:
        return list(range(steps))
    return [i for i in range(steps) if i == 0 or (steps - 1 - i) % 25 == 0]


def test_sampling(golden):
    """EMA network, class embedding without EMA, noise in every step, the last one included."""
    model, io = Model.load(golden, ema=True), golden.io
    start = flat(io["in.x_T"])
    c = model.condition(len(start)).detach()
    for name, steps, eta in ddim_runs(golden):
        sampler = DDIM(steps, eta, OffsetSpacing())
        sequence = io.get(f"in.noise_seq_{steps}")
        noise = Recorded(start, None if sequence is None else flat(sequence))
        trajectory = list(
            sampler.trajectory(
                lambda x, k, p: model.denoiser(x, torch.full((len(x),), k), c),
                model.denoiser.schedule,
                noise,
                tuple(start.shape[1:]),
            )
        )
        close = {"rtol": 1e-4, "atol": 1e-5} if len(trajectory) < 50 else {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close(trajectory[-1][0], flat(io[f"out.{name}.final"]), **close)
        for i, key in enumerate((f"out.{name}.x_inter", f"out.{name}.pred_x0_inter")):
            if key not in io:
                continue
            expected = flat(io[key])[1:]  # the first entry is the start
            entries = [trajectory[step][i] for step in stored(len(trajectory), len(expected))]
            torch.testing.assert_close(torch.stack(entries), expected, **close)


def deviation(sampler, k, s, schedule):
    """Change of a step's result for noise 1 instead of 0: its σ."""
    zero = torch.zeros(1, 1, dtype=torch.float64)
    without, with_noise = (sampler.step(zero, Posterior(zero), k, s, schedule, lambda z=z: zero + z) for z in (0, 1))
    return float(with_noise - without)


def test_sampling_tables(golden):
    schedule = Model.load(golden, ema=False).denoiser.schedule
    for name, steps, eta in ddim_runs(golden):
        timesteps = OffsetSpacing().timesteps(steps, schedule.steps)
        assert timesteps[:-1] == golden.io[f"out.{name}.timesteps"].tolist()[::-1]
        if f"out.{name}.sigmas" not in golden.io:
            continue
        here, there = (
            torch.tensor([schedule.alpha_bar(k) for k in part]).flip(0) for part in (timesteps[:-1], timesteps[1:])
        )
        torch.testing.assert_close(here, golden.io[f"out.{name}.alphas"], **TABLES)
        torch.testing.assert_close(there.double(), golden.io[f"out.{name}.alphas_prev"], **TABLES)
        sigmas = [deviation(DDIM(steps, eta, OffsetSpacing()), k, s, schedule) for k, s in pairwise(timesteps)]
        expected = golden.io[f"out.{name}.sigmas"].flip(0)
        torch.testing.assert_close(torch.tensor(sigmas, dtype=torch.float64), expected, rtol=1e-4, atol=1e-6)
