"""Beginning with the weights of another run: what fits, what is resized, what is told."""

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
from rcg_lightning.stages.stage_folder import save_stage, stage_content
from rcg_lightning.stages.warm_start import resized
from rcg_lightning.types import DataSpec

TABLE = "conditioner.parts.0.table.weight"


def spec(classes=10, side=8, numbers=6, encoder="one"):
    columns = {"representation": {"shape": [numbers]}}
    return DataSpec((1, side, side), classes, columns, {"representation": encoder})


def dit(make_stage, condition=None, drop=0.2, ema=None, width=16, **kept):
    denoiser = Denoiser(DiT(2, width, 2, 2), CosineSchedule(100))
    given = {"denoiser": denoiser, "conditioner": Conditioner(drop=drop), "ema": ema or EMA(0.5)}
    return make_stage(condition or ClassCondition(), **given).build(spec(**kept))


@pytest.fixture
def written(make_stage, awake, save, tmp_path):
    """The checkpoint of a DiT by class, all of whose weights were moved."""
    stage = awake(dit(make_stage))
    stage.ema.updates = 7
    return save(stage, tmp_path / "old.ckpt")


def same(one, other, names):
    one, other = one.state_dict(), other.state_dict()
    return all(torch.equal(one[name], other[name]) for name in names)


def test_the_same_stage_takes_everything_over(make_stage, written):
    from rcg_lightning.stages.base import Stage

    stage, old = dit(make_stage), Stage.load(written)
    lines = stage.start_from(written)
    assert same(stage, old, old.state_dict())
    assert stage.ema.updates == 7
    count = sum(not name.startswith("ema.") for name in old.state_dict())
    assert lines == [f"taken over: {count} tensors"]


@pytest.mark.parametrize("kind", ["folder", "bundle"])
def test_from_folders_as_from_checkpoints(make_stage, written, tmp_path, kind):
    place = tmp_path / "out" / ("generator" if kind == "bundle" else "")
    save_stage(place, stage_content(written))
    first, second = dit(make_stage), dit(make_stage)
    assert first.start_from(written) == second.start_from(tmp_path / "out")
    assert same(first, second, first.state_dict())


def test_other_classes_leave_their_table_fresh(make_stage, written):
    stage = dit(make_stage, classes=4)
    fresh = stage.state_dict()[TABLE].clone()
    lines = stage.start_from(written)
    assert torch.equal(stage.state_dict()[TABLE], fresh)
    assert torch.equal(stage.ema.averaged()["conditioner"].parts[0].table.weight, fresh)
    assert f"fresh: {TABLE}, (5, 16): 4 classes, the file knows 10" in lines
    # as many rows as the file, but not as many classes
    stage = dit(make_stage, classes=11, drop=0.0)
    fresh = stage.state_dict()[TABLE].clone()
    stage.start_from(written)
    assert torch.equal(stage.state_dict()[TABLE], fresh)


def test_a_table_without_null_keeps_its_classes(make_stage, written):
    old = stage_content(written)["state_dict"]
    stage = dit(make_stage, drop=0.0)
    lines = stage.start_from(written)
    assert torch.equal(stage.state_dict()[TABLE], old[TABLE][:10])
    assert any("without the file's null condition" in line for line in lines)


def test_another_image_size_and_another_condition(make_stage, written):
    """Fixed positions are computed; the network is the same for every size."""
    stage = dit(make_stage, RepresentationCondition(), side=16, encoder="two")
    lines = stage.start_from(written)
    old = stage_content(written)["state_dict"]
    names = [name for name in old if name.startswith("denoiser.")]
    assert all(torch.equal(stage.state_dict()[name], old[name]) for name in names)
    assert any(line.startswith("fresh: conditioner.parts.0.linear.weight") for line in lines)
    assert f"not used: {TABLE}" in lines


def test_another_encoder_is_told(make_stage, save, tmp_path):
    old = save(dit(make_stage, RepresentationCondition()), tmp_path / "old.ckpt")
    lines = dit(make_stage, RepresentationCondition(), encoder="two").start_from(old)
    assert lines[-1] == "representation: of two here, of one in the file"


def test_an_average_that_is_not_there_begins_as_the_weights(make_stage, written):
    stage = dit(make_stage, ema=EMA({"ema": 0.5, "long": 0.9}))
    lines = stage.start_from(written)
    old = stage_content(written)["state_dict"]
    name = "network.network.embed.weight"
    assert torch.equal(stage.ema.averaged("ema").state_dict()[name], old[f"ema.copies.ema.{name}"])
    assert torch.equal(stage.ema.averaged("long").state_dict()[name], old["denoiser.network.embed.weight"])
    assert "EMA weights long: begin with the trained weights, the file lacks it" in lines


def test_an_rdm_of_other_representations(make_stage, awake, save, tmp_path):
    def rdm(numbers):
        from rcg_lightning.pretrained.codecs import Representations

        denoiser = Denoiser(ResidualMLP(16, 2), CosineSchedule(100))
        return make_stage(NoCondition(), codec=Representations(), denoiser=denoiser).build(spec(numbers=numbers))

    old = save(awake(rdm(6)), tmp_path / "old.ckpt")
    stage = rdm(9)
    lines = stage.start_from(old)
    assert same(stage, rdm(9), ["denoiser.network.input_proj.weight", "denoiser.network.out_linear.weight"])
    assert "fresh: denoiser.network.input_proj.weight, (16, 9): the file has (16, 6)" in lines
    name = "denoiser.network.blocks.1.time.weight"
    assert torch.equal(stage.state_dict()[name], stage_content(old)["state_dict"][name])


def test_what_cannot_begin(make_stage, written, save, tmp_path):
    with pytest.raises(UserError, match=r"nothing in .* fits"):
        make_stage(denoiser=Denoiser(ResidualMLP(24, 1, 20, 28), CosineSchedule(100))).build(spec()).start_from(written)
    with pytest.raises(UserError, match="no checkpoint at"):
        dit(make_stage).start_from(tmp_path / "none.ckpt")
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="no checkpoint of this project"):
        dit(make_stage).start_from(tmp_path / "other.pth")
    content = stage_content(written)
    content["stage"] = {"class_path": "rcg_lightning.stages.ssl.MoCoV3Stage", "init_args": {}}
    save_stage(tmp_path / "moco", content)
    with pytest.raises(UserError, match="begin with one of the same class"):
        dit(make_stage).start_from(tmp_path / "moco")


def test_position_tables_are_resized_as_images():
    rows = torch.linspace(-1, 1, 8)
    grid = torch.stack([rows[:, None].expand(8, 8), rows.expand(8, 8)], -1).reshape(1, 64, 2)
    table = torch.cat([torch.full((1, 1, 2), 9.0), grid], dim=1)
    larger = resized(table, torch.zeros(1, 257, 2))
    assert torch.equal(larger[:, 0], table[:, 0])  # the row in front is no place
    inner = larger[0, 1:].reshape(16, 16, 2)[4:-4, 4:-4]  # beyond, the border is repeated
    steps = inner[1:, :, 0] - inner[:-1, :, 0]
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / 7), rtol=1e-4, atol=0)
    torch.testing.assert_close(inner[..., 0], inner[..., 1].T)
    assert resized(table, torch.zeros(1, 40, 2)) is None
    assert resized(grid, torch.zeros(1, 17, 2)) is None
