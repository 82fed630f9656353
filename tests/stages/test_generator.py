"""Sampling by seed, EMA weights, checkpoints and continuation: what holds for every generator."""

import jsonargparse
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.cluster import ClusterCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.config import describe
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.samplers import DDIM, Ancestral
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.principal_components import PrincipalComponents
from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder, encoder_settings
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.optimization import AdamW, CosineLR
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
    everything = stage.sample({"seed": seeds})
    assert everything.shape == (50, 1, 8, 8)
    assert 0 <= float(everything.min()) < float(everything.max()) <= 1
    assert len(everything.flatten(1).unique(dim=0)) == 50
    for size in (1, 7, 33):
        parts = [stage.sample({"seed": part}) for part in seeds.split(size)]
        assert torch.equal(torch.cat(parts), everything)
    order = torch.randperm(50)
    assert torch.equal(stage.sample({"seed": seeds[order]}), everything[order])
    twins = torch.tensor([3, 49, 3, 3, 19])
    assert torch.equal(stage.sample({"seed": twins}), everything[twins])


@pytest.mark.parametrize("kind", ["class", "representation", "joint"])
def test_given_conditions_stay_with_their_seed(make_stage, awake, kind):
    stage = awake(make(make_stage, kind))
    asked = {"seed": torch.arange(12) * 5, **{k: v for k, v in batch().items() if k in ("label", "representation")}}
    everything = stage.sample(asked)
    order = torch.randperm(12)
    assert torch.equal(stage.sample({name: rows[order] for name, rows in asked.items()}), everything[order])
    one = stage.sample({name: rows[4:5] for name, rows in asked.items()})
    assert torch.equal(one, everything[4:5])
    changed = dict(asked, label=(asked["label"] + 1) % 10, representation=asked["representation"] + 1)
    assert float((stage.sample(changed) - everything).flatten(1).abs().amax(1).min()) > 1e-4


def test_one_seed_under_two_conditions(make_stage, awake):
    stage = awake(make(make_stage, "class"))
    labels = torch.arange(10)
    together = stage.sample({"seed": torch.zeros(10, dtype=torch.long), "label": labels})
    for label in labels:
        alone = stage.sample({"seed": torch.zeros(1, dtype=torch.long), "label": label[None]})
        assert torch.equal(alone[0], together[label])


def test_sampling_leaves_training_as_it_was(make_stage, awake):
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


def test_guidance_and_sampler_can_be_told(make_stage, awake):
    stage = awake(make(make_stage, "class"))
    asked = {"seed": torch.arange(4)}
    plain = stage.sample(asked)
    assert torch.equal(stage.sample(asked, Guidance(1.0), DDIM(4)), plain)
    assert not torch.allclose(stage.sample(asked, Guidance(3.0)), plain)
    assert not torch.allclose(stage.sample(asked, sampler=DDIM(2)), plain)
    with pytest.raises(UserError, match="cannot be guided"):
        awake(make(make_stage, "none")).sample(asked, Guidance(2.0))
    with pytest.raises(UserError, match="drop 0"):
        awake(make(make_stage, "class", conditioner=Conditioner(drop=0.0))).sample(asked, Guidance(2.0))


def test_ema_weights_are_sampled_from(make_stage, awake):
    with_ema, without = make(make_stage, "class"), make(make_stage, "class", ema=None)
    awake(without)
    for name, module in (("network", without.denoiser), ("conditioner", without.conditioner)):
        with_ema.ema.averaged()[name].load_state_dict(module.state_dict())
    asked = {"seed": torch.arange(4)}
    assert torch.equal(with_ema.sample(asked), without.sample(asked))
    assert with_ema.for_sampling()[1] is not with_ema.conditioner
    alone = make(make_stage, "class", ema_conditioner=False)
    assert alone.for_sampling()[1] is alone.conditioner
    assert "conditioner" not in alone.ema.averaged()


