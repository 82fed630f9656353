"""RCG's ADM: forward, losses, gradients and both samplers from the recorded noise; its files read and written."""

import json
import re
from itertools import pairwise

import pytest
import torch

from helpers.recorded import Recorded, check_forward
from rcg_lightning.core.diffusion import Noise, Posterior, add_noise, transition_table, variational_bound
from rcg_lightning.core.samplers import DDIM, Ancestral, LeadingSpacing, LinspaceSpacing
from rcg_lightning.core.schedule import LinearSchedule
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.unet import UNet
from rcg_lightning.official.adm import adm_weights, official_adm
from rcg_lightning.pretrained.checkpoints import load_strictly, read_checkpoint
from rcg_lightning.pretrained.normalisation import PerSample
from rcg_lightning.types import Classes, Vector

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
pytestmark = pytest.mark.golden("adm")


class Model:
    """Our denoiser and conditioner with the weights of an official file."""

    def __init__(self, golden, ema):
        arch, io = golden.arch, golden.io
        self.content = read_checkpoint(golden.checkpoint, "ADM")
        self.parts, self.raw = (), ()
        if arch["rep_cond"]:
            self.parts, self.raw = (*self.parts, Vector(arch["rep_dim"])), (*self.raw, io["in.rep"])
        if arch["num_classes"]:
            self.parts, self.raw = (*self.parts, Classes(arch["num_classes"])), (*self.raw, io["in.y"])
        self.head_width = arch["num_head_channels"]
        network = UNet(
            arch["model_channels"],
            arch["channel_mult"],
            arch["num_res_blocks"],
            arch["attention_resolutions"],
            self.head_width,
            modulated=arch["use_scale_shift_norm"],
            residual_resizing=arch["resblock_updown"],
        )
        self.shape = (arch["in_channels"], arch["image_size"], arch["image_size"])
        self.denoiser = Denoiser(network, LinearSchedule(), Noise(), learned_variance=arch["learn_sigma"])
        self.conditioner = Conditioner(drop=0.0)
        self.denoiser.build(self.shape, self.conditioner.build(self.parts, network.condition_width))
        self.weights = adm_weights(self.content, self.parts, ema, self.head_width)
        load_strictly(network, self.weights.network, "the file")
        load_strictly(self.conditioner, self.weights.conditioner, "the file")
        self.denoiser.eval()

    def condition(self, n):
        return self.conditioner(tuple(raw[:n] for raw in self.raw), n)

    def sample(self, sampler, noise):
        """Every state of the trajectory."""
        c = self.condition(noise.rows)

        def denoise(x, k, progress):
            return self.denoiser(x, torch.full((len(x),), k), c)

        with torch.no_grad():
            return [x for x, _ in sampler.trajectory(denoise, self.denoiser.schedule, noise, self.shape)]


@pytest.mark.parametrize("ema", [False, True], ids=["raw", "ema"])
def test_forward(golden, ema):
    check_forward(Model(golden, ema), golden, ema, CLOSE)


def test_ema_weights_differ_from_the_last(golden):
    assert not torch.allclose(golden.io["out.forward"], golden.io["out.forward_ema"])


def test_representation(golden):
    if "in.encoder_output" in golden.io:
        torch.testing.assert_close(PerSample()(golden.io["in.encoder_output"]), golden.io["in.rep"], **CLOSE)


