import pytest
import torch

from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.types import DataSpec, Vector

SEEDS = torch.arange(2)


def test_representations_are_read_from_the_batch(spec, bare_spec):
    condition = RepresentationCondition()
    assert condition.needs == {"representation"}
    assert condition.parts(spec) == (Vector(6),)
    representation = torch.randn(2, 6)
    assert condition.observe({"representation": representation})[0] is representation
    assert torch.equal(condition.sample({"seed": SEEDS, "representation": representation})[0], representation)
    with pytest.raises(UserError, match="needs representations"):
        condition.parts(bare_spec)


def test_representations_are_sampled_from_the_prior(prior, built):
    stage, path = prior()
    condition = built(RepresentationCondition())
    with pytest.raises(UserError, match="--prior"):
        condition.sample({"seed": SEEDS})
    condition.use_prior(path)
    seeds = torch.arange(30)
    (sampled,) = condition.sample({"seed": seeds})
    assert torch.equal(sampled, stage.sample({"seed": seeds}))
    assert torch.equal(built(RepresentationCondition(path)).sample({"seed": seeds})[0], sampled)
    order = torch.randperm(30)
    assert torch.equal(condition.sample({"seed": seeds[order]})[0], sampled[order])


def test_prior_and_generator_of_one_seed_have_different_noise(prior):
    stage, _ = prior()
    assert stage.codec.stream == Representations.stream != 0


def test_a_prior_of_another_encoder_is_rejected(prior, built, spec):
    other = DataSpec((1, 8, 8), 10, spec.columns, {"representation": "encoder-2"})
    _, path = prior(given=other)
    condition = built(RepresentationCondition(path))
    with pytest.raises(UserError, match=r"encoder-2.*encoder-1"):
        condition.sample({"seed": SEEDS})
    unknown = DataSpec((1, 8, 8), 10, spec.columns)
    _, path = prior(given=unknown, name="unknown.ckpt")  # its encoder is not recorded, so nothing contradicts
    assert built(RepresentationCondition(path)).sample({"seed": SEEDS})[0].shape == (2, 6)


def test_an_unsuitable_prior_is_named(make_stage, save, built, spec, tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        built(RepresentationCondition(tmp_path / "absent.ckpt")).sample({"seed": SEEDS})
    images = save(make_stage().build(spec), tmp_path / "images.ckpt")
    with pytest.raises(UserError, match=r"images of shape \(1, 8, 8\)"):
        built(RepresentationCondition(images)).sample({"seed": SEEDS})
    narrow = DataSpec((1, 8, 8), columns={"representation": {"shape": [5]}})
    short = save(make_stage(codec=Representations()).build(narrow), tmp_path / "short.ckpt")
    with pytest.raises(UserError, match="6 dimensions"):
        built(RepresentationCondition(short)).sample({"seed": SEEDS})


def test_a_prior_is_not_part_of_the_generators_checkpoint(make_stage, prior, spec):
    _, path = prior()
    stage = make_stage(RepresentationCondition(path)).build(spec)
    stage.sample({"seed": SEEDS})  # loads the prior
    alone = make_stage(RepresentationCondition()).build(spec)
    assert stage.state_dict().keys() == alone.state_dict().keys()
    assert len(list(stage.parameters())) == len(list(alone.parameters()))
