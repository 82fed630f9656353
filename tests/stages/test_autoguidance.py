"""Autoguidance: a weaker model instead of the null condition, also without any condition, and unsuitable models."""

import pytest
import torch

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import DDIM, Heun
from rcg_lightning.core.schedule import CosineSchedule, LinearSchedule
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.rdm_mlp import ModulatedMLP
from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.types import DataSpec

SPEC = DataSpec(
    (1, 8, 8),
    classes=10,
    columns={"representation": {"shape": [6]}},
    identities={"representation": "encoder-1"},
)


def built(make_stage, awake, condition=None, seed=0, spec=SPEC, **settings):
    return awake(make_stage(condition, **settings).build(spec), seed).eval()


def test_the_weaker_model_replaces_the_null_condition(make_stage, awake):
    """One DDIM step to clean returns the estimate itself, so guided samples can be computed by hand."""
    small = Denoiser(ModulatedMLP(8, 1, time_dim=8), CosineSchedule(100))
    settings = {"sampler": DDIM(1), "ema": None}
    strong = built(make_stage, awake, ClassCondition(), **settings)
    weak = built(make_stage, awake, ClassCondition(), 1, denoiser=small, **settings)
    seeds, labels = torch.arange(16), torch.randint(10, (16,))
    x, t = SeededNoise(seeds, strong.codec.stream).normal(0, 1, 8, 8), torch.zeros(16, dtype=torch.long)
    with torch.no_grad():
        good, bad = (stage.denoiser(x, t, stage.conditioner((labels,), 16)).mean for stage in (strong, weak))
    given = {"seed": seeds, "label": labels}
    guided_by_null = strong.sample(given, Guidance(2.5))
    strong.use_weak(weak)
    for scale in (1.0, 0.0, 2.5):
        expected = strong.codec.decode(bad + scale * (good - bad))
        torch.testing.assert_close(strong.sample(given, Guidance(scale)), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(strong.sample(given, Guidance(2.5)), guided_by_null)


@pytest.mark.parametrize("sampler", [DDIM(3, eta=1), Heun(3)], ids=["ddim", "heun"])
@pytest.mark.parametrize("space", ["images", "representations"])
def test_without_any_condition_a_sample_depends_on_its_seed_alone(make_stage, awake, space, sampler):
    settings = {"sampler": sampler} | ({"codec": Representations()} if space == "representations" else {})
    strong, weak = (built(make_stage, awake, seed=seed, **settings) for seed in (0, 1))
    unguided = strong.sample({"seed": torch.arange(50)})
    with pytest.raises(UserError, match="cannot be guided"):
        strong.sample({"seed": torch.arange(50)}, Guidance(2.0))
    strong.use_weak(weak)
    assert torch.equal(strong.sample({"seed": torch.arange(50)}), unguided)  # its own scale is 1
    guided = strong.sample({"seed": torch.arange(50)}, Guidance(2.0))
    assert not torch.allclose(guided, unguided)
    for size in (1, 7, 33):
        parts = [strong.sample({"seed": part}, Guidance(2.0)) for part in torch.arange(50).split(size)]
        assert torch.equal(torch.cat(parts), guided)


def test_other_weights_of_the_same_model_guide(make_stage, awake):
    strong = built(make_stage, awake, ema=EMA({"long": 0.9, "0.5": 0.5}))
    other = built(make_stage, awake, ema=EMA({"long": 0.9, "0.5": 0.5}))
    given = {"seed": torch.arange(5)}
    strong.use_weak(ema_name="0.5")
    other.use_weak(other, "trained")
    guided = strong.sample(given, Guidance(2.0))
    assert not torch.allclose(guided, other.sample(given, Guidance(2.0)))
    assert strong.weak_identity[1] == "0.5"
    assert strong.weak_identity != other.weak_identity
    with pytest.raises(UserError, match="short"):
        strong.use_weak(ema_name="short")
    with pytest.raises(UserError, match="give a weaker model"):
        strong.use_weak()


def test_an_unconditional_model_guides_a_conditional_one(make_stage, awake):
    strong = built(make_stage, awake, ClassCondition(), conditioner=Conditioner(drop=0.0))
    strong.use_weak(built(make_stage, awake, None, 1))
    labels = torch.arange(8)
    first = strong.sample({"seed": torch.arange(8), "label": labels}, Guidance(2.0))
    assert not torch.allclose(first, strong.sample({"seed": torch.arange(8), "label": labels + 1}, Guidance(2.0)))


def test_the_weaker_model_is_not_in_checkpoint_and_identity(make_stage, awake):
    strong, weak = (built(make_stage, awake, seed=seed) for seed in (0, 1))
    names, identity = set(strong.state_dict()), strong.identity
    assert strong.weak_identity is None
    strong.use_weak(weak)
    assert set(strong.state_dict()) == names
    assert strong.identity == identity
    assert strong.weak_identity == [weak.identity, "ema"]
    assert len(list(strong.parameters())) == len(list(weak.parameters()))


def test_outside_the_interval_the_weaker_model_is_not_called(make_stage, awake):
    strong, weak = (built(make_stage, awake, seed=seed, sampler=DDIM(5), ema=None) for seed in (0, 1))
    strong.use_weak(weak)
    batch_sizes = []
    weak.denoiser.register_forward_hook(lambda module, inputs, output: batch_sizes.append(len(inputs[0])))
    strong.sample({"seed": torch.arange(16)}, Guidance(2.0, interval=(0.4, 0.8)))
    assert batch_sizes == [16, 16]


def test_unsuitable_weaker_models_are_rejected(make_stage, awake):
    strong = built(make_stage, awake, RepresentationCondition())
    other_encoder = DataSpec((1, 8, 8), None, SPEC.columns, {"representation": "encoder-2"})
    unsuitable = {
        r"images of shape \(1, 4, 4\)": built(make_stage, awake, spec=DataSpec((1, 4, 4))),
        "makes representations": built(make_stage, awake, codec=Representations()),
        "conditioned on .*Classes": built(make_stage, awake, ClassCondition()),
        "schedule": built(make_stage, awake, denoiser=Denoiser(ModulatedMLP(8, 1), LinearSchedule(100))),
        "encoder-2": built(make_stage, awake, RepresentationCondition(), spec=other_encoder),
    }
    for pattern, weak in unsuitable.items():
        with pytest.raises(UserError, match=pattern):
            strong.use_weak(weak)
    assert strong.weak_identity is None