def test_losses(golden):
    model, io = Model(golden, ema=False), golden.io
    z, t, noise = io["in.x0"], io["in.t"], io["in.noise"]
    c = model.condition(len(z))
    with torch.no_grad():
        x = add_noise(z, t, noise, model.denoiser.schedule)
        loss = model.denoiser.loss(z, t, c, noise)
        posterior = model.denoiser(x, t, c)
        bound = variational_bound(z, x, t, posterior, transition_table(model.denoiser.schedule))
    torch.testing.assert_close(loss, io["out.loss.loss"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bound, io["out.loss.vb"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss - bound, io["out.loss.mse"], rtol=1e-4, atol=1e-4)


def test_gradients(golden):
    """Gradients are compared in the official layout, to which they are translated as the weights are."""
    model, io = Model(golden, ema=False), golden.io
    z = io["in.x0"]
    model.denoiser.loss(z, io["in.t"], model.condition(len(z)), io["in.noise"]).mean().backward()
    ours = official_adm(
        {name: p.grad for name, p in model.denoiser.network.named_parameters()},
        {name: p.grad for name, p in model.conditioner.named_parameters()},
        model.head_width,
    )
    norms = json.loads((golden.folder / "grad_norms.json").read_text())
    assert norms.keys() == ours.keys()
    for name, norm in norms.items():
        assert float(ours[name].norm()) == pytest.approx(norm, rel=1e-3, abs=1e-5), name
    whole = {name.removeprefix("grad."): tensor for name, tensor in io.items() if name.startswith("grad.")}
    assert whole
    for name, expected in whole.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-3, atol=1e-5)


def runs(golden):
    """(name, sampler) of every recorded run; x̂₀ is clipped in all."""
    for name in golden.io:
        if match := re.fullmatch(r"out\.ddim(\d+)_eta([\d.]+)\.final", name):
            yield name.removesuffix(".final"), DDIM(int(match[1]), float(match[2]), LeadingSpacing(), clip=1.0)
        elif match := re.fullmatch(r"out\.ancestral(\d+)\.final", name):
            yield name.removesuffix(".final"), Ancestral(int(match[1]), LinspaceSpacing(), clip=1.0)


def test_sampling(golden):
    model, io = Model(golden, ema=True), golden.io
    done = 0
    for name, sampler in runs(golden):
        states = model.sample(sampler, Recorded(io["in.z"], io.get(f"in.noise_seq_{sampler.steps}")))
        torch.testing.assert_close(states[-1], io[f"{name}.final"], rtol=1e-3, atol=1e-3)
        stored = io[f"{name}.x_kept"]
        torch.testing.assert_close(torch.stack(states[:: -(-len(states) // len(stored))]), stored, rtol=1e-3, atol=1e-3)
        done += 1
    assert done > 1


def test_respaced_schedules(golden):
    schedule = LinearSchedule()
    for name, sampler in runs(golden):
        timesteps = sampler.spacing.timesteps(sampler.steps, schedule.steps)
        assert timesteps[:-1] == golden.io[f"{name}.timestep_map"].tolist()[::-1]
        betas = [1 - schedule.alpha_bar(k) / schedule.alpha_bar(s) for k, s in pairwise(timesteps)]
        expected = golden.io[f"{name}.betas"].flip(0)
        torch.testing.assert_close(torch.tensor(betas, dtype=torch.float64), expected, rtol=1e-6, atol=1e-8)


def test_without_clipping_samples_differ(golden):
    """Clipping changes the recorded samples, so these runs test it."""
    model, io = Model(golden, ema=True), golden.io
    name, sampler = next(run for run in runs(golden) if isinstance(run[1], DDIM))
    free = model.sample(DDIM(sampler.steps, sampler.eta, LeadingSpacing()), Recorded(io["in.z"], None))
    assert not torch.allclose(free[-1], io[f"{name}.final"], atol=1e-2)
    mean = Posterior(torch.tensor([3.0]))
    assert float(sampler._clipped(mean).mean) == 1


@pytest.mark.parametrize("ema", [False, True], ids=["raw", "ema"])
def test_every_tensor_is_read_and_written_back(golden, ema):
    model = Model(golden, ema)
    back = official_adm(model.denoiser.network.state_dict(), model.conditioner.state_dict(), model.head_width)
    official = model.content["model_ema" if ema else "model"]
    assert back.keys() == official.keys()
    for name, tensor in official.items():
        assert torch.equal(back[name], tensor), name


def test_misfits_are_reported(golden):
    model = Model(golden, ema=False)
    for parts, message in (
        ((*model.parts, Vector(7), Vector(7)), "one class and one representation"),
        ((*(part for part in model.parts if isinstance(part, Vector)), Classes(77)), "classes, not on 77"),
        ((*(part for part in model.parts if isinstance(part, Classes)), Vector(7)), "representation, not on 7"),
    ):
        with pytest.raises(UserError, match=message):
            adm_weights(model.content, parts, head_width=model.head_width)
    with pytest.raises(UserError, match="give head_width"):
        adm_weights(model.content, model.parts, head_width=model.head_width + 1)
    with pytest.raises(UserError, match="EMA weights"):
        adm_weights({"model": model.content["model"], "model_ema": None}, model.parts)
    with pytest.raises(UserError, match="no null condition"):
        official_adm({}, {"parts.0.fake": torch.zeros(3)})


@pytest.mark.parametrize("name", ["adm_256_classcond", "adm_256_repcond"])
def test_full_size_files_are_read_completely(manifest, name):
    """The default sizes are the official ones; nothing is built in memory."""
    names = manifest(name)
    parts = (Vector(names["rep_proj.weight"].shape[1]),) if "rep_proj.weight" in names else (Classes(1000),)
    weights = adm_weights({"model": None, "model_ema": names}, parts)
    with torch.device("meta"):
        network, conditioner = UNet(), Conditioner(drop=0.0)
        network.build((3, 256, 256), conditioner.build(parts, network.condition_width), out_factor=2)
    load_strictly(network, weights.network, "it")
    load_strictly(conditioner, weights.conditioner, "it")
    back = official_adm(network.state_dict(), conditioner.state_dict())
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in names.items()}
