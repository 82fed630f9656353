"""A small conditional GAN on the digits."""

import logging

import pytest
import torch
from torch import nn

from helpers.killed_run import KillAtStep, Killed
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.adversarial import GradientPenalty, Hinge, LeCam, Logistic, OneStep, PathLength
from rcg_lightning.core.diffaugment import Augmentation
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import DDIM
from rcg_lightning.errors import UserError
from rcg_lightning.networks.adversarial import DiscriminatorNetwork, NormalNoise
from rcg_lightning.networks.cgan import ConditionalDiscriminator, ConditionalGenerator, Rectified
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.discriminators import PatchDiscriminator
from rcg_lightning.networks.ema import EMA
from rcg_lightning.pretrained.codecs import Pixels, Representations
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import DataSpec

SPEC = DataSpec((1, 8, 8), 10)


def gan(condition=None, **settings):
    given = {
        "generator": ConditionalGenerator(6, 16, 8, 16, noise_distribution=NormalNoise(), dropout=0.1, init_range=0.3),
        "discriminator": ConditionalDiscriminator(
            Rectified(16), Rectified(8), Rectified(16), dropout=0.1, init_range=0.1
        ),
        "conditioner": Conditioner(drop=0.0),
        "discriminator_conditioner": Conditioner(drop=0.0),
        "optimizer": AdamW(1e-3, betas=(0.0, 0.9)),
        "discriminator_optimizer": AdamW(1e-3, betas=(0.0, 0.9)),
        "ema": EMA(0.5),
        "tile": 16,
    }
    return AdversarialStage(codec=Pixels(), condition=condition or ClassCondition(), **given | settings)


def batch(n=8):
    torch.manual_seed(3)
    return {"image": torch.rand(n, 1, 8, 8), "label": torch.arange(n) % 10, "index": torch.arange(n)}


class Recorded(nn.Module):
    """Records the inputs of a network, in its place."""

    def __init__(self, network):
        super().__init__()
        self.network, self.inputs, self.together = network, [], network.together

    def forward(self, *inputs):
        self.inputs.append(inputs)
        return self.network(*inputs)


def test_generated_and_real_share_one_pass_under_one_condition():
    stage = gan(loss=Logistic()).build(SPEC).eval()
    stage.discriminator = recorded = Recorded(stage.discriminator)
    given = batch()
    losses = stage.discriminator_losses(given)
    ((both, c),) = recorded.inputs
    assert both.shape == (16, 1, 8, 8)
    assert torch.equal(both[8:], given["image"] * 2 - 1)  # the generated ones come first
    assert torch.equal(c[:8], c[8:])
    assert torch.equal(c[:8], stage.discriminator_conditioner((given["label"],), 8))
    logits = recorded.network(both, c)
    assert float(losses["loss"]) == pytest.approx(float(Logistic().discriminator(logits[8:], logits[:8])))
    accuracies = [float((logits[8:] > 0).float().mean()), float((logits[:8] <= 0).float().mean())]
    assert [float(losses["real_accuracy"]), float(losses["fake_accuracy"])] == accuracies
    generator_losses = stage.generator_losses(given)
    assert torch.equal(recorded.inputs[-1][0], both[:8])  # in validation the noise of an image is always the same
    assert float(generator_losses["loss"]) == pytest.approx(float(Logistic().generator(logits[:8])))


def test_generated_and_real_have_two_passes_where_a_batch_is_compared():
    stage = gan(loss=Logistic()).build(SPEC).eval()
    stage.discriminator = recorded = Recorded(stage.discriminator)
    one_pass = stage.discriminator_losses(batch())
    recorded.together = False
    two_passes = stage.discriminator_losses(batch())
    assert [len(x) for x, _ in recorded.inputs] == [16, 8, 8]
    torch.testing.assert_close(torch.cat([x for x, _ in recorded.inputs[1:]]), recorded.inputs[0][0])
    torch.testing.assert_close(two_passes, one_pass)


def test_each_loss_gives_gradients_to_its_own_network():
    stage = gan().build(SPEC)
    stage.generator_losses(batch())["loss"].backward()
    assert all(p.grad is not None for module in (stage.generator, stage.conditioner) for p in module.parameters())
    stage.zero_grad()
    stage.discriminator_losses(batch())["loss"].backward()
    assert all(p.grad is None for p in stage.generator.parameters())
    assert all(p.grad is not None for p in stage.discriminator.parameters())


