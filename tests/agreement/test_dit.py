"""RCG's DiT: forward, guidance, losses, gradients and sampling from the recorded noise."""

import json
import re
from itertools import pairwise

import pytest
import torch

from helpers.recorded import Recorded, check_forward, unread
from rcg_lightning.core.diffusion import Noise, add_noise, expand, transition_table, variational_bound
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import DDIM, Ancestral, LeadingSpacing, LinspaceSpacing
from rcg_lightning.core.schedule import LinearSchedule
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.layers import sinusoidal_embedding
from rcg_lightning.official.dit import LABELS, dit_name, dit_weights
from rcg_lightning.pretrained.checkpoints import load_strictly, read_checkpoint
from rcg_lightning.types import Classes, Vector

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
pytestmark = pytest.mark.golden("dit")


class Model:
    """Our denoiser and conditioner with the weights of an official file."""

    def __init__(self, golden, ema):
        arch, io = golden.arch, golden.io
        content = read_checkpoint(golden.checkpoint, "DiT")
        self.parts, self.raw = (), ()
        if "in.rep" in io:
            self.parts, self.raw = (Vector(arch["rep_dim"]),), (io["in.rep"],)
        elif arch["num_classes"] > 1:
            self.parts, self.raw = (Classes(arch["num_classes"]),), (io["in.y"],)
        drop = arch["rep_dropout_prob"] if "in.rep" in io else arch["class_dropout_prob"]
        width = arch["hidden_size"]
        network = DiT(arch["patch_size"], width, arch["depth"], arch["num_heads"], arch["mlp_ratio"])
        self.shape = (arch["in_channels"], arch["input_size"], arch["input_size"])
        self.denoiser = Denoiser(network, LinearSchedule(), Noise(), learned_variance=arch["learn_sigma"])
        self.conditioner = Conditioner(drop=drop)
        self.denoiser.build(self.shape, self.conditioner.build(self.parts, width))
        self.weights = dit_weights(content, self.parts, ema)
        load_strictly(network, self.weights.network, "the file")
        load_strictly(self.conditioner, self.weights.conditioner, "the file")
        self.denoiser.eval()
        self.conditioner.eval()
        self.official = content["model_ema" if ema else "model"]

    def condition(self, n, null=False):
        if null:
            return self.conditioner.null(n)
        return self.conditioner(tuple(raw[:n] for raw in self.raw), n)

    def noise_prediction(self, x, k, c):
        """ε̂, recovered from the posterior mean, and the raw variance channels."""
        posterior = self.denoiser(x, k, c)
        signal, sigma = (expand(scale, x) for scale in self.denoiser.schedule.scales(k))
        return (x - signal * posterior.mean) / sigma, posterior.variance_mix * 2 - 1

    def sample(self, sampler, noise, guidance=None):
        rows = noise.rows

        def denoise(x, k, progress):
            timesteps = torch.full((rows,), k)
            posterior = self.denoiser(x, timesteps, self.condition(rows))
            if guidance is None:
                return posterior
            null = self.denoiser(x, timesteps, self.condition(rows, null=True))
            mean = guidance(posterior.mean, null.mean, progress)
            return type(posterior)(mean, posterior.variance_mix)

        return list(sampler.trajectory(denoise, self.denoiser.schedule, noise, self.shape))


@pytest.mark.parametrize("ema", [False, True], ids=["raw", "ema"])
def test_forward(golden, ema):
    check_forward(Model(golden, ema), golden, ema, CLOSE)


def test_embeddings(golden):
    model = Model(golden, ema=False)
    network = model.denoiser.network
    torch.testing.assert_close(network.positions, golden.io["out.pos_embed"], **CLOSE)
    t_emb = network.time_embed(sinusoidal_embedding(golden.io["in.t"], golden.arch["frequency_embedding_size"]))
    if not model.parts:  # the one label's row is in the bias
        t_emb = t_emb - model.official[LABELS][0]
    torch.testing.assert_close(t_emb, golden.io["out.t_embedder"], **CLOSE)


