import pickle
import resource

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from rcg_lightning.errors import UserError
from rcg_lightning.stages.base import Stage, check_spec
from rcg_lightning.stages.optimization import SGD, AdamW, CosineLR
from rcg_lightning.types import DataSpec

SPEC = DataSpec((1, 8, 8), classes=10)


class Line(Stage):
    """One linear map of the pixels, to zero."""

    def __init__(self, optimizer=None, width: int = 3, seed: int = 0) -> None:
        super().__init__(optimizer or SGD(lr=0.1, momentum=0.0), seed)
        self.width, self.steps, self.built = width, 0, 0

    def build_networks(self, spec: DataSpec) -> None:
        self.built += 1
        self.network = nn.Linear(spec.image[1] * spec.image[2], self.width)

    def losses(self, batch):
        return {"loss": 50 * self.network(batch["image"].flatten(1)).square().mean(), "other": torch.ones(())}

    def after_step(self) -> None:
        self.steps += 1


class OtherLine(Line):
    pass


def test_networks_are_built_once_from_the_spec():
    stage = Line()
    assert not list(stage.parameters())
    assert stage.build(SPEC) is stage
    weight = stage.network.weight
    assert weight.shape == (3, 64)
    stage.build(SPEC)
    assert stage.built == 1
    assert stage.network.weight is weight
    with pytest.raises(UserError, match=r"images of \(1, 8, 8\).*\(3, 8, 8\)"):
        stage.build(DataSpec((3, 8, 8)))


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_generator_unchanged():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = Line().build(SPEC).network.weight
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(2)
    assert torch.equal(Line().build(SPEC).network.weight, first)
    assert not torch.equal(Line(seed=1).build(SPEC).network.weight, first)


@pytest.mark.parametrize(
    ("given", "needs", "message"),
    [
        (DataSpec((1, 9, 8), 10), {"image"}, "images"),
        (DataSpec((1, 9, 8), 10), {"label"}, None),
        (DataSpec((1, 8, 8), 7), {"label"}, "10 classes.* 7"),
        (DataSpec((1, 8, 8), 7), {"image"}, None),
        (
            DataSpec((1, 8, 8), 10, identities={"representation": "b"}),
            {"representation"},
            "representation a",
        ),
        (DataSpec((1, 8, 8), 10, identities={"representation": "b"}), {"image"}, None),
        (DataSpec((1, 8, 8), 10, identities={"representation": "a"}), {"representation"}, None),
        (DataSpec((1, 8, 8), 10), {"representation"}, None),  # data without that store cannot contradict
    ],
)
def test_data_must_agree_in_the_keys_that_are_read(given, needs, message):
    built = DataSpec((1, 8, 8), 10, {"representation": {"shape": [6]}}, {"representation": "a"})
    if message is None:
        check_spec(built, given, frozenset(needs))
    else:
        with pytest.raises(UserError, match=message):
            check_spec(built, given, frozenset(needs))


def test_a_data_spec_is_restored_from_a_dict():
    spec = DataSpec((1, 8, 8), 10, {"representation": {"shape": [6]}}, {"dataset": "x"})
    assert DataSpec.from_dict(spec.to_dict()) == spec


def test_after_step_follows_the_optimizer_and_not_the_batch(tmp_path, trainer, digits):
    stage = Line()
    trainer(tmp_path, 3, accumulate_grad_batches=2).fit(stage, digits())
    assert stage.steps == 3
    assert stage.trainer.fit_loop.epoch_loop.batch_progress.total.processed == 6


def test_gradients_are_clipped(tmp_path, trainer, digits):
    distance = {}
    for clip in (None, 0.01):
        stage = Line(SGD(lr=1.0, momentum=0.0, clip=clip)).build(SPEC)
        start = stage.network.weight.detach().clone()
        trainer(tmp_path / str(clip), 1).fit(stage, digits())
        distance[clip] = float((stage.network.weight.detach() - start).norm())
    assert distance[None] > 0.1
    assert distance[0.01] <= 0.01 + 1e-6


def test_losses_are_logged(tmp_path, trainer, digits):
    fit = trainer(tmp_path, 2)
    fit.fit(Line(AdamW(lr=1e-2, lr_schedule=CosineLR(warmup=1))), digits())
    assert {"train/loss", "train/other", "val/loss", "val/other"} <= fit.callback_metrics.keys()


def test_a_stage_needs_a_data_module(tmp_path, trainer):
    batch = {"image": torch.rand(2, 1, 8, 8), "index": torch.arange(2)}
    with pytest.raises(UserError, match="data module"):
        trainer(tmp_path, 1).fit(Line(), DataLoader([batch], batch_size=None))
    trainer(tmp_path, 1).fit(Line().build(SPEC), DataLoader([batch], batch_size=None))


