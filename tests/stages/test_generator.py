"""Sampling by seed, EMA weights and gradients of every generator."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.cluster import ClusterCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import DDIM, Ancestral
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.ema import EMA
from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.types import DataSpec

SPEC = DataSpec(
    (1, 8, 8),
    classes=10,
    columns={"representation": {"shape": [6]}, "cluster": {"shape": [], "sizes": [600, 600, 146]}},
    identities={"representation": "encoder-1"},
)
CONDITIONS = {
    "none": None,
    "class": ClassCondition,
    "cluster": ClusterCondition,
    "representation": RepresentationCondition,
    "joint": lambda: JointCondition([RepresentationCondition(), ClassCondition()]),
}


def batch(n=12):
    torch.manual_seed(0)
    return {
        "image": torch.rand(n, 1, 8, 8),
        "label": torch.randint(10, (n,)),
        "cluster": torch.randint(3, (n,)),
        "representation": torch.randn(n, 6),
        "index": torch.arange(n),
    }


def make(make_stage, kind, **settings):
    condition = CONDITIONS[kind]
    return make_stage(condition() if condition else None, **settings).build(SPEC)


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("sampler", [DDIM(3), DDIM(3, eta=1), Ancestral(3)], ids=["ddim0", "ddim1", "ancestral"])
def test_a_sample_depends_on_its_seed_alone(make_stage, awake, sampler, guidance):
    stage = awake(make(make_stage, "class", sampler=sampler, guidance=Guidance(guidance)))
    seeds = torch.arange(50)
    samples = stage.sample({"seed": seeds})
    assert samples.shape == (50, 1, 8, 8)
    assert 0 <= float(samples.min()) < float(samples.max()) <= 1
    assert len(samples.flatten(1).unique(dim=0)) == 50
    for size in (1, 7, 33):
        parts = [stage.sample({"seed": part}) for part in seeds.split(size)]
        assert torch.equal(torch.cat(parts), samples)
    order = torch.randperm(50)
    assert torch.equal(stage.sample({"seed": seeds[order]}), samples[order])
    repeated = torch.tensor([3, 49, 3, 3, 19])
    assert torch.equal(stage.sample({"seed": repeated}), samples[repeated])


@pytest.mark.parametrize("kind", ["class", "representation", "joint"])
def test_given_conditions_stay_with_their_seed(make_stage, awake, kind):
    stage = awake(make(make_stage, kind))
    given = {"seed": torch.arange(12) * 5, **{k: v for k, v in batch().items() if k in ("label", "representation")}}
    samples = stage.sample(given)
    order = torch.randperm(12)
    assert torch.equal(stage.sample({name: values[order] for name, values in given.items()}), samples[order])
    one = stage.sample({name: values[4:5] for name, values in given.items()})
    assert torch.equal(one, samples[4:5])
    changed = dict(given, label=(given["label"] + 1) % 10, representation=given["representation"] + 1)
    assert float((stage.sample(changed) - samples).flatten(1).abs().amax(1).min()) > 1e-4


def counted_tiles(stage):
    """Record the seeds of each tile that a generator computes."""
    tiles, sample_z = [], stage.sample_z

    def counting(seeds, *args):
        tiles.append(seeds)
        return sample_z(seeds, *args)

    stage.sample_z = counting
    return tiles


def test_an_interpolation_of_nine_images_computes_one_tile(make_stage, awake):
    stage = awake(make(make_stage, "class"))
    tiles, batch = counted_tiles(stage), {"seed": torch.zeros(9, dtype=torch.long), "label": torch.arange(9)}
    placed = {**batch, "position": torch.arange(9)}
    together = stage.sample(placed)
    assert len(tiles) == 1
    parts = [stage.sample({name: rows[a:b] for name, rows in placed.items()}) for a, b in ((0, 2), (2, 9))]
    assert torch.equal(torch.cat(parts), together)
    torch.testing.assert_close(stage.sample(batch), together)  # each in a tile of its own


def test_the_tile_of_a_call_can_be_smaller(make_stage, awake):
    stage = awake(make(make_stage, "class"))
    tiles = counted_tiles(stage)
    few = stage.sample({"seed": torch.arange(3)}, tile=4)
    assert [len(seeds) for seeds in tiles] == [4]
    torch.testing.assert_close(few, stage.sample({"seed": torch.arange(3)}))
    assert make_stage(codec=Representations(), tile=None).tile > make_stage(tile=None).tile


def test_a_prediction_for_a_batch_of_images_fills_no_large_tile(make_stage, awake):
    rdm = awake(make(make_stage, "none", codec=Representations(), tile=None))
    tiles = counted_tiles(rdm)
    rdm.predict_step(batch(), 0)
    assert [len(seeds) for seeds in tiles] == [64]


def test_one_seed_under_several_conditions(make_stage, awake):
    stage = awake(make(make_stage, "class"))
    labels = torch.arange(10)
    together = stage.sample({"seed": torch.zeros(10, dtype=torch.long), "label": labels})
    for label in labels:
        alone = stage.sample({"seed": torch.zeros(1, dtype=torch.long), "label": label[None]})
        assert torch.equal(alone[0], together[label])


def test_sampling_does_not_change_training(make_stage, awake):
    stage = awake(make(make_stage, "class"))
    stage.train()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    samples = stage.sample({"seed": torch.arange(3)})
    assert torch.equal(torch.rand(2), expected)
    assert stage.training
    assert stage.conditioner.training
    assert not stage.ema.training
    assert not samples.requires_grad
    assert torch.equal(stage.eval().sample({"seed": torch.arange(3)}), samples)


def test_guidance_and_sampler_can_be_given(make_stage, awake):
    stage = awake(make(make_stage, "class"))
    given = {"seed": torch.arange(4)}
    default = stage.sample(given)
    assert torch.equal(stage.sample(given, Guidance(1.0), DDIM(4)), default)
    assert not torch.allclose(stage.sample(given, Guidance(3.0)), default)
    assert not torch.allclose(stage.sample(given, sampler=DDIM(2)), default)
    with pytest.raises(UserError, match="cannot be guided"):
        awake(make(make_stage, "none")).sample(given, Guidance(2.0))
    with pytest.raises(UserError, match="drop 0"):
        awake(make(make_stage, "class", conditioner=Conditioner(drop=0.0))).sample(given, Guidance(2.0))


def test_ema_weights_are_sampled_from(make_stage, awake):
    with_ema, without = make(make_stage, "class"), make(make_stage, "class", ema=None)
    awake(without)
    for name, module in (("network", without.denoiser), ("conditioner", without.conditioner)):
        with_ema.ema.averaged()[name].load_state_dict(module.state_dict())
    given = {"seed": torch.arange(4)}
    assert torch.equal(with_ema.sample(given), without.sample(given))
    assert with_ema.for_sampling()[1] is not with_ema.conditioner
    network_only = make(make_stage, "class", ema_conditioner=False)
    assert network_only.for_sampling()[1] is network_only.conditioner
    assert "conditioner" not in network_only.ema.averaged()


def test_any_of_several_ema_weights_can_be_sampled_from(make_stage, awake):
    stage = awake(make(make_stage, "class", ema=EMA({"short": 0.5, "long": 0.9})))
    assert stage.ema_names == ["short", "long", "trained"]
    given = {"seed": torch.arange(4)}
    samples = {name: stage.sample(given, ema_name=name) for name in stage.ema_names}
    assert torch.equal(stage.sample(given), samples["short"])
    assert not torch.allclose(samples["short"], samples["long"])
    without = make(make_stage, "class", ema=None)
    without.denoiser.load_state_dict(stage.denoiser.state_dict())
    without.conditioner.load_state_dict(stage.conditioner.state_dict())
    assert torch.equal(without.sample(given), samples["trained"])
    assert without.ema_names == ["trained"]
    with pytest.raises(UserError, match=r"middle.*short, long, trained"):
        stage.sample(given, ema_name="middle")


def test_images_and_representations_are_columns_of_a_store(make_stage, awake):
    stage = awake(make(make_stage, "class"))
    columns = stage.predict_step(batch(), 0)
    assert columns["image"].shape == (12, 8, 8, 1)
    assert columns["image"].dtype == torch.uint8
    rdm = awake(make(make_stage, "none", codec=Representations()))
    assert rdm.predict_step(batch(), 0)["representation"].shape == (12, 6)
    assert torch.equal(rdm(torch.arange(3)), rdm.sample({"seed": torch.arange(3)}))


def test_a_tile_has_at_least_one_sample(make_stage):
    with pytest.raises(UserError, match="at least 1"):
        make_stage(tile=0)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_every_trained_parameter_gets_a_gradient(make_stage, awake, kind, drop):
    stage = awake(make(make_stage, kind, conditioner=Conditioner(drop=drop, noise=0.1))).train()
    stage.losses(batch())["loss"].backward()
    trained = {id(p) for module in stage.trained_modules() for p in module.parameters()}
    assert trained == {id(p) for p in stage.parameters() if p.requires_grad}
    assert not [name for name, p in stage.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.grad is None for p in stage.ema.parameters())


@pytest.mark.parametrize("kind", CONDITIONS)
def test_needs_are_the_keys_that_are_read(make_stage, kind):
    stage = make(make_stage, kind)
    expected = {"none": set(), "joint": {"representation", "label"}, "class": {"label"}}.get(kind, {kind})
    assert stage.needs == {"image", *expected}
    stage.losses({name: values for name, values in batch().items() if name in stage.needs | {"index"}})
    assert make(make_stage, "class", codec=Representations()).needs == {"representation", "label"}


def test_ema_weights_follow_each_step(make_stage, tmp_path, trainer, digits):
    class RecordWeights(Callback):
        """Records the weights after every step, when checkpoints are written."""

        def on_train_batch_end(self, trainer, stage, *_):
            weights.append([p.detach().clone() for p in stage.denoiser.parameters()])
            ema_weights.append([p.clone() for p in stage.ema.averaged()["network"].parameters()])

    weights, ema_weights = [], []
    stage = make(make_stage, "class")
    expected = [p.detach().clone() for p in stage.denoiser.parameters()]
    trainer(tmp_path, 3, callbacks=[RecordWeights()]).fit(stage, digits())
    for trained, averaged in zip(weights, ema_weights, strict=True):
        expected = [0.5 * old + 0.5 * new for old, new in zip(expected, trained)]
        for value, should in zip(averaged, expected):
            torch.testing.assert_close(value, should)
    assert stage.ema.updates == 3