def test_guided_forward(golden):
    """The official batch holds conditional, then null examples; guidance acts on three channels of the noise."""
    recorded = [(re.fullmatch(r"out\.forward_with_cfg([\d.]+)_ema", name), name) for name in golden.io]
    for match, name in recorded:
        if not match:
            continue
        model = Model(golden, ema=True)
        x, t = golden.io["in.x"], golden.io["in.t"]
        n, channels = len(x), x.shape[1]
        guidance = Guidance(float(match[1]), channels=3)
        with torch.no_grad():
            cond, variance = model.noise_prediction(x, t, model.condition(n))
            null, null_variance = model.noise_prediction(x, t, model.condition(n, null=True))
        # x̂₀ divides by the signal and ε is recovered by the inverse, so float32 rounding shows at t near the ends
        close = {"rtol": 1e-4, "atol": 1e-4}
        guided = guidance(cond, null, 0.5)
        torch.testing.assert_close(guided, golden.io[name][:n, :channels], **close)
        torch.testing.assert_close(guidance(null, cond, 0.5)[:, 3:], golden.io[name][n:, 3:channels], **close)
        torch.testing.assert_close(torch.cat([variance, null_variance]), golden.io[name][:, channels:], **close)


def losses(model, io, c):
    """Squared error and bound of each example, the latter as the denoiser computes it."""
    z, t, noise = io["in.x0"], io["in.t"], io["in.noise"]
    denoiser = model.denoiser
    x = add_noise(z, t, noise, denoiser.schedule)
    posterior = denoiser(x, t, c)
    bound = variational_bound(z, x, t, posterior, transition_table(denoiser.schedule))
    return x, denoiser.loss(z, t, c, noise), bound


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_losses(golden, mode):
    if f"out.{mode}_mode_loss.loss" not in golden.io:
        pytest.skip("not recorded")
    model, io = Model(golden, ema=False), golden.io
    c = model.condition(len(io["in.x0"]))
    if mode == "train":
        dropped = io["in.train_drop_uniform"] < model.conditioner.drop
        c = torch.where(dropped[:, None], model.condition(len(c), null=True), c)
    with torch.no_grad():
        x, loss, bound = losses(model, io, c)
    torch.testing.assert_close(x, io["out.q_sample"], **CLOSE)
    torch.testing.assert_close(loss, io[f"out.{mode}_mode_loss.loss"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bound, io[f"out.{mode}_mode_loss.vb"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss - bound, io[f"out.{mode}_mode_loss.mse"], rtol=1e-4, atol=1e-4)


def our_gradient(model, name):
    """The gradient of an official tensor: None where we have no such tensor or it gets none."""
    table = dict(model.denoiser.network.named_parameters())
    conditioner = dict(model.conditioner.named_parameters())
    if name == "fake_latent":
        found = conditioner.get("parts.0.fake")
    elif name.startswith("rep_embedder."):
        found = conditioner.get(f"parts.0.linear.{name.rpartition('.')[2]}")
    elif name == LABELS:
        found = conditioner.get("parts.0.table.weight")
        if not model.parts:  # the one row enters through the bias
            found = table["time_embed.2.bias"]
    else:
        found = table[dit_name(name)]
    return None if found is None else found.grad


def test_gradients(golden):
    model, io = Model(golden, ema=False), golden.io
    z, t, noise = io["in.x0"], io["in.t"], io["in.noise"]
    model.denoiser.requires_grad_()
    model.conditioner.requires_grad_()
    model.denoiser.loss(z, t, model.condition(len(z)), noise).mean().backward()
    norms = json.loads((golden.folder / "grad_norms.json").read_text())
    assert norms
    for name, norm in norms.items():
        gradient = our_gradient(model, name)
        assert (gradient is None) == (norm is None), name
        if norm is not None:
            assert float(gradient.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-5), name
    whole = {name.removeprefix("grad."): tensor for name, tensor in io.items() if name.startswith("grad.")}
    assert whole
    for name, expected in whole.items():
        rounding = 5e-4 * expected.abs().max().item()  # other processors sum in another order
        torch.testing.assert_close(our_gradient(model, name).view_as(expected), expected, rtol=1e-3, atol=rounding)


def grid_of(name):
    """The time grid behind an official respacing string, and its number of steps."""
    return (
        (LeadingSpacing(), int(name.removeprefix("ddim")))
        if name.startswith("ddim")
        else (LinspaceSpacing(), int(name))
    )


def test_respaced_schedules(golden):
    recorded = [(m[1], t) for n, t in golden.io.items() if (m := re.fullmatch(r"out\.schedule_(\w+)\.timestep_map", n))]
    assert recorded
    schedule = LinearSchedule()
    for name, steps in recorded:
        grid, count = grid_of(name)
        timesteps = grid.timesteps(count, schedule.steps)
        assert timesteps[:-1] == steps.tolist()[::-1]
        betas = [1 - schedule.alpha_bar(k) / schedule.alpha_bar(s) for k, s in pairwise(timesteps)]
        expected = golden.io[f"out.schedule_{name}.betas"].flip(0)
        torch.testing.assert_close(torch.tensor(betas, dtype=torch.float64), expected, rtol=1e-6, atol=1e-8)


def check_relative_to_largest(ours, expected):
    size = float(expected.abs().max())
    torch.testing.assert_close(ours / size, expected / size, rtol=1e-3, atol=1e-3)


def noise_for(golden, steps):
    return Recorded(golden.io["in.z"], golden.io[f"in.noise_seq_{steps}"])


def test_sampling(golden):
    """Ancestral and DDIM, as the names of the tensors describe."""
    model = Model(golden, ema=True)
    done = 0
    for name, expected in golden.io.items():
        ancestral = re.fullmatch(r"out\.ancestral_respacing_?(\w+)\.final", name)
        ddim = re.fullmatch(r"out\.ddim(\d+)_eta([\d.]+)\.final", name)
        if not (ancestral or ddim):
            continue
        grid, count = grid_of(ancestral[1] if ancestral else f"ddim{ddim[1]}")
        sampler = Ancestral(count, grid) if ancestral else DDIM(count, float(ddim[2]), grid)
        steps = model.sample(sampler, noise_for(golden, count))
        check_relative_to_largest(steps[-1][0], expected)
        prefix = name.removesuffix(".final")
        stored = golden.io[f"{prefix}.x_kept"]
        every = -(-count // len(stored))
        check_relative_to_largest(torch.stack([x for x, _ in steps[::every]]), stored)
        means = torch.stack([mean for _, mean in steps[::every]])
        estimates = golden.io[f"{prefix}.pred_x0_kept"]
        check_relative_to_largest(means[-len(estimates) :], estimates)
        done += 1
    assert done


def test_guided_sampling(golden):
    for name, expected in golden.io.items():
        match = re.fullmatch(r"out\.cfg([\d.]+)_ancestral_respacing_?(\w+)\.final", name)
        if not match:
            continue
        model = Model(golden, ema=True)
        grid, count = grid_of(match[2])
        noise = Recorded(golden.io["in.z"], golden.io[f"in.noise_seq_{count}_cfg"])
        steps = model.sample(Ancestral(count, grid), noise, Guidance(float(match[1]), channels=3))
        check_relative_to_largest(steps[-1][0], expected)


def test_every_tensor_is_accounted_for(golden):
    model = Model(golden, ema=False)
    expected = {"pos_embed"}
    if "in.rep" in golden.io:
        expected |= {LABELS}
    else:
        expected |= {"rep_embedder.weight", "rep_embedder.bias", *({"fake_latent"} & model.official.keys())}
    if not model.parts:  # added
        expected |= {LABELS, "t_embedder.mlp.2.bias"}
    assert unread(model.official, model.weights) == expected
    with pytest.raises(UserError, match="one condition at most"):
        dit_weights({"model": model.official}, (Classes(3), Vector(2)), ema=False)
    with pytest.raises(UserError, match="rows for its labels"):
        dit_weights({"model": model.official}, (Classes(77),), ema=False)
    with pytest.raises(UserError, match="representations of"):
        dit_weights({"model": model.official}, (Vector(7),), ema=False)
    with pytest.raises(UserError, match="EMA weights"):
        dit_weights({"model": model.official, "model_ema": None}, model.parts)
    with pytest.raises(UserError, match="it is"):
        dit_weights({"teacher": {}}, ())
