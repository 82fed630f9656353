"""`rcg convert` for IC-GAN from the command line: folders in both directions, and rejected files of whole objects."""

import pickle
import sys
import types

import pytest
import torch

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.instance import InstanceCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.networks.biggan import BigGANDiscriminator, BigGANGenerator
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.spectral import SpectralMaps
from rcg_lightning.pretrained.codecs import Pixels
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.stages.stage_folder import stage_content
from rcg_lightning.types import DataSpec

BOTH = JointCondition([ClassCondition(), InstanceCondition()])
WIDTHS = {0: (None, None), 1: (6, 32), 2: ([5, 6], [16, 16])}  # of a condition's parts, in both networks


def biggan(condition, hierarchical=True, spectral=True):
    """A BigGAN for images of 64 pixels, 7 classes and instances of 9 dimensions."""
    spec = DataSpec((3, 64, 64), 7, {"instance": {"shape": [9]}})
    parts = len(condition.parts(spec))
    generator_dim, discriminator_dim = WIDTHS[parts]
    stage = AdversarialStage(
        codec=Pixels(),
        condition=condition,
        generator=BigGANGenerator(2, 15, hierarchical, [16]),
        discriminator=BigGANDiscriminator(2, [16]),
        conditioner=Conditioner(generator_dim, drop=0.0, maps=SpectralMaps() if spectral else None),
        discriminator_conditioner=Conditioner(discriminator_dim, drop=0.0, maps=SpectralMaps(tables=True))
        if parts
        else None,
        optimizer=AdamW(),
        discriminator_optimizer=AdamW(),
        ema=EMA(0.99, buffers=True),
    )
    return stage.build(spec)


@pytest.mark.parametrize("condition", [NoCondition(), ClassCondition(), InstanceCondition(), BOTH])
@pytest.mark.parametrize("hierarchical", [True, False])
def test_every_condition_is_exported_and_converted_back(rcg, save, awake, tmp_path, condition, hierarchical):
    stage = awake(biggan(condition, hierarchical))
    native = save(stage, tmp_path / "last.ckpt")
    code, output, error = rcg("convert", "--to", "official", "--from", native, "--out", tmp_path / "official")
    assert code == 0, error
    assert sorted(file.name for file in (tmp_path / "official").iterdir()) == ["D.pth", "G.pth", "G_ema.pth"]
    code, output, error = rcg("convert", "--from", tmp_path / "official", "--out", tmp_path / "again")
    assert code == 0, error
    assert "missing     none" in output
    assert "unknown" not in output
    first, again = stage_content(native), stage_content(tmp_path / "again")
    for name, tensor in first["state_dict"].items():
        if name.startswith(("generator.", "conditioner.", "discriminator", "ema.copies.")):
            assert torch.equal(tensor, again["state_dict"][name]), name
    converted, mine = again["stage"]["init_args"], first["stage"]["init_args"]
    assert converted["condition"]["class_path"] == mine["condition"]["class_path"]
    assert converted["generator"]["init_args"]["hierarchical"] == hierarchical
    assert converted["conditioner"]["init_args"]["dim"] == mine["conditioner"]["init_args"]["dim"]


def test_a_converted_generator_samples_from_instances(rcg, raised, save, awake, tmp_path):
    native = save(awake(biggan(BOTH)), tmp_path / "last.ckpt")
    assert rcg("convert", "--to", "official", "--from", native, "--out", tmp_path / "official")[0] == 0
    arguments = ["convert", "--from", tmp_path / "official" / "G_ema.pth", "--out", tmp_path / "icgan"]
    code, output, error = rcg(*arguments)
    assert code == 0, error
    assert "missing     G: the other one is used instead; D: a fresh discriminator is used instead" in output
    sampling = ["sample", "--checkpoint", tmp_path / "icgan", "--number", 3, "--accelerator", "cpu"]
    sampling += ["--out", tmp_path / "out"]
    for dim in (9, 8):
        writer = StoreWriter(tmp_path / f"bank{dim}", 5, 1, 5, {"split": "instances", "representation": "theirs"})
        rows = torch.randn(5, 1, dim).numpy()
        writer.write(writer.shards[0], {"representation": rows, "labels": torch.randint(7, (5, 1, 2)).numpy()})
        writer.finish({})
    code, output, error = rcg(*sampling, "--instances", tmp_path / "bank9")
    assert code == 0, error
    assert len(list((tmp_path / "out").rglob("*.png"))) >= 3
    assert "the generator reads [9]" in raised(*sampling, "--instances", tmp_path / "bank8")


def test_models_that_the_official_code_cannot_build_are_rejected(raised, save, tmp_path):
    stage = biggan(JointCondition([InstanceCondition(), ClassCondition()]))
    native = save(stage, tmp_path / "last.ckpt")
    output = raised("convert", "--to", "official", "--from", native, "--out", tmp_path / "official")
    assert "a class, an instance, or both in this order" in output
    native = save(biggan(InstanceCondition(), spectral=False), tmp_path / "unnormalised.ckpt")
    output = raised("convert", "--to", "official", "--from", native, "--out", tmp_path / "official")
    assert "SpectralMaps" in output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    native = save(biggan(BOTH), tmp_path / "both.ckpt")
    output = raised("convert", "--to", "official", "--from", native, "--out", tmp_path / "mine")
    assert "is not a folder of official files" in output
    assert not (tmp_path / "official").exists()


@pytest.fixture
def persistent(monkeypatch):
    """An object in the class that the official StyleGAN2 pickles its networks as."""
    module = types.ModuleType("torch_utils.persistence")
    kind = type("Persistent", (), {"__module__": "torch_utils.persistence"})
    module.Persistent = kind
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)
    return kind()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5, None])
@pytest.mark.parametrize("trust", [[], ["--trust_pickle", "true"]])
def test_a_pickled_stylegan2_is_rejected_with_advice(raised, persistent, tmp_path, protocol, trust):
    file = tmp_path / "network-snapshot.pkl"
    if protocol is None:
        torch.save({"G_ema": persistent}, file)
    else:
        file.write_bytes(pickle.dumps({"training_set_kwargs": {}, "G_ema": persistent}, protocol))
    output = raised("convert", "--from", file, "--out", tmp_path / "out", *trust)
    assert "holds whole objects, which are not read" in output
    assert "torch.save({k: n[k].state_dict() for k in ('G', 'G_ema', 'D')}" in output
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_files_is_rejected(raised, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").touch()
    output = raised("convert", "--from", tmp_path / "images", "--out", tmp_path / "out")
    assert "images holds 1.png, and no official model: give an official file, or the folder of D.pth" in output