def test_any_of_several_ema_weights_can_be_sampled_from(make_stage, awake):
    stage = awake(make(make_stage, "class", ema=EMA({"short": 0.5, "long": 0.9})))
    assert stage.ema_names == ["short", "long", "trained"]
    asked = {"seed": torch.arange(4)}
    made = {name: stage.sample(asked, ema_name=name) for name in stage.ema_names}
    assert torch.equal(stage.sample(asked), made["short"])
    assert not torch.allclose(made["short"], made["long"])
    without = make(make_stage, "class", ema=None)
    without.denoiser.load_state_dict(stage.denoiser.state_dict())
    without.conditioner.load_state_dict(stage.conditioner.state_dict())
    assert torch.equal(without.sample(asked), made["trained"])
    assert without.ema_names == ["trained"]
    with pytest.raises(UserError, match="no EMA weights 'middle': this generator has short, long, trained"):
        stage.sample(asked, ema_name="middle")


def test_images_and_representations_are_columns_of_a_store(make_stage, awake):
    stage = awake(make(make_stage, "class"))
    columns = stage.predict_step(batch(), 0)
    assert columns["image"].shape == (12, 8, 8, 1)
    assert columns["image"].dtype == torch.uint8
    rdm = awake(make(make_stage, "none", codec=Representations()))
    assert rdm.predict_step(batch(), 0)["representation"].shape == (12, 6)
    assert torch.equal(rdm(torch.arange(3)), rdm.sample({"seed": torch.arange(3)}))


def test_a_tile_has_a_row(make_stage):
    with pytest.raises(UserError, match="at least one row"):
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
def test_needs_are_what_is_read(make_stage, kind):
    stage = make(make_stage, kind)
    expected = {"none": set(), "joint": {"representation", "label"}, "class": {"label"}}.get(kind, {kind})
    assert stage.needs == {"image", *expected}
    stage.losses({name: rows for name, rows in batch().items() if name in stage.needs | {"index"}})
    assert make(make_stage, "class", codec=Representations()).needs == {"representation", "label"}


def test_ema_weights_follow_each_step(make_stage, tmp_path, trainer, digits):
    class Watch(Callback):
        """Keeps the weights after every step, when they are saved."""

        def on_train_batch_end(self, trainer, stage, *_):
            history.append([p.detach().clone() for p in stage.denoiser.parameters()])
            ema_names.append([p.clone() for p in stage.ema.averaged()["network"].parameters()])

    history, ema_names = [], []
    stage = make(make_stage, "class")
    start = [p.detach().clone() for p in stage.denoiser.parameters()]
    trainer(tmp_path, 3, callbacks=[Watch()]).fit(stage, digits())
    expected = start
    for weights, averaged in zip(history, ema_names, strict=True):
        expected = [0.5 * old + 0.5 * new for old, new in zip(expected, weights)]
        for ours, should in zip(averaged, expected):
            torch.testing.assert_close(ours, should)
    assert stage.ema.updates == 3


# -- checkpoints -------------------------------------------------------------------------------------------------------


CONFIG = {
    "class_path": "rcg_lightning.stages.diffusion.DiffusionStage",
    "init_args": {
        "codec": {"class_path": "rcg_lightning.pretrained.codecs.Pixels"},
        "condition": {"class_path": "rcg_lightning.conditions.class_label.ClassCondition"},
        "conditioner": {"drop": 0.2},
        "denoiser": {
            "network": {
                "class_path": "rcg_lightning.networks.rdm_mlp.ResidualMLP",
                "init_args": {"width": 16, "depth": 1},
            },
            "schedule": {"class_path": "rcg_lightning.core.schedule.LinearSchedule", "init_args": {"steps": 100}},
            "learned_variance": True,
        },
        "sampler": {"class_path": "rcg_lightning.core.samplers.Ancestral", "init_args": {"steps": 3}},
        "ema": {"decay": 0.5, "warmup": True},
        "guidance": {"scale": 2.0, "interval": [0.0, 0.8]},
        "optimizer": {"class_path": "rcg_lightning.stages.optimization.AdamW", "init_args": {"betas": [0.9, 0.99]}},
    },
}


def from_config():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=Stage)
    return parser.instantiate_classes(parser.parse_object({"model": CONFIG})).model


@pytest.mark.parametrize("origin", ["python", "config"])
def test_a_trained_checkpoint_samples_the_same(make_stage, awake, origin, tmp_path, trainer, digits):
    stage = make_stage(ClassCondition()) if origin == "python" else from_config()
    data = digits()
    awake(stage.build(data.spec))
    trainer(tmp_path, 2).fit(stage, data)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["global_step"] == 2
    expected = stage.eval().sample({"seed": torch.arange(5)})
    for again in (
        Stage.load(tmp_path / "last.ckpt"),
        Generator.load(tmp_path / "last.ckpt"),
        DiffusionStage.load_from_checkpoint(tmp_path / "last.ckpt"),
    ):
        assert type(again) is DiffusionStage
        assert describe(again) == describe(stage)
        assert again.identity == stage.identity
        assert again.spec == stage.spec
        assert torch.equal(again.sample({"seed": torch.arange(5)}), expected)
    if origin == "config":
        assert (again.guidance.scale, again.ema.warmup, again.ema.updates) == (2.0, True, 2)


