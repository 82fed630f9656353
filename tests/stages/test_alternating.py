"""Two small players whose steps can be written down."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from rcg_lightning.errors import UserError
from rcg_lightning.stages.alternating import AlternatingStage, OptimizedNetwork, split
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.optimization import SGD, AdamW, CosineLR
from rcg_lightning.types import DataSpec

SPEC = DataSpec((1, 8, 8), classes=10)


class Duel(AlternatingStage):
    """One weight follows the images' brightness, the other the first one, with noise where asked for."""

    def __init__(self, optimizer=None, other=None, accumulate=1, turns=1, since=0, noise=0.0, seed: int = 0) -> None:
        super().__init__(optimizer or SGD(lr=0.1, momentum=0.0), seed)
        self.other, self.accumulate = other or SGD(lr=0.2, momentum=0.0), accumulate
        self.turns, self.since, self.noise = turns, since, noise
        self.seen, self.followed = [], 0

    def build_networks(self, spec: DataSpec) -> None:
        self.leader, self.follower = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.norm = nn.BatchNorm1d(1, affine=False)

    def optimized_networks(self):
        follow = OptimizedNetwork(
            "follower", [self.follower, self.norm], self.other, self.follow, self.turns, self.since
        )
        return [follow, OptimizedNetwork("leader", [self.leader], self.optimizer, self.lead)]

    def follow(self, batch):
        self.seen.append((self.follower.weight.requires_grad, self.leader.weight.requires_grad))
        with torch.no_grad():
            made = self.leader(self.light(batch))
        self.norm(made)
        return {"loss": (self.follower.weight - made).square().mean(), "one": torch.ones(())}

    def lead(self, batch):
        made = self.leader(self.light(batch))
        return {"loss": (made - 1).square().mean() + 0.1 * (made * self.follower.weight).mean()}

    def light(self, batch):
        light = batch["image"].flatten(1).mean(1, keepdim=True)
        return light + self.noise * torch.randn_like(light) if self.training else light

    def after_step(self) -> None:
        self.followed += 1


def weights(stage):
    return {name: float(module.weight.detach()) for name, module in stage.named_children() if name != "norm"}


@pytest.mark.parametrize(("accumulate", "turns"), [(1, 1), (4, 1), (2, 2)])
def test_steps_are_those_written_by_hand(accumulate, turns, tmp_path, trainer, digits):
    class Look(Callback):
        def on_train_batch_start(self, trainer, stage, batch, *_):
            lights.append(batch["image"].flatten(1).mean(1))

    lights = []
    stage = Duel(accumulate=accumulate, turns=turns).build(SPEC)
    start = weights(stage)
    trainer(tmp_path, 3, callbacks=[Look()]).fit(stage, digits())
    a, b = start["leader"], start["follower"]
    for light in lights:
        shares = light.chunk(turns)
        for x in shares:
            b -= 0.2 * float((2 * (b - a * x)).mean())
        x = shares[-1]  # the leader moves once, by the last share
        a -= 0.1 * float((2 * (a * x - 1) * x + 0.1 * x * b).mean())
    assert weights(stage) == pytest.approx({"leader": a, "follower": b}, rel=1e-4)
    assert abs(a - start["leader"]) > 0.01


def test_a_step_is_one_whole_round(tmp_path, trainer, digits):
    class Look(Callback):
        def on_validation_start(self, trainer, *_):
            validated.append(trainer.global_step)

        def on_train_batch_start(self, trainer, *_):
            path = tmp_path / "last.ckpt"
            saved.append(torch.load(path, weights_only=True)["global_step"] if path.exists() else None)

    validated, saved = [], []
    stage = Duel(accumulate=2, turns=4)
    fit = trainer(tmp_path, 5, checkpoint_every=2, val_check_interval=2, callbacks=[Look()], log_every_n_steps=2)
    fit.fit(stage, digits())
    assert (fit.global_step, stage.steps, stage.followed) == (5, 5, 5)
    assert saved == [None, None, 2, 2, 4]
    assert validated == [2, 4]
    assert len([1 for follower, _ in stage.seen if follower]) >= 5 * 8
    expected = {"loss", "follower_loss", "follower_one", "follower_gradient", "leader_gradient"}
    assert {f"train/{name}" for name in expected} <= fit.callback_metrics.keys()
    assert {"val/loss", "val/follower_loss"} <= fit.callback_metrics.keys()


def test_only_the_one_that_moves_takes_gradients(tmp_path, trainer, digits):
    stage = Duel()
    trainer(tmp_path, 2).fit(stage, digits())
    assert stage.seen[:2] == [(True, False), (True, False)]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in stage.parameters())


def test_each_player_is_clipped_and_follows_its_own_rate(tmp_path, trainer, digits):
    class Rates(Callback):
        def on_train_batch_start(self, trainer, stage, *_):
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    rates = []
    slow = SGD(lr=1.0, momentum=0.0, clip=0.01)
    stage = Duel(slow, SGD(lr=0.2, momentum=0.0, lr_schedule=CosineLR()), turns=2, since=2).build(SPEC)
    start = weights(stage)
    fit = trainer(tmp_path, 4, callbacks=[Rates()])
    fit.fit(stage, digits())
    assert [follower for follower, _ in rates] == pytest.approx([0.2, 0.2, 0.2, 0.1])  # one move a step, from step 2 on
    assert 0.01 < abs(weights(stage)["leader"] - start["leader"]) <= 0.04 + 1e-6
    assert weights(stage)["follower"] != start["follower"]


def test_a_player_may_join_later(tmp_path, trainer, digits):
    stage = Duel(since=3).build(SPEC)
    start = weights(stage)
    trainer(tmp_path, 3).fit(stage, digits())
    assert weights(stage)["follower"] == start["follower"]


class Killed(Exception):
    pass


class Kill(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 4:
            raise Killed


def test_a_killed_run_continues_to_the_last_bit(tmp_path, trainer, digits):
    def run(folder, resume=None, **settings):
        rates = {"lr_schedule": CosineLR(warmup=2)}
        stage = Duel(AdamW(1e-2, **rates), AdamW(1e-2, **rates), 2, 2, since=2, noise=0.1)
        fit = trainer(tmp_path / folder, 6, checkpoint_every=3, val_check_interval=3, **settings)
        fit.fit(stage, digits(), ckpt_path=resume)
        return torch.load(tmp_path / folder / "last.ckpt", weights_only=True)

    whole = run("whole")
    with pytest.raises(Killed):
        run("killed", callbacks=[Kill()])
    resumed = run("killed", resume=tmp_path / "killed" / "last.ckpt")
    assert whole["global_step"] == resumed["global_step"] == 6
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
    for theirs, ours in zip(whole["optimizer_states"], resumed["optimizer_states"], strict=True):
        for key, moments in theirs["state"].items():
            assert all(torch.equal(value, ours["state"][key][name]) for name, value in moments.items()), key
    assert Stage.load(tmp_path / "whole" / "last.ckpt").steps == 6


def test_half_precision_is_lightnings(tmp_path, trainer, digits):
    class Typed(Duel):
        def lead(self, batch):
            kinds.add(self.leader(self.light(batch)).dtype)
            return super().lead(batch)

    kinds = set()
    trainer(tmp_path, 1, precision="bf16-mixed").fit(Typed(), digits())
    assert kinds == {torch.bfloat16}


def test_a_batch_is_cut_in_order():
    parts = split({"image": torch.arange(6.0), "index": torch.arange(6)}, 3)
    assert [part["index"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(UserError, match="batch of 6 cannot be cut into 4 parts"):
        split({"index": torch.arange(6)}, 4)
