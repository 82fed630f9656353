"""Timesteps, losses and guided sampling of diffusion stages."""

import pytest
import torch

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.core.diffusion import FlowVelocity, Posterior
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import DDIM, Ancestral, Heun
from rcg_lightning.core.schedule import CosineSchedule, FlowSchedule, LinearSchedule, LogitNormal
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.rdm_mlp import ModulatedMLP, ResidualMLP
from rcg_lightning.types import DataSpec

SPEC = DataSpec((1, 8, 8), classes=10)


def batch(n=64):
    torch.manual_seed(0)
    return {"image": torch.rand(n, 1, 8, 8), "label": torch.randint(10, (n,)), "index": torch.arange(n)}


@pytest.mark.parametrize("n", [1, 7, 64, 300])
def test_stratified_timesteps_cover_the_schedule_evenly(make_stage, n):
    stage = make_stage(stratified=True).build(SPEC)
    steps = stage.denoiser.schedule.steps
    timesteps = stage._random_timesteps(n, torch.device("cpu"))
    assert timesteps.shape == (n,)
    counts = torch.histc(timesteps.float(), bins=min(n, steps), min=0, max=steps)
    assert counts.max() <= n / min(n, steps) + 2
    assert n < 7 or not torch.equal(timesteps, timesteps.sort().values)  # in random order


@pytest.mark.parametrize("stratified", [False, True])
def test_timesteps_are_uniform(make_stage, stratified):
    stage = make_stage(stratified=stratified).build(SPEC)
    torch.manual_seed(0)
    timesteps = torch.cat([stage._random_timesteps(50, torch.device("cpu")) for _ in range(400)])
    counts = torch.bincount(timesteps, minlength=100)
    assert len(counts) == 100
    assert bool(((counts - 200).abs() < 75).all())  # five standard deviations of independent timesteps


def test_validation_loss_is_the_same_every_time_and_for_every_batch(make_stage, awake):
    stage = awake(make_stage(ClassCondition()).build(SPEC)).eval()
    first = stage.losses(batch())["loss"]
    torch.rand(3)
    assert torch.equal(stage.losses(batch())["loss"], first)
    parts = [{name: values[i : i + 16] for name, values in batch().items()} for i in range(0, 64, 16)]
    torch.testing.assert_close(torch.stack([stage.losses(part)["loss"] for part in parts]).mean(), first)
    stage.train()
    assert not torch.equal(stage.losses(batch())["loss"], first)


def test_guidance_mixes_the_two_estimates(make_stage, awake):
    """One DDIM step to clean returns the estimate itself, so guided samples can be computed by hand."""
    stage = awake(make_stage(ClassCondition(), sampler=DDIM(1), ema=None).build(SPEC)).eval()
    seeds, labels = torch.arange(16), torch.randint(10, (16,))
    x, t = SeededNoise(seeds, stage.codec.stream).normal(0, 1, 8, 8), torch.zeros(16, dtype=torch.long)
    with torch.no_grad():
        cond = stage.denoiser(x, t, stage.conditioner((labels,), 16)).mean
        null = stage.denoiser(x, t, stage.conditioner.null(16)).mean
    given = {"seed": seeds, "label": labels}
    for scale in (1.0, 0.0, 2.5):
        expected = stage.codec.decode(null + scale * (cond - null))
        torch.testing.assert_close(stage.sample(given, Guidance(scale)), expected, rtol=1e-4, atol=1e-5)


def test_the_null_condition_is_not_computed_outside_the_interval(make_stage, awake):
    stage = awake(make_stage(ClassCondition(), sampler=DDIM(5), ema=None).build(SPEC)).eval()
    batch_sizes = []
    stage.denoiser.register_forward_hook(lambda module, inputs, output: batch_sizes.append(len(inputs[0])))
    stage.sample({"seed": torch.arange(16)}, Guidance(2.0, interval=(0.4, 0.8)))
    assert batch_sizes == [16, 16, 32, 32, 16]


@pytest.mark.parametrize(
    ("network", "learned"),
    [(ModulatedMLP(16, 1), False), (ResidualMLP(16, 1), True), (DiT(2, 16, 1, 2), True), (DiT(4, 16, 1, 2), False)],
    ids=["modulated", "residual", "dit_variance", "dit"],
)
def test_any_network_trains_and_samples(make_stage, awake, network, learned):
    denoiser = Denoiser(network, LinearSchedule(50), learned_variance=learned)
    stage = make_stage(ClassCondition(), denoiser=denoiser, sampler=Ancestral(3), guidance=Guidance(2.0, channels=1))
    awake(stage.build(SPEC)).train()
    loss = stage.losses(batch(8))["loss"]
    assert bool(loss.isfinite())
    loss.backward()
    assert not [name for name, p in stage.named_parameters() if p.requires_grad and p.grad is None]
    assert stage.sample({"seed": torch.arange(3)}).shape == (3, 1, 8, 8)


