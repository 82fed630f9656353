"""Masked training on tokens and parallel decoding, beyond the tests of every generator."""

import math

import pytest
import torch
import torch.nn.functional as F

from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.config import describe
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.masking import MaskRatio, ParallelDecoding, masked_cross_entropy
from rcg_lightning.core.samplers import DDIM
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.mage import MAGE
from rcg_lightning.pretrained.codecs import Pixels
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.masked import MaskedStage
from rcg_lightning.stages.optimization import AdamW, ConstantLR
from rcg_lightning.types import Codec, DataSpec

SPEC = DataSpec((1, 8, 8), classes=10, columns={"representation": {"shape": [6]}})
CODES = 4
CONDITIONS = {
    "none": NoCondition,
    "class": ClassCondition,
    "representation": RepresentationCondition,
    "joint": lambda: JointCondition([RepresentationCondition(), ClassCondition()]),
}


class BrightnessTokens(Codec):
    """16 tokens of an 8x8 image: the brightness of 2x2 pixels, in four values; or the tokens of the batch."""

    def shape(self, spec):
        return (16,)

    def count(self, spec):
        return CODES

    def encode(self, batch):
        if "tokens" in batch:
            return batch["tokens"]
        return (F.avg_pool2d(batch["image"], 2) * (CODES - 1)).round().long().flatten(1)

    def decode(self, z):
        return F.interpolate(z.unflatten(1, (1, 4, 4)) / (CODES - 1), scale_factor=2)


def make(kind="class", **settings):
    given = {
        "codec": BrightnessTokens(),
        "transformer": MAGE(16, 1, 2, 16, 1, 2, dropout=0.1),
        "conditioner": Conditioner(drop=0.2),
        "optimizer": AdamW(lr=3e-3, lr_schedule=ConstantLR(warmup=2), decay_vectors=False, clip=3.0),
        "sampler": ParallelDecoding(4, 1.0),
        "tile": 16,
    }
    return MaskedStage(condition=CONDITIONS[kind](), **given | settings)


def batch(n=24):
    torch.manual_seed(0)
    return {
        "image": torch.rand(n, 1, 8, 8),
        "label": torch.randint(10, (n,)),
        "representation": torch.randn(n, 6),
        "index": torch.arange(n),
    }


@pytest.fixture
def built(awake):
    return lambda kind="class", **settings: awake(make(kind, **settings).build(SPEC))


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONDITIONS)
def test_every_trained_parameter_gets_a_gradient(built, kind):
    stage = built(kind, ema=EMA(0.5)).train()
    loss = stage.losses(batch())["loss"]
    assert bool(loss.isfinite())
    loss.backward()
    assert not [name for name, p in stage.named_parameters() if p.requires_grad and p.grad is None]
    assert stage.needs == {"image", *{"class": {"label"}, "none": ()}.get(kind, CONDITIONS[kind]().needs)}


def test_one_mask_ratio_is_sampled_for_a_batch(built):
    """Every example has the same number of masked tokens, between half of them and all."""
    stage, data, counts = built().train(), batch(3), []

    def record(module, inputs, output):
        _, masked, _, visible = inputs
        assert visible.shape == (3, 8)
        counts.append(masked.sum(1).tolist())

    stage.transformer.register_forward_hook(record)
    for _ in range(60):
        stage.losses(data)
    assert all(len(set(examples)) == 1 for examples in counts)
    numbers = {examples[0] for examples in counts}
    assert numbers <= set(range(8, 17))
    assert len(numbers) > 5


def test_validation_loss_is_the_same_every_time_and_for_every_batch(built):
    stage = built().eval()
    first = stage.losses(batch())["loss"]
    torch.rand(3)
    assert torch.equal(stage.losses(batch())["loss"], first)
    parts = [{name: values[i : i + 6] for name, values in batch().items()} for i in range(0, 24, 6)]
    torch.testing.assert_close(torch.stack([stage.losses(part)["loss"] for part in parts]).mean(), first)
    assert not torch.equal(stage.train().losses(batch())["loss"], first)


