"""Warm start from the weights of another run: matching and resized tensors, and the report."""

import pytest
import torch

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.schedule import CosineSchedule
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.rdm_mlp import ResidualMLP
from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.stage_folder import save_stage, stage_content
from rcg_lightning.stages.warm_start import resized
from rcg_lightning.types import DataSpec

TABLE = "conditioner.parts.0.table.weight"


def spec(classes=10, side=8, dim=6, encoder="one"):
    columns = {"representation": {"shape": [dim]}}
    return DataSpec((1, side, side), classes, columns, {"representation": encoder})


def dit(make_stage, condition=None, drop=0.2, ema=None, width=16, **spec_settings):
    denoiser = Denoiser(DiT(2, width, 2, 2), CosineSchedule(100))
    given = {"denoiser": denoiser, "conditioner": Conditioner(drop=drop), "ema": ema or EMA(0.5)}
    return make_stage(condition or ClassCondition(), **given).build(spec(**spec_settings))


@pytest.fixture
def written(make_stage, awake, save, tmp_path):
    """The checkpoint of a class-conditional DiT with random weights."""
    stage = awake(dit(make_stage))
    stage.ema.updates = 7
    return save(stage, tmp_path / "old.ckpt")


def equal_tensors(one, other, names):
    one, other = one.state_dict(), other.state_dict()
    return all(torch.equal(one[name], other[name]) for name in names)


def test_the_same_stage_takes_over_all_weights(make_stage, written):
    stage, old = dit(make_stage), Stage.load(written)
    lines = stage.start_from(written)
    assert equal_tensors(stage, old, old.state_dict())
    assert stage.ema.updates == 7
    count = sum(not name.startswith("ema.") for name in old.state_dict())
    assert lines == [f"taken over: {count} tensors"]


@pytest.mark.parametrize("kind", ["folder", "bundle"])
def test_folders_serve_as_checkpoints_do(make_stage, written, tmp_path, kind):
    folder = tmp_path / "out" / ("generator" if kind == "bundle" else "")
    save_stage(folder, stage_content(written))
    first, second = dit(make_stage), dit(make_stage)
    assert first.start_from(written) == second.start_from(tmp_path / "out")
    assert equal_tensors(first, second, first.state_dict())


def test_another_number_of_classes_leaves_their_embedding_fresh(make_stage, written):
    stage = dit(make_stage, classes=4)
    fresh = stage.state_dict()[TABLE].clone()
    lines = stage.start_from(written)
    assert torch.equal(stage.state_dict()[TABLE], fresh)
    assert torch.equal(stage.ema.averaged()["conditioner"].parts[0].table.weight, fresh)
    assert f"fresh: {TABLE}, (5, 16): 4 classes, the file has 10" in lines
    # the same number of rows as in the file, but another number of classes
    stage = dit(make_stage, classes=11, drop=0.0)
    fresh = stage.state_dict()[TABLE].clone()
    stage.start_from(written)
    assert torch.equal(stage.state_dict()[TABLE], fresh)


def test_a_class_embedding_without_null_takes_over_the_classes(make_stage, written):
    old = stage_content(written)["state_dict"]
    stage = dit(make_stage, drop=0.0)
    lines = stage.start_from(written)
    assert torch.equal(stage.state_dict()[TABLE], old[TABLE][:10])
    assert any("null condition" in line for line in lines)


def test_another_image_size_and_another_condition(make_stage, written):
    """Fixed position tables are computed; all other weights of the network fit every size."""
    stage = dit(make_stage, RepresentationCondition(), side=16, encoder="two")
    lines = stage.start_from(written)
    old = stage_content(written)["state_dict"]
    names = [name for name in old if name.startswith("denoiser.")]
    assert all(torch.equal(stage.state_dict()[name], old[name]) for name in names)
    assert any(line.startswith("fresh: conditioner.parts.0.linear.weight") for line in lines)
    assert f"not used: {TABLE}" in lines


def test_another_encoder_is_reported(make_stage, save, tmp_path):
    old = save(dit(make_stage, RepresentationCondition()), tmp_path / "old.ckpt")
    lines = dit(make_stage, RepresentationCondition(), encoder="two").start_from(old)
    assert lines[-1] == "representation: two here, one in the file"


def test_missing_ema_weights_start_from_the_trained_weights(make_stage, written):
    stage = dit(make_stage, ema=EMA({"ema": 0.5, "long": 0.9}))
    lines = stage.start_from(written)
    old = stage_content(written)["state_dict"]
    name = "network.network.embed.weight"
    assert torch.equal(stage.ema.averaged("ema").state_dict()[name], old[f"ema.copies.ema.{name}"])
    assert torch.equal(stage.ema.averaged("long").state_dict()[name], old["denoiser.network.embed.weight"])
    assert any(line.startswith("EMA weights long: not in the file") for line in lines)


def test_an_rdm_of_other_representations(make_stage, awake, save, tmp_path):
    def rdm(dim):
        denoiser = Denoiser(ResidualMLP(16, 2), CosineSchedule(100))
        return make_stage(NoCondition(), codec=Representations(), denoiser=denoiser).build(spec(dim=dim))

    old = save(awake(rdm(6)), tmp_path / "old.ckpt")
    stage = rdm(9)
    lines = stage.start_from(old)
    assert equal_tensors(stage, rdm(9), ["denoiser.network.input_proj.weight", "denoiser.network.out_linear.weight"])
    assert "fresh: denoiser.network.input_proj.weight, (16, 9): the file has (16, 6)" in lines
    name = "denoiser.network.blocks.1.time.weight"
    assert torch.equal(stage.state_dict()[name], stage_content(old)["state_dict"][name])


def test_an_unsuitable_file_is_named(make_stage, written, save, tmp_path):
    with pytest.raises(UserError, match="fits"):
        make_stage(denoiser=Denoiser(ResidualMLP(24, 1, 20, 28), CosineSchedule(100))).build(spec()).start_from(written)
    with pytest.raises(UserError, match="no checkpoint at"):
        dit(make_stage).start_from(tmp_path / "none.ckpt")
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not a checkpoint"):
        dit(make_stage).start_from(tmp_path / "other.pth")
    content = stage_content(written)
    content["stage"] = {"class_path": "rcg_lightning.stages.ssl.MoCoV3Stage", "init_args": {}}
    save_stage(tmp_path / "moco", content)
    with pytest.raises(UserError, match="class"):
        dit(make_stage).start_from(tmp_path / "moco")


def test_position_tables_are_resized_as_images():
    rows = torch.linspace(-1, 1, 8)
    grid = torch.stack([rows[:, None].expand(8, 8), rows.expand(8, 8)], -1).reshape(1, 64, 2)
    table = torch.cat([torch.full((1, 1, 2), 9.0), grid], dim=1)
    larger = resized(table, torch.zeros(1, 257, 2))
    assert torch.equal(larger[:, 0], table[:, 0])  # the first row is not a position
    inner = larger[0, 1:].reshape(16, 16, 2)[4:-4, 4:-4]  # without the border, which is repeated
    steps = inner[1:, :, 0] - inner[:-1, :, 0]
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / 7), rtol=1e-4, atol=0)
    torch.testing.assert_close(inner[..., 0], inner[..., 1].T)
    assert resized(table, torch.zeros(1, 40, 2)) is None
    assert resized(grid, torch.zeros(1, 17, 2)) is None
