import pytest
import torch
from torch import nn

from helpers.poison import Poison
from rcg_lightning.networks.ema import lerp_unless
from rcg_lightning.stages import step_guard
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.optimization import SGD, AdamW
from rcg_lightning.stages.step_guard import StepGuard
from rcg_lightning.types import DataSpec

NO, YES = torch.zeros(()), torch.ones(())
OPTIMIZERS = {
    "fused AdamW": lambda p: AdamW(0.1).create({"p": p}),
    "AdamW": lambda p: torch.optim.AdamW([p], 0.1, foreach=False),
    "fused SGD": lambda p: SGD(0.1).create({"p": p}),
    "SGD": lambda p: torch.optim.SGD([p], 0.1, momentum=0.9),
}


def update(parameter, optimizer, guard, gradient, clip=None):
    parameter.grad = torch.full_like(parameter, gradient)
    guard.begin_step()
    guard.check(optimizer, clip, step=len(guard.updates) + 1)
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_update_leaves_weights_and_state_as_if_it_had_never_been(name):
    weights = []
    for gradients in ((1.0, 2.0), (torch.nan, 1.0, torch.inf, 2.0, -torch.inf), (1e30, 1.0, 2.0)):
        parameter, guard = nn.Parameter(torch.arange(4.0)), StepGuard()
        optimizer = OPTIMIZERS[name](parameter)
        for gradient in gradients:
            update(parameter, optimizer, guard, gradient)
        weights.append(parameter.detach())
        guard.read()
        assert guard.total == len(gradients) - 2
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_clipping_is_that_of_torch():
    for gradient in (0.1, 5.0):
        parameter, guard = nn.Parameter(torch.zeros(4)), StepGuard()
        update(parameter, torch.optim.SGD([parameter], 1.0), guard, gradient, clip=1.0)
        expected = nn.Parameter(torch.zeros(4))
        expected.grad = torch.full_like(expected, gradient)
        nn.utils.clip_grad_norm_([expected], 1.0)
        assert torch.equal(parameter.detach(), -expected.grad)


def test_a_spike_is_skipped_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(step_guard, "WINDOW", 4)
    for spike, expected in ((None, 0), (10.0, 1)):
        parameter, guard = nn.Parameter(torch.zeros(4)), StepGuard(spike)
        optimizer = torch.optim.SGD([parameter], 0.1)
        for gradient in (50.0, 1.0, 9.0, 1.0, 1.0, 30.0, 1.0, 2.0):  # at first there is nothing to compare with
            update(parameter, optimizer, guard, gradient)
        guard.read()
        assert guard.total == expected


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float32, torch.float64)])
def test_moving_averages_move_unless_the_step_is_skipped(layout, dtypes):
    averages = [torch.randn(2, 3, 4, 4, dtype=dtype).to(memory_format=layout) for dtype in dtypes]
    weights = [torch.randn_like(average) for average in averages]
    for rate in (0.0, 0.01, 0.9, 1.0):
        expected = [average.lerp(weight, rate) for average, weight in zip(averages, weights)]
        moved = [average.clone() for average in averages]
        lerp_unless(NO, moved, weights, rate)
        torch.testing.assert_close(moved, expected)
        if rate < 1:
            lerp_unless(YES, moved := [average.clone() for average in averages], weights, rate)
            assert all(torch.equal(a, b) for a, b in zip(moved, averages))


class InfiniteLoss(Stage):
    """A loss of inf whose gradients are finite."""

    def build_networks(self, spec):
        self.network = nn.Linear(64, 1)

    def losses(self, batch):
        return {"loss": self.network(batch["image"].flatten(1)).mean() + torch.inf}


def test_a_loss_that_is_not_finite_is_skipped_though_its_gradients_are(tmp_path, trainer, digits, caplog):
    stage = InfiniteLoss(AdamW(0.1)).build(DataSpec((1, 8, 8), classes=10))
    before = stage.network.weight.detach().clone()
    with pytest.raises(Exception, match="loss inf, gradient norm nan"):
        trainer(tmp_path, 3).fit(stage, digits())
    assert torch.equal(stage.network.weight, before)


def test_a_spike_in_training_is_skipped(tmp_path, trainer, digits, make_stage, monkeypatch):
    monkeypatch.setattr(step_guard, "WINDOW", 4)
    for spike, skipped in ((None, 0), (50.0, 1)):
        fit = trainer(tmp_path / str(spike), 8, callbacks=[Poison(6, value=1e6)], spike_guard=spike, checkpoint_every=4)
        fit.fit(make_stage(), datamodule=digits())
        checkpoint = torch.load(tmp_path / str(spike) / "last.ckpt", weights_only=True)["step_guard"]
        assert checkpoint["total"] == skipped