def test_the_loss_is_that_of_the_network(built):
    """With a mask ratio of one, all tokens are masked, so only the condition is read."""
    stage = built("representation", mask_ratio=MaskRatio(low=1.0), smoothing=0.3).eval()
    data = batch()
    tokens = stage.codec.encode(data)
    masked = torch.ones_like(tokens, dtype=torch.bool)
    c = stage.conditioner((data["representation"],), 24)
    logits = stage.transformer(tokens, masked, c, torch.empty(24, 0, dtype=torch.int64))
    expected = masked_cross_entropy(logits, tokens, masked, 0.3).mean()
    torch.testing.assert_close(stage.losses(data)["loss"], expected)


def test_it_overfits_and_samples_the_training_images():
    """Trained on eight images, it decodes their tokens from their representations alone."""
    network = MAGE(32, 1, 4, 32, 1, 4, dropout=0.0)
    stage = make("representation", transformer=network, conditioner=Conditioner(drop=0.0), smoothing=0.0).build(SPEC)
    torch.manual_seed(0)
    data = {"tokens": torch.randint(CODES, (8, 16)), "representation": torch.randn(8, 6), "index": torch.arange(8)}
    optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-2)
    before = float(stage.eval().losses(data)["loss"].detach())
    assert before == pytest.approx(math.log(CODES), abs=0.1)
    for _ in range(250):
        optimizer.zero_grad()
        stage.train().losses(data)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(stage.parameters(), 3.0)
        optimizer.step()
    assert float(stage.eval().losses(data)["loss"].detach()) < 0.1 * before
    sampled = stage.sample_z(torch.arange(8), (data["representation"],), Guidance(), None)
    assert float((sampled == data["tokens"]).float().mean()) > 0.95


def test_it_trains_and_samples_in_mixed_precision(built):
    stage, data = built("representation", transformer=MAGE(16, 1, 2, 24, 1, 3, dropout=0.1)).train(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = stage.losses(data)["loss"]
        samples = stage.sample({"seed": torch.arange(4), "representation": data["representation"][:4]}, Guidance(2.0))
    assert loss.dtype == torch.float32
    assert samples.shape == (4, 1, 8, 8)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in stage.parameters())


def test_a_checkpoint_samples_the_same(tmp_path, trainer, digits):
    stage = make(ema=EMA(0.5))
    fit = trainer(tmp_path, 2)
    fit.fit(stage, digits())
    assert {"train/loss", "val/loss"} <= fit.callback_metrics.keys()
    again = Stage.load(tmp_path / "last.ckpt")
    assert isinstance(again, MaskedStage)
    assert describe(again) == describe(stage)
    assert torch.equal(again.sample({"seed": torch.arange(20)}), stage.eval().sample({"seed": torch.arange(20)}))


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(3.0, ramp=True)], ids=["unguided", "guided"])
@pytest.mark.parametrize("kind", ["none", "class"])
def test_a_sample_depends_on_its_seed_alone(built, kind, guidance):
    if kind == "none" and guidance.scale != 1:
        pytest.skip("no null condition")
    stage = built(kind, guidance=guidance)
    seeds = torch.arange(40)
    samples = stage.sample({"seed": seeds})
    assert samples.shape == (40, 1, 8, 8)
    assert set(samples.unique().tolist()) <= {0.0, *(torch.arange(1, 4) / 3).tolist()}
    for size in (1, 7, 33):
        assert torch.equal(torch.cat([stage.sample({"seed": part}) for part in seeds.split(size)]), samples)
    order = torch.randperm(40)
    assert torch.equal(stage.sample({"seed": seeds[order]}), samples[order])