def test_a_penalty_is_due_at_every_nth_step():
    stage = gan(penalty=GradientPenalty(4.0, every=3), loss=Hinge()).build(SPEC)
    stage.discriminator.dropout.p = 0.0
    penalties = {}
    for stage.steps in range(4):
        penalties[stage.steps] = stage.discriminator_losses(batch()).get("penalty")
    assert [step for step, penalty in penalties.items() if penalty is not None] == [0, 3]
    x = (batch()["image"] * 2 - 1).requires_grad_()
    logits = stage.discriminate(x, (batch()["label"],), 8)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert float(penalties[0]) == pytest.approx(3 * 4 / 2 * float(gradient.square().flatten(1).sum(1).mean()), rel=1e-4)
    assert "penalty" not in stage.eval().losses(batch())


class StyledGenerator(ConditionalGenerator):
    def styles(self, noise, c):
        return self.noise_linear(noise)[:, None].expand(-1, 2, -1)

    def synthesise(self, w):
        return w.sum((1, 2))[:, None, None, None].expand(-1, 1, 8, 8) ** 2


def test_path_lengths_and_logits_are_regularised_where_requested():
    network = StyledGenerator(6, 16, 8, 16, noise_distribution=NormalNoise())
    stage = gan(generator=network, path_length=PathLength(every=2, decay=0.5), lecam=LeCam(decay=0.5)).build(SPEC)
    assert "path_length" in stage.generator_losses(batch())
    assert float(stage.mean_length) > 0
    assert "lecam" in stage.discriminator_losses(batch())
    assert (stage.mean_logits != 0).all()
    stage.steps = 1
    assert "path_length" not in stage.generator_losses(batch())
    assert not {"path_length", "discriminator_lecam"} & stage.eval().losses(batch()).keys()
    with pytest.raises(UserError, match="styles"):
        gan(path_length=PathLength())


class Negative(Augmentation):
    def augment(self, x):
        return -x


def test_the_discriminator_sees_everything_augmented_in_training():
    stage = gan(augmentation=Negative()).build(SPEC)
    stage.discriminator = recorded = Recorded(stage.discriminator)
    stage.discriminator_losses(batch())
    assert torch.equal(recorded.inputs[-1][0][8:], -(batch()["image"] * 2 - 1))
    stage.generator_losses(batch())
    assert recorded.inputs[-1][0].requires_grad
    stage.eval().discriminator_losses(batch())
    assert torch.equal(recorded.inputs[-1][0][8:], batch()["image"] * 2 - 1)


def test_training_checkpoint_and_samples(tmp_path, trainer, digits):
    stage = gan(n_critic=2, accumulate=2)
    fit = trainer(tmp_path, 4, checkpoint_every=2, val_check_interval=2, log_every_n_steps=2)
    fit.fit(stage, digits())
    assert (fit.global_step, stage.steps, stage.ema.updates) == (4, 4, 4)
    logged = {"loss", "discriminator_loss", "discriminator_real_accuracy", "discriminator_fake_accuracy"}
    names = {f"{part}/{name}" for part in ("train", "val") for name in logged}
    names |= {
        "train/generator_gradient",
        "train/discriminator_gradient",
        "val/diversity",
        "val/diversity_one_condition",
    }
    assert names <= fit.callback_metrics.keys()
    again = Stage.load(tmp_path / "last.ckpt")
    seeds = torch.arange(40)
    samples = again.sample({"seed": seeds})
    assert samples.shape == (40, 1, 8, 8)
    assert torch.equal(samples[7:20], again.sample({"seed": seeds[7:20]}))
    assert torch.equal(samples, stage.eval().sample({"seed": seeds}))
    assert again.ema_names == ["ema", "trained"]
    assert not torch.equal(samples, again.sample({"seed": seeds}, ema_name="trained"))


def test_a_killed_run_continues_to_the_last_bit(tmp_path, trainer, digits):
    def run(folder, resume=None, **settings):
        stage = gan(n_critic=2, ema=EMA(0.9, start=2, buffers=True), penalty=GradientPenalty(1.0, every=2))
        trainer(tmp_path / folder, 6, checkpoint_every=3, **settings).fit(stage, digits(), ckpt_path=resume)
        return torch.load(tmp_path / folder / "last.ckpt", weights_only=True)["state_dict"]

    whole = run("whole")
    with pytest.raises(Killed):
        run("killed", callbacks=[KillAtStep(4)])
    resumed = run("killed", resume=tmp_path / "killed" / "last.ckpt")
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_temperature_scales_the_noise():
    stage = gan().build(SPEC).eval()
    given = {"seed": torch.arange(4), "label": torch.zeros(4, dtype=torch.long)}
    samples = stage.sample(given)
    assert torch.equal(stage.sample(given, sampler=OneStep()), samples)
    cold = stage.sample(given, sampler=OneStep(0.0))
    torch.testing.assert_close(cold, cold[:1].expand_as(cold))
    assert not torch.equal(samples[0], samples[1])


