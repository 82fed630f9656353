"""Two small networks whose updates can be computed by hand."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from helpers.killed_run import KillAtStep, Killed
from rcg_lightning.errors import UserError
from rcg_lightning.stages.alternating import AlternatingStage, OptimizedNetwork, split
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.optimization import SGD, AdamW, CosineLR
from rcg_lightning.types import DataSpec

SPEC = DataSpec((1, 8, 8), classes=10)


class LeaderFollower(AlternatingStage):
    """The leader's weight fits the images' brightness, the follower's weight fits the leader's; with optional noise."""

    def __init__(
        self, optimizer=None, follower_optimizer=None, accumulate=1, updates=1, start=0, noise=0.0, seed: int = 0
    ) -> None:
        super().__init__(optimizer or SGD(lr=0.1, momentum=0.0), seed)
        self.follower_optimizer = follower_optimizer or SGD(lr=0.2, momentum=0.0)
        self.accumulate, self.updates, self.start, self.noise = accumulate, updates, start, noise
        self.requires_grad_flags, self.steps_done = [], 0

    def build_networks(self, spec: DataSpec) -> None:
        self.leader, self.follower = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.norm = nn.BatchNorm1d(1, affine=False)

    def optimized_networks(self):
        modules = [self.follower, self.norm]
        follower = OptimizedNetwork(
            "follower", modules, self.follower_optimizer, self.follower_losses, self.updates, self.start
        )
        return [follower, OptimizedNetwork("leader", [self.leader], self.optimizer, self.leader_losses)]

    def follower_losses(self, batch):
        self.requires_grad_flags.append((self.follower.weight.requires_grad, self.leader.weight.requires_grad))
        with torch.no_grad():
            output = self.leader(self.brightness(batch))
        self.norm(output)
        return {"loss": (self.follower.weight - output).square().mean(), "one": torch.ones(())}

    def leader_losses(self, batch):
        output = self.leader(self.brightness(batch))
        return {"loss": (output - 1).square().mean() + 0.1 * (output * self.follower.weight).mean()}

    def brightness(self, batch):
        brightness = batch["image"].flatten(1).mean(1, keepdim=True)
        return brightness + self.noise * torch.randn_like(brightness) if self.training else brightness

    def after_step(self) -> None:
        self.steps_done += 1


def weights(stage):
    return {name: float(module.weight.detach()) for name, module in stage.named_children() if name != "norm"}


@pytest.mark.parametrize(("accumulate", "updates"), [(1, 1), (4, 1), (2, 2)])
def test_updates_agree_with_those_by_hand(accumulate, updates, tmp_path, trainer, digits):
    class RecordBrightness(Callback):
        def on_train_batch_start(self, trainer, stage, batch, *_):
            batches.append(batch["image"].flatten(1).mean(1))

    batches = []
    stage = LeaderFollower(accumulate=accumulate, updates=updates).build(SPEC)
    start = weights(stage)
    trainer(tmp_path, 3, callbacks=[RecordBrightness()]).fit(stage, digits())
    a, b = start["leader"], start["follower"]
    for brightness in batches:
        shares = brightness.chunk(updates)
        for x in shares:
            b -= 0.2 * float((2 * (b - a * x)).mean())
        x = shares[-1]  # the leader is updated once, on the last share
        a -= 0.1 * float((2 * (a * x - 1) * x + 0.1 * x * b).mean())
    assert weights(stage) == pytest.approx({"leader": a, "follower": b}, rel=1e-4)
    assert abs(a - start["leader"]) > 0.01


def test_a_step_has_all_updates_of_all_networks(tmp_path, trainer, digits):
    class RecordSteps(Callback):
        def on_validation_start(self, trainer, *_):
            validated.append(trainer.global_step)

        def on_train_batch_start(self, trainer, *_):
            path = tmp_path / "last.ckpt"
            saved.append(torch.load(path, weights_only=True)["global_step"] if path.exists() else None)

    validated, saved = [], []
    stage = LeaderFollower(accumulate=2, updates=4)
    callbacks = [RecordSteps()]
    fit = trainer(tmp_path, 5, checkpoint_every=2, val_check_interval=2, callbacks=callbacks, log_every_n_steps=2)
    fit.fit(stage, digits())
    assert (fit.global_step, stage.steps, stage.steps_done) == (5, 5, 5)
    assert saved == [None, None, 2, 2, 4]
    assert validated == [2, 4]
    assert len([1 for follower, _ in stage.requires_grad_flags if follower]) >= 5 * 8
    expected = {"loss", "follower_loss", "follower_one", "follower_gradient", "leader_gradient"}
    assert {f"train/{name}" for name in expected} <= fit.callback_metrics.keys()
    assert {"val/loss", "val/follower_loss"} <= fit.callback_metrics.keys()


def test_only_the_updated_network_takes_gradients(tmp_path, trainer, digits):
    stage = LeaderFollower()
    trainer(tmp_path, 2).fit(stage, digits())
    assert stage.requires_grad_flags[:2] == [(True, False), (True, False)]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in stage.parameters())


def test_each_network_has_its_own_clipping_and_learning_rate(tmp_path, trainer, digits):
    class RecordRates(Callback):
        def on_train_batch_start(self, trainer, stage, *_):
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    rates = []
    clipped = SGD(lr=1.0, momentum=0.0, clip=0.01)
    cosine = SGD(lr=0.2, momentum=0.0, lr_schedule=CosineLR())
    stage = LeaderFollower(clipped, cosine, updates=2, start=2).build(SPEC)
    start = weights(stage)
    fit = trainer(tmp_path, 4, callbacks=[RecordRates()])
    fit.fit(stage, digits())
    assert [follower for follower, _ in rates] == pytest.approx([0.2, 0.2, 0.2, 0.1])  # the schedule begins at step 2
    assert 0.01 < abs(weights(stage)["leader"] - start["leader"]) <= 0.04 + 1e-6
    assert weights(stage)["follower"] != start["follower"]


def test_a_network_may_start_later(tmp_path, trainer, digits):
    stage = LeaderFollower(start=3).build(SPEC)
    start = weights(stage)
    trainer(tmp_path, 3).fit(stage, digits())
    assert weights(stage)["follower"] == start["follower"]


def test_a_killed_run_continues_to_the_last_bit(tmp_path, trainer, digits):
    def run(folder, resume=None, **settings):
        optimizers = (AdamW(1e-2, lr_schedule=CosineLR(warmup=2)) for _ in range(2))
        stage = LeaderFollower(*optimizers, accumulate=2, updates=2, start=2, noise=0.1)
        fit = trainer(tmp_path / folder, 6, checkpoint_every=3, val_check_interval=3, **settings)
        fit.fit(stage, digits(), ckpt_path=resume)
        return torch.load(tmp_path / folder / "last.ckpt", weights_only=True)

    whole = run("whole")
    with pytest.raises(Killed):
        run("killed", callbacks=[KillAtStep(4)])
    resumed = run("killed", resume=tmp_path / "killed" / "last.ckpt")
    assert whole["global_step"] == resumed["global_step"] == 6
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
    for theirs, ours in zip(whole["optimizer_states"], resumed["optimizer_states"], strict=True):
        for key, moments in theirs["state"].items():
            assert all(torch.equal(value, ours["state"][key][name]) for name, value in moments.items()), key
    assert Stage.load(tmp_path / "whole" / "last.ckpt").steps == 6


def test_half_precision_is_lightnings(tmp_path, trainer, digits):
    class RecordedDtype(LeaderFollower):
        def leader_losses(self, batch):
            dtypes.add(self.leader(self.brightness(batch)).dtype)
            return super().leader_losses(batch)

    dtypes = set()
    trainer(tmp_path, 1, precision="bf16-mixed").fit(RecordedDtype(), digits())
    assert dtypes == {torch.bfloat16}


def test_a_batch_is_cut_in_order():
    parts = split({"image": torch.arange(6.0), "index": torch.arange(6)}, 3)
    assert [part["index"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(UserError, match="6 cannot be cut into 4"):
        split({"index": torch.arange(6)}, 4)
