"""Checkpoints of generators: rebuilt from Python or a config, without online encoders, and resumed after a kill."""

import jsonargparse
import pytest
import torch

from helpers.killed_run import KillAtStep, Killed
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.config import describe
from rcg_lightning.core.samplers import DDIM
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
    spec = DataSpec((1, 8, 8), classes=10)
    first, again = (make_stage(ClassCondition()).build(spec) for _ in range(2))
    assert again.identity == first.identity
    assert make_stage(ClassCondition(), sampler=DDIM(5)).build(spec).identity != first.identity
    assert awake(again).identity != first.identity


@pytest.fixture
def encoder(tmp_path):
    """Principal components with random directions: 6-d representations of digits."""
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

    again = Stage.load(tmp_path / "last.ckpt")  # without the encoder
    assert again.spec.identities["representation"] == encoder.identity
    given = {"seed": torch.arange(3), "label": torch.arange(3), "representation": torch.randn(3, 6)}
    assert torch.equal(again.sample(given), stage.eval().sample(given))
    images = torch.rand(3, 1, 8, 8)
    if use != "codec":
        observed = stage.observed_conditions({"image": images, "label": torch.arange(3)})
        torch.testing.assert_close(observed["representation"], encoder(images))

    other = make_stage(conditions[use]() if use in conditions else None, **settings)
    trainer(tmp_path, 3).fit(other, digits(), ckpt_path=tmp_path / "last.ckpt")  # resumes
    assert other.ema.updates == 3


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_a_killed_run_continues_to_the_last_bit(make_stage, tmp_path, trainer, digits):
    """With EMA, drop, noise, random timesteps, a falling learning rate and validation; killed at step 4 of 6, when the
    last checkpoint is of step 3."""

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
        run("killed", callbacks=[KillAtStep(4)])
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
