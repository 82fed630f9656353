import numpy as np
import pytest
import torch

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.cluster import ClusterCondition
from rcg_lightning.conditions.instance import InstanceCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.types import Classes, DataSpec, Vector

SIZES = [600, 300, 100]
SPEC = DataSpec(
    (1, 8, 8),
    classes=10,
    columns={"representation": {"shape": [6]}, "cluster": {"shape": [], "sizes": SIZES}},
    identities={"representation": "encoder-1"},
)
BARE = DataSpec((1, 8, 8))
SEEDS = torch.arange(20_000)


def batch():
    return {"label": torch.tensor([3, 1]), "cluster": torch.tensor([2, 0]), "representation": torch.randn(2, 6)}


def built(condition, spec=SPEC):
    condition.parts(spec)
    return condition


def test_no_condition():
    condition = NoCondition()
    assert (condition.needs, condition.parts(BARE)) == (frozenset(), ())
    assert condition.observe(batch()) == condition.sample({"seed": SEEDS}) == ()


@pytest.mark.parametrize(
    ("condition", "key", "part"),
    [
        (ClassCondition(), "label", Classes(10)),
        (ClusterCondition(), "cluster", Classes(3)),
        (RepresentationCondition(), "representation", Vector(6)),
    ],
    ids=["class", "cluster", "representation"],
)
def test_one_condition(condition, key, part):
    assert condition.needs == {key}
    assert condition.parts(SPEC) == (part,)
    given = batch()
    assert condition.observe(given)[0] is given[key]
    assert torch.equal(condition.sample({"seed": SEEDS[:2], **given})[0], given[key])
    for message in ("labels", "clusters", "representations"):
        if key[:4] in message:
            with pytest.raises(UserError, match=f"needs {message}"):
                condition.parts(BARE)


def test_classes_are_drawn_evenly_and_by_seed():
    condition = built(ClassCondition())
    (labels,) = condition.sample({"seed": SEEDS})
    assert labels.dtype == torch.int64
    counts = torch.bincount(labels, minlength=10)
    assert len(counts) == 10
    assert bool(((counts - 2000).abs() < 5 * 2000**0.5).all())
    assert torch.equal(condition.sample({"seed": SEEDS.flip(0)})[0], labels.flip(0))


def test_clusters_are_drawn_as_often_as_they_occur():
    condition = built(ClusterCondition())
    (clusters,) = condition.sample({"seed": SEEDS})
    counts = torch.bincount(clusters, minlength=3)
    expected = torch.tensor(SIZES) / sum(SIZES) * len(SEEDS)
    assert len(counts) == 3
    assert bool(((counts - expected).abs() < 5 * expected.sqrt()).all())
    assert torch.equal(condition.sample({"seed": SEEDS.flip(0)})[0], clusters.flip(0))


def test_empty_clusters_are_never_drawn():
    spec = DataSpec((1, 8, 8), columns={"cluster": {"shape": [], "sizes": [0, 5, 0, 5, 0]}})
    (clusters,) = built(ClusterCondition(), spec).sample({"seed": SEEDS})
    assert set(clusters.tolist()) == {1, 3}


@pytest.mark.parametrize(("condition", "key"), [(ClassCondition(), "label"), (ClusterCondition(), "cluster")])
@pytest.mark.parametrize(("wrong", "message"), [(10, "class 10 is out of range"), (-1, "class -1 is out of range")])
def test_a_label_out_of_range_is_told(condition, key, wrong, message):
    with pytest.raises(UserError, match=message):
        built(condition).sample({"seed": SEEDS[:2], key: torch.tensor([0, wrong])})


def test_joint_conditions_in_order():
    condition = JointCondition([RepresentationCondition(), ClassCondition()])
    assert condition.needs == {"representation", "label"}
    assert condition.parts(SPEC) == (Vector(6), Classes(10))
    given = batch()
    observed = condition.observe(given)
    assert observed[0] is given["representation"]
    assert observed[1] is given["label"]
    sampled = condition.sample({"seed": SEEDS[:2], **given})
    assert torch.equal(sampled[0], given["representation"])
    with pytest.raises(UserError, match="needs labels"):
        JointCondition([ClassCondition()]).parts(BARE)


@pytest.fixture
def prior(make_stage, awake, save, tmp_path):
    """Make the checkpoint of a generator of representations."""

    def make(condition=None, spec=SPEC, name="prior.ckpt"):
        stage = awake(make_stage(condition, codec=Representations()).build(spec)).eval()
        return stage, save(stage, tmp_path / name)

    return make


def test_representations_come_from_the_prior(prior):
    stage, path = prior()
    condition = built(RepresentationCondition())
    with pytest.raises(UserError, match="give its checkpoint with --prior"):
        condition.sample({"seed": SEEDS[:2]})
    condition.use_prior(path)
    seeds = torch.arange(30)
    (sampled,) = condition.sample({"seed": seeds})
    assert torch.equal(sampled, stage.sample({"seed": seeds}))
    assert torch.equal(built(RepresentationCondition(path)).sample({"seed": seeds})[0], sampled)
    order = torch.randperm(30)
    assert torch.equal(condition.sample({"seed": seeds[order]})[0], sampled[order])


def test_prior_and_generator_of_one_seed_draw_apart(prior):
    stage, _ = prior()
    assert stage.codec.stream == Representations.stream != 0