def test_a_guided_step_has_the_conditional_variance(make_stage, awake):
    denoiser = Denoiser(ResidualMLP(16, 1), LinearSchedule(50), learned_variance=True)
    stage = awake(make_stage(ClassCondition(), denoiser=denoiser, ema=None).build(SPEC)).eval()
    steps = []

    class RecordedAncestral(Ancestral):
        def step(self, x, posterior, t, t_next, schedule, noise):
            steps.append((x, t, posterior))
            return super().step(x, posterior, t, t_next, schedule, noise)

    labels = torch.arange(16) % 10
    stage.sample({"seed": torch.arange(16), "label": labels}, Guidance(3.0), RecordedAncestral(3))
    for x, t, posterior in steps:
        assert isinstance(posterior, Posterior)
        with torch.no_grad():
            unguided = stage.denoiser(x, torch.full((16,), t), stage.conditioner((labels,), 16))
        torch.testing.assert_close(posterior.variance_mix, unguided.variance_mix, rtol=1e-4, atol=1e-5)


def test_a_few_steps_of_training_lower_the_loss(make_stage, tmp_path, trainer, digits):
    denoiser = Denoiser(ModulatedMLP(64, 2, time_dim=32), CosineSchedule(100))
    stage = make_stage(ClassCondition(), denoiser=denoiser, conditioner=Conditioner(drop=0.1), stratified=True)
    before = trainer(tmp_path, 1).validate(stage, digits(), verbose=False)[0]["val/loss"]
    fit = trainer(tmp_path, 60)
    fit.fit(stage, digits(batch_size=64))
    assert float(fit.callback_metrics["val/loss"]) < 0.55 * before


def test_a_flow_is_trained_at_continuous_times_and_sampled_by_seed(make_stage, awake):
    denoiser = Denoiser(ModulatedMLP(16, 1, time_dim=16), FlowSchedule(100), FlowVelocity())
    stage = awake(make_stage(ClassCondition(), denoiser=denoiser, sampler=Heun(3), stratified=True).build(SPEC))
    torch.manual_seed(0)
    timesteps = stage._random_timesteps(1000, torch.device("cpu"))
    assert timesteps.dtype == torch.float32
    assert len(timesteps.unique()) == 1000
    assert -1 <= float(timesteps.min()) < float(timesteps.max()) <= 99
    loss = stage.train().losses(batch(8))["loss"]
    loss.backward()
    assert bool(loss.isfinite())
    samples = stage.eval().sample({"seed": torch.arange(20)}, Guidance(2.0))
    parts = [stage.sample({"seed": part}, Guidance(2.0)) for part in torch.arange(20).split(7)]
    assert torch.equal(torch.cat(parts), samples)


@pytest.mark.parametrize(
    ("schedule", "offset"), [(CosineSchedule(100), 0.5), (FlowSchedule(100), 1.0)], ids=["diffusion", "flow"]
)
def test_timesteps_follow_their_distribution(make_stage, schedule, offset):
    """On a flow the fraction of timestep t is (t + 1) / T; an integer timestep stands for t / T to (t + 1) / T."""
    denoiser = Denoiser(ModulatedMLP(16, 1), schedule, FlowVelocity())
    for stratified in (False, True):
        stage = make_stage(denoiser=denoiser, timestep_distribution=LogitNormal(-1.0, 0.5), stratified=stratified)
        torch.manual_seed(0)
        timesteps = torch.cat([stage._random_timesteps(100, torch.device("cpu")) for _ in range(50)])
        logits = torch.logit((timesteps + offset) / 100)
        assert float(logits.mean()) == pytest.approx(-1.0, abs=0.03)
        assert float(logits.std()) == pytest.approx(0.5, abs=0.03)


def test_a_few_steps_of_flow_matching_lower_the_loss(make_stage, tmp_path, trainer, digits):
    denoiser = Denoiser(ModulatedMLP(64, 2, time_dim=32), FlowSchedule(100), FlowVelocity())
    stage = make_stage(denoiser=denoiser, stratified=True, sampler=DDIM(4))
    before = trainer(tmp_path, 1).validate(stage, digits(), verbose=False)[0]["val/loss"]
    fit = trainer(tmp_path, 60)
    fit.fit(stage, digits(batch_size=64))
    assert float(fit.callback_metrics["val/loss"]) < 0.6 * before