def test_unsuitable_settings_are_named():
    for unconditional in ({"discriminator_conditioner": None}, {"discriminator": PatchDiscriminator(8, 1)}):
        with pytest.raises(UserError, match="discriminator_conditioner"):
            gan(**unconditional).build(SPEC)
    gan(NoCondition(), discriminator_conditioner=None).build(SPEC)
    gan(NoCondition(), discriminator=PatchDiscriminator(8, 1)).build(SPEC)
    with pytest.raises(UserError, match="set drop to 0"):
        gan(conditioner=Conditioner(drop=0.1))
    stage = gan().build(SPEC).eval()
    with pytest.raises(UserError, match="DDIM"):
        stage.sample({"seed": torch.arange(2)}, sampler=DDIM(4))
    with pytest.raises(UserError, match="cannot be guided"):
        stage.sample({"seed": torch.arange(2)}, guidance=Guidance(2.0))
    uniform = gan(generator=ConditionalGenerator(6, 16, 8, 16)).build(SPEC).eval()
    with pytest.raises(UserError, match="not normal"):
        uniform.sample({"seed": torch.arange(2)}, sampler=OneStep(0.5))


class NoiselessGenerator(ConditionalGenerator):
    """Ignores its noise."""

    def forward(self, noise, c):
        return super().forward(torch.zeros_like(noise), c)


@pytest.mark.parametrize("generator", [NoiselessGenerator, ConditionalGenerator])
def test_a_collapse_is_warned_of(generator, tmp_path, trainer, digits, caplog):
    stage = gan(generator=generator(6, 16, 8, 16, noise_distribution=NormalNoise(), init_range=0.3))
    with caplog.at_level(logging.WARNING, "rcg_lightning"):
        fit = trainer(tmp_path, 1)
        fit.fit(stage, digits())
    collapsed = generator is NoiselessGenerator
    assert ("collapsed: at step 1" in caplog.text) == collapsed
    assert (float(fit.callback_metrics["val/diversity_one_condition"]) < 0.05) == collapsed
    assert "has won" not in caplog.text


def test_a_discriminator_that_has_won_is_warned_of(caplog):
    stage = gan().build(SPEC)
    stage.steps = 500
    with caplog.at_level(logging.WARNING, "rcg_lightning"):
        stage.warn_of_failure(diversity=0.9, accuracy=0.99)
        assert caplog.text == ""
        stage.warn_of_failure(diversity=0.9, accuracy=1.0)
    assert "won: at step 500" in caplog.text


def test_images_are_generated_from_representations_of_a_prior(make_stage, tmp_path, trainer, digits):
    data = digits(tmp_path)
    trainer(tmp_path / "rdm", 1).fit(make_stage(codec=Representations()), data)
    stage = gan(RepresentationCondition())
    trainer(tmp_path / "gan", 1).fit(stage, digits(tmp_path))
    seeds = torch.arange(5)
    with pytest.raises(UserError, match="--prior"):
        stage.sample({"seed": seeds})
    again = Stage.load(tmp_path / "gan" / "last.ckpt")
    again.condition.use_prior(tmp_path / "rdm" / "last.ckpt")
    samples = again.sample({"seed": seeds})
    representations = Stage.load(tmp_path / "rdm" / "last.ckpt")(seeds)
    assert torch.equal(samples, again.sample({"seed": seeds, "representation": representations}))
    assert samples.flatten(1).std(0).mean() > 1e-3


class AttentionDiscriminator(DiscriminatorNetwork):
    """Fused attention between the pixel rows of an image: its backward pass has no derivative."""

    def condition_width(self, shape):
        return 4

    def build(self, shape, condition_dim):
        self.out = nn.Linear(shape[-1], 1)

    def forward(self, x, c):
        return self.out(nn.functional.scaled_dot_product_attention(x, x, x)).mean((1, 2, 3)) + 0 * c.sum(1)


def test_a_gradient_penalty_goes_through_attention():
    stage = gan(discriminator=AttentionDiscriminator(), penalty=GradientPenalty(1.0))
    stage.build(SPEC)
    losses = stage.train().discriminator_losses(batch())
    losses["loss"].backward()
    assert losses["penalty"] > 0
    assert stage.discriminator.out.weight.grad.abs().sum() > 0
