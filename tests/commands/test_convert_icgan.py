"""`rcg convert` for IC-GAN as a user types it: folders there and back, and files of whole objects refused."""

import pickle
import sys
import types

import pytest
import torch

from rcg_lightning.conditions import ClassCondition, InstanceCondition, JointCondition, NoCondition
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.networks.biggan import BigGANDiscriminator, BigGANGenerator
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.spectral import SpectralMaps
from rcg_lightning.pretrained.codecs import Pixels
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.stages.folder import stage_content
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import Facts

BOTH = JointCondition([ClassCondition(), InstanceCondition()])
WIDTHS = {0: (None, None), 1: (6, 32), 2: ([5, 6], [16, 16])}  # of a condition's parts, in both networks


def biggan(condition, hierarchical=True, spectral=True):
    """A BigGAN for pictures of 64 pixels, 7 classes and instances of 9 numbers."""
    facts = Facts((3, 64, 64), 7, {"instance": {"shape": [9]}})
    parts = len(condition.parts(facts))
    mine, its = WIDTHS[parts]
    stage = AdversarialStage(
        codec=Pixels(),
        condition=condition,
        generator=BigGANGenerator(2, 15, hierarchical, [16]),
        discriminator=BigGANDiscriminator(2, [16]),
        conditioner=Conditioner(mine, drop=0.0, maps=SpectralMaps() if spectral else None),
        discriminator_conditioner=Conditioner(its, drop=0.0, maps=SpectralMaps(tables=True)) if parts else None,
        optimizer=AdamW(),
        discriminator_optimizer=AdamW(),
        ema=EMA(0.99, buffers=True),
    )
    return stage.build(facts)


@pytest.mark.parametrize("condition", [NoCondition(), ClassCondition(), InstanceCondition(), BOTH])
@pytest.mark.parametrize("hierarchical", [True, False])
def test_there_and_back_under_every_condition(rcg, save, awake, tmp_path, condition, hierarchical):
    stage = awake(biggan(condition, hierarchical))
    native = save(stage, tmp_path / "last.ckpt")
    code, said, error = rcg("convert", "--to", "official", "--from", native, "--out", tmp_path / "official")
    assert code == 0, error
    assert sorted(file.name for file in (tmp_path / "official").iterdir()) == ["D.pth", "G.pth", "G_ema.pth"]
    code, said, error = rcg("convert", "--from", tmp_path / "official", "--out", tmp_path / "again")
    assert code == 0, error
    assert "missing     none" in said
    assert "unknown" not in said
    first, again = stage_content(native), stage_content(tmp_path / "again")
    for name, tensor in first["state_dict"].items():
        if name.startswith(("generator.", "conditioner.", "discriminator", "ema.copies.")):
            assert torch.equal(tensor, again["state_dict"][name]), name
    told, mine = again["stage"]["init_args"], first["stage"]["init_args"]
    assert told["condition"]["class_path"] == mine["condition"]["class_path"]
    assert told["generator"]["init_args"]["hierarchical"] == hierarchical
    assert told["conditioner"]["init_args"]["dim"] == mine["conditioner"]["init_args"]["dim"]


def test_what_was_converted_makes_pictures_of_instances(rcg, refused, save, awake, tmp_path):
    native = save(awake(biggan(BOTH)), tmp_path / "last.ckpt")
    assert rcg("convert", "--to", "official", "--from", native, "--out", tmp_path / "official")[0] == 0
    words = ["convert", "--from", tmp_path / "official" / "G_ema.pth", "--out", tmp_path / "icgan"]
    code, said, error = rcg(*words)
    assert code == 0, error
    assert "missing     G: the other one stands in for it; D: a fresh discriminator stands in" in said
    made = [
        "sample",
        "--checkpoint",
        tmp_path / "icgan",
        "--number",
        3,
        "--accelerator",
        "cpu",
        "--out",
        tmp_path / "out",
    ]
    for numbers in (9, 8):
        writer = StoreWriter(tmp_path / f"bank{numbers}", 5, 1, 5, {"split": "instances", "representation": "theirs"})
        rows = torch.randn(5, 1, numbers).numpy()
        writer.write(writer.shards[0], {"representation": rows, "labels": torch.randint(7, (5, 1, 2)).numpy()})
        writer.finish({})
    code, said, error = rcg(*made, "--instances", tmp_path / "bank9")
    assert code == 0, error
    assert len(list((tmp_path / "out").rglob("*.png"))) >= 3
    assert "the generator reads [9]" in refused(*made, "--instances", tmp_path / "bank8")


def test_what_the_official_code_cannot_build_does_not_go_back(refused, save, tmp_path):
    stage = biggan(JointCondition([InstanceCondition(), ClassCondition()]))
    native = save(stage, tmp_path / "last.ckpt")
    said = refused("convert", "--to", "official", "--from", native, "--out", tmp_path / "official")
    assert "a class, an instance, or both in this order" in said
    native = save(biggan(InstanceCondition(), spectral=False), tmp_path / "plain.ckpt")
    said = refused("convert", "--to", "official", "--from", native, "--out", tmp_path / "official")
    assert "SpectralMaps" in said
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    native = save(biggan(BOTH), tmp_path / "both.ckpt")
    said = refused("convert", "--to", "official", "--from", native, "--out", tmp_path / "mine")
    assert "is not a folder of official files" in said
    assert not (tmp_path / "official").exists()


@pytest.fixture
def persistent(monkeypatch):
    """An object as the official StyleGAN2 pickles its networks."""
    module = types.ModuleType("torch_utils.persistence")
    kind = type("Persistent", (), {"__module__": "torch_utils.persistence"})
    module.Persistent = kind
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)
    return kind()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5, None])
@pytest.mark.parametrize("trust", [[], ["--trust_pickle", "true"]])
def test_a_pickled_stylegan2_is_refused_with_the_way_out(refused, persistent, tmp_path, protocol, trust):
    file = tmp_path / "network-snapshot.pkl"
    if protocol is None:
        torch.save({"G_ema": persistent}, file)
    else:
        file.write_bytes(pickle.dumps({"training_set_kwargs": {}, "G_ema": persistent}, protocol))
    said = refused("convert", "--from", file, "--out", tmp_path / "out", *trust)
    assert "holds whole objects, which are not read" in said
    assert "torch.save({k: n[k].state_dict() for k in ('G', 'G_ema', 'D')}" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(refused, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").touch()
    said = refused("convert", "--from", tmp_path / "pictures", "--out", tmp_path / "out")
    assert "pictures holds 1.png, and no official model: give an official file, or the folder of D.pth" in said