def test_guidance_is_of_logits_and_grows_to_its_scale_at_the_last_step(built):
    stage = built("representation")
    guided, calls = [], []
    stage.transformer.register_forward_hook(lambda module, inputs, output: calls.append((len(inputs[0]), output)))

    class RecordedDecoding(ParallelDecoding):
        def rounds(self, predict, noise, tokens):
            for step in super().rounds(predict, noise, tokens):
                guided.append(step.logits)
                yield step

    given = {"seed": torch.arange(16), "representation": batch()["representation"][:16]}
    stage.sample(given, Guidance(3.0, ramp=True), RecordedDecoding(4, 1.0))
    assert [size for size, _ in calls] == [32] * 4  # one forward pass for both
    for step, (logits, (_, both)) in enumerate(zip(guided, calls)):
        cond, null = both.chunk(2)
        expected = cond + 2.0 * (step + 1) / 4 * (cond - null)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    calls.clear()
    stage.sample(given, Guidance(3.0, interval=(0.5, 0.75)), ParallelDecoding(4))
    assert [size for size, _ in calls] == [16, 32, 32, 16]  # without the null condition where the scale is 1


def test_it_can_be_guided_away_from_a_weaker_model(built, awake):
    stage, weak = built("none"), awake(make("none", seed=1).build(SPEC), seed=1)
    stage.use_weak(weak)
    given = {"seed": torch.arange(16)}
    assert not torch.equal(stage.sample(given, Guidance(4.0)), stage.sample(given))
    assert torch.equal(stage.sample(given, Guidance(0.0)), weak.sample(given))


def test_ema_weights_are_sampled_from(built):
    stage = built(ema=EMA(0.5))
    given = {"seed": torch.arange(16)}
    assert not torch.equal(stage.sample(given), stage.sample(given, ema_name="trained"))


# -- errors ------------------------------------------------------------------------------------------------------------


def test_unsuitable_settings_are_named(built, awake):
    with pytest.raises(UserError, match="Pixels"):
        make(codec=Pixels()).build(SPEC)
    stage = built()
    with pytest.raises(UserError, match="DDIM"):
        stage.sample({"seed": torch.arange(2)}, sampler=DDIM(3))
    with pytest.raises(UserError, match="channels"):
        stage.check_guidance(Guidance(2.0, channels=3))
    with pytest.raises(UserError, match="cannot be guided"):
        built("none").check_guidance(Guidance(2.0))


@pytest.mark.parametrize("training", [True, False])
def test_tokens_outside_the_codebook_are_found_at_once(built, training):
    stage = built("none").train(training)
    for wrong in (-1, CODES):
        tokens = torch.zeros(5, 16, dtype=torch.int64)
        tokens[3, 2] = wrong
        with pytest.raises(UserError, match=f"token {wrong} "):
            stage.losses({"tokens": tokens, "index": torch.arange(5)})
    with pytest.raises(UserError, match="16 tokens"):
        stage.losses({"tokens": torch.zeros(5, 9, dtype=torch.int64), "index": torch.arange(5)})


# -- speed -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONDITIONS)
def test_training_never_waits_for_the_device(built, kind):
    stage = built(kind, ema=EMA(0.5, warmup=True)).train()
    data = batch()
    stage.losses(data)  # the first batch is checked, which waits
    optimizer, _ = stage.optimizer.make(stage.trained_modules(), 10)
    with HostSyncs() as syncs:
        stage.losses(data)["loss"].backward()
        optimizer.step()
        stage.after_step()
    assert syncs.calls
    assert not syncs.found


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["none", "class", "representation"])
def test_decoding_never_waits_for_the_device(built, kind, scale):
    if kind == "none" and scale != 1:
        pytest.skip("no null condition")
    stage, data = built(kind).eval(), batch(16)
    raw = tuple(data[name] for name in {"none": (), "class": ("label",)}.get(kind, ("representation",)))
    with torch.no_grad(), HostSyncs() as syncs:
        stage.sample_z(torch.arange(16), raw, Guidance(scale, ramp=True), None)
    assert syncs.calls["argmax"] == 4
    assert not syncs.found


def test_waits_for_the_device_are_counted():
    x = torch.arange(4.0)
    with HostSyncs() as syncs:
        assert float(x.sum()) == 6
        x[x > 1].nonzero()
        x.clone()[1:].add_(1)
    assert syncs.found == {"_local_scalar_dense": 1, "index": 1, "nonzero": 1}