def test_a_checkpoint_rebuilds_its_stage(tmp_path, save):
    stage = Line(AdamW(lr=0.5, betas=(0.1, 0.2)), width=5, seed=9).build(SPEC)
    with torch.no_grad():
        stage.network.bias.fill_(7)
    path = save(stage, tmp_path / "a.ckpt")
    for again in (Stage.load(path), Line.load(path), Line.load_from_checkpoint(path), Stage.load(str(path))):
        assert type(again) is Line
        assert (again.width, again.seed, again.optimizer.lr) == (5, 9, 0.5)
        assert torch.equal(again.network.bias, stage.network.bias)
        assert again.spec == SPEC
        assert not again.training


def test_an_unsuitable_file_is_named(tmp_path, save):
    with pytest.raises(UserError, match="absent"):
        Stage.load(tmp_path / "absent.ckpt")
    path = save(Line().build(SPEC), tmp_path / "line.ckpt")
    with pytest.raises(UserError, match="a Line, but a OtherLine"):
        OtherLine.load(path)
    torch.save({"model": torch.zeros(2)}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="not a checkpoint"):
        Stage.load(tmp_path / "foreign.ckpt")
    torch.save([torch.zeros(2)], tmp_path / "list.ckpt")
    with pytest.raises(UserError, match=r"list\.ckpt"):
        Stage.load(tmp_path / "list.ckpt")
    (tmp_path / "damaged.ckpt").write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"damaged\.ckpt"):
        Stage.load(tmp_path / "damaged.ckpt")


CALLS = []


class Payload:
    """An object whose unpickling calls a function."""

    def __reduce__(self):
        return CALLS.append, (1,)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_loading_runs_no_code_of_the_file(kind, tmp_path, save):
    path = tmp_path / "evil.ckpt"
    checkpoint = torch.load(save(Line().build(SPEC), path), weights_only=True) | {"payload": Payload()}
    if kind == "torch":
        torch.save(checkpoint, path)
    else:
        path.write_bytes(pickle.dumps({"payload": Payload()}))
    with pytest.raises(UserError, match="cannot be read"):
        Stage.load(path)
    assert CALLS == []


def test_a_checkpoint_cannot_name_a_foreign_class(tmp_path, save):
    path = save(Line().build(SPEC), tmp_path / "a.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    for description in (checkpoint["stage"], checkpoint["stage"]["init_args"].setdefault("optimizer", {})):
        before = dict(description)
        description.update({"class_path": "os.system", "init_args": {"command": f"touch {tmp_path}/witness"}})
        torch.save(checkpoint, path)
        with pytest.raises(UserError, match=r"os\.system"):
            Stage.load(path)
        description.clear()
        description.update(before)
    assert not (tmp_path / "witness").exists()


def test_an_unsuitable_file_to_resume_from_is_named(tmp_path, trainer, digits, save):
    path = save(OtherLine().build(SPEC), tmp_path / "other.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    with pytest.raises(UserError, match=r"OtherLine, not a .*Line"):
        Line().build(SPEC).on_load_checkpoint(checkpoint)
    wide = save(Line(width=5).build(SPEC), tmp_path / "wide.ckpt")
    with pytest.raises(UserError, match="other networks"):
        Line().build(SPEC).on_load_checkpoint(torch.load(wide, weights_only=True))
    own = save(Line().build(SPEC), tmp_path / "own.ckpt")
    small = Line().build(DataSpec((1, 4, 4)))
    with pytest.raises(UserError, match="built for images"):
        small.on_load_checkpoint(torch.load(own, weights_only=True))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("stage", {"width": 50_000}, "tensors differ"),
        ("stage", {"width": "wide"}, "cannot|width"),
        ("data_spec", {"image": [1, 9_000, 9_000]}, "tensors differ"),
        ("data_spec", {"image": [1, 8]}, "data spec"),
        ("data_spec", {"image": 8}, "data spec is damaged"),
        ("data_spec", {"more": 8}, "data spec is damaged"),
        ("data_spec", {"classes": -1}, "data spec: classes should be"),
    ],
)
def test_a_description_that_does_not_fit_its_weights_takes_no_memory(part, change, message, tmp_path, save):
    path = save(Line().build(SPEC), tmp_path / "a.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    (checkpoint[part]["init_args"] if part == "stage" else checkpoint[part]).update(change)
    torch.save(checkpoint, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message) as error:
        Stage.load(path)
    assert str(path) in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # kilobytes