def test_a_class_conditional_prior_hears_the_label(prior):
    stage, path = prior(ClassCondition())
    condition = built(JointCondition([RepresentationCondition(), ClassCondition()]))
    condition.use_prior(path)
    labels = torch.tensor([7, 7, 2])
    sampled = condition.sample({"seed": SEEDS[:3], "label": labels})
    assert torch.equal(sampled[0], stage.sample({"seed": SEEDS[:3], "label": labels}))
    assert torch.equal(sampled[1], labels)
    # without a label both draw the same one
    representation, drawn = condition.sample({"seed": SEEDS[:3]})
    assert torch.equal(representation, stage.sample({"seed": SEEDS[:3], "label": drawn}))


def test_a_prior_of_other_representations_is_rejected(prior):
    spec = DataSpec((1, 8, 8), 10, SPEC.columns, {"representation": "encoder-2"})
    _, path = prior(spec=spec)
    condition = built(RepresentationCondition(path))
    with pytest.raises(UserError, match="prior models representations encoder-2, the generator was trained on encoder"):
        condition.sample({"seed": SEEDS[:2]})
    unknown = DataSpec((1, 8, 8), 10, SPEC.columns)
    _, path = prior(spec=unknown, name="unknown.ckpt")  # says nothing of its encoder: nothing to contradict
    assert built(RepresentationCondition(path)).sample({"seed": SEEDS[:2]})[0].shape == (2, 6)


def test_what_is_no_prior_is_told(make_stage, save, tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        built(RepresentationCondition(tmp_path / "absent.ckpt")).sample({"seed": SEEDS[:2]})
    images = save(make_stage().build(SPEC), tmp_path / "images.ckpt")
    with pytest.raises(UserError, match=r"the prior makes images of shape \(1, 8, 8\)"):
        built(RepresentationCondition(images)).sample({"seed": SEEDS[:2]})
    narrow = DataSpec((1, 8, 8), columns={"representation": {"shape": [5]}})
    short = save(make_stage(codec=Representations()).build(narrow), tmp_path / "short.ckpt")
    with pytest.raises(UserError, match="of 6 numbers"):
        built(RepresentationCondition(short)).sample({"seed": SEEDS[:2]})


def test_a_prior_is_no_part_of_the_generators_checkpoint(make_stage, prior):
    _, path = prior()
    stage = make_stage(RepresentationCondition(path)).build(SPEC)
    stage.sample({"seed": torch.arange(2)})  # the prior is loaded now
    alone = make_stage(RepresentationCondition()).build(SPEC)
    assert stage.state_dict().keys() == alone.state_dict().keys()
    assert len(list(stage.parameters())) == len(list(alone.parameters()))


# instances

INSTANCES = DataSpec((1, 8, 8), classes=10, columns={"instance": {"shape": [6]}}, identities={"instance": "encoder-1"})


def bank(folder, encoder="encoder-1", labels=True, rows=5):
    identity = {"dataset": "d", "split": "instances", "transform": "g", "representation": encoder}
    writer = StoreWriter(folder, rows, 2, 4, identity)
    for shard in writer.shards:
        index = np.arange(shard.start, shard.stop)
        found = np.eye(6, dtype=np.float32)[index][:, None].repeat(2, 1) * 3  # image i lies on axis i
        found[:, 1] *= -1
        columns = {"representation": found}
        if labels:
            columns["labels"] = np.stack([index, index + 5], 1)[:, None].repeat(2, 1)
        writer.write(shard, columns)
    writer.finish({name: {} for name in columns})
    return folder


def test_instances_are_drawn_by_seed_with_the_label_of_a_neighbour(tmp_path):
    joint = JointCondition([ClassCondition(), InstanceCondition()])
    assert joint.needs == {"label", "instance"}
    assert joint.parts(INSTANCES) == (Classes(10), Vector(6))
    joint.use_instances(bank(tmp_path / "bank"))
    label, instance = joint.sample({"seed": SEEDS})
    drawn = instance.argmax(1)
    assert torch.bincount(drawn, minlength=5).float().div(len(SEEDS)).sub(0.2).abs().max() < 0.02  # uniform
    assert torch.equal(instance, torch.eye(6)[drawn])  # view 0
    assert (label % 5 == drawn).all()
    assert (label >= 5).float().mean() == pytest.approx(0.5, abs=0.02)
    again, same = joint.sample({"seed": SEEDS[7:9]})
    assert torch.equal(again, label[7:9])
    assert torch.equal(same, instance[7:9])
    chosen, _ = joint.sample({"seed": SEEDS[:2], "label": torch.tensor([1, 2])})
    assert chosen.tolist() == [1, 2]


def test_networks_are_told_instances_of_length_one():
    condition = InstanceCondition()
    assert condition.parts(INSTANCES) == (Vector(6),)
    found = torch.randn(3, 6)
    for raw in (condition.observe({"instance": found}), condition.sample({"instance": 7 * found})):
        torch.testing.assert_close(raw, (found / found.norm(dim=1, keepdim=True),))
    assert torch.equal(InstanceCondition(unit=False).observe({"instance": found})[0], found)


def test_instances_that_do_not_fit(tmp_path):
    condition = InstanceCondition()
    with pytest.raises(UserError, match="rcg neighbours"):
        condition.parts(SPEC)
    condition.parts(INSTANCES)
    with pytest.raises(UserError, match="--instances"):
        condition.sample({"seed": SEEDS[:2]})
    with pytest.raises(UserError, match=r"encoder-2.*encoder-1"):
        condition.use_instances(bank(tmp_path / "other", "encoder-2"))
    joint = JointCondition([ClassCondition(), InstanceCondition()])
    joint.parts(INSTANCES)
    joint.use_instances(bank(tmp_path / "bare", labels=False))
    with pytest.raises(UserError, match="labels of their neighbours"):
        joint.sample({"seed": SEEDS[:2]})