def test_identity_is_of_weights_and_settings(make_stage, awake):
    first = make(make_stage, "class")
    assert make(make_stage, "class").identity == first.identity
    assert make(make_stage, "class", sampler=DDIM(5)).identity != first.identity
    assert awake(make(make_stage, "class")).identity != first.identity


@pytest.fixture
def encoder(tmp_path):
    """Principal components with random directions, 6 numbers of a digit."""
    torch.manual_seed(0)
    network = PrincipalComponents([1, 8, 8], 6)
    network.components.normal_()
    save_network(tmp_path / "encoder", network, encoder_settings(Preprocess([0.5], [0.5]), head=False))
    return TrainedEncoder(tmp_path / "encoder")


@pytest.mark.parametrize("use", ["condition", "joint", "codec"])
def test_an_online_encoder_stays_out_of_the_checkpoint(make_stage, use, encoder, tmp_path, trainer, digits):
    conditions = {
        "condition": lambda: RepresentationCondition(encoder=encoder),
        "joint": lambda: JointCondition([ClassCondition(), RepresentationCondition(encoder=encoder)]),
    }
    settings = {"codec": Representations(encoder)} if use == "codec" else {}
    stage = make_stage(conditions[use]() if use in conditions else None, **settings)
    assert "representation" not in stage.needs
    trainer(tmp_path, 2).fit(stage, digits())
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not [name for name in content["state_dict"] if "components" in name or "encoder" in name]
    assert str(tmp_path) not in str(content["stage"])

    again = Stage.load(tmp_path / "last.ckpt")  # where the encoder is not at hand
    assert again.spec.identities["representation"] == encoder.identity
    asked = {"seed": torch.arange(3), "label": torch.arange(3), "representation": torch.randn(3, 6)}
    assert torch.equal(again.sample(asked), stage.eval().sample(asked))
    images = torch.rand(3, 1, 8, 8)
    if use != "codec":
        observed = stage.observed_conditions({"image": images, "label": torch.arange(3)})
        torch.testing.assert_close(observed["representation"], encoder(images))

    other = make_stage(conditions[use]() if use in conditions else None, **settings)
    trainer(tmp_path, 3).fit(other, digits(), ckpt_path=tmp_path / "last.ckpt")  # resumes
    assert other.ema.updates == 3


# -- continuation ------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


class Kill(Callback):
    def on_train_batch_start(self, trainer, stage, batch, batch_idx):
        if trainer.global_step == 4:
            raise Killed


def test_a_killed_run_continues_to_the_last_bit(make_stage, tmp_path, trainer, digits):
    """Averages, drop, noise, random levels, a learning rate that falls, validation in between; killed at step 4 of 6
    with the last checkpoint at step 3."""

    def run(folder, resume=None, **settings):
        stage = make_stage(
            JointCondition([RepresentationCondition(), ClassCondition()]),
            conditioner=Conditioner(drop=0.3, noise=0.2),
            stratified=True,
            ema=EMA(0.9, warmup=True),
            optimizer=AdamW(lr=1e-2, lr_schedule=CosineLR(warmup=2)),
        )
        fit = trainer(tmp_path / folder, 6, checkpoint_every=3, val_check_interval=3, **settings)
        fit.fit(stage, digits(tmp_path), ckpt_path=resume)
        return torch.load(tmp_path / folder / "last.ckpt", weights_only=True)

    whole = run("whole")
    with pytest.raises(Killed):
        run("killed", callbacks=[Kill()])
    last = tmp_path / "killed" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    resumed = run("killed", resume=last)
    assert whole["global_step"] == resumed["global_step"] == 6
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
    theirs, ours = whole["optimizer_states"][0]["state"], resumed["optimizer_states"][0]["state"]
    for key, moments in theirs.items():
        assert all(torch.equal(value, ours[key][name]) for name, value in moments.items()), key
