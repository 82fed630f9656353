"""Runs that leave the finite numbers: they stop with one line, and their last good checkpoint stays."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils._pytree import tree_leaves

from helpers.every_stage import classifier, gan, generator, masked, moco, tokenizer
from helpers.killed_run import KillAtStep, Killed
from helpers.poison import Poison
from rcg_lightning.errors import UserError
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.optimization import LRSchedule, Optimizer

STAGES = {
    "diffusion": lambda: generator("pixels", "class", False),
    "rdm": lambda: generator("rdm", "none", False),
    "masked": lambda: masked(False),
    "adversarial": lambda: gan(False),
    "tokenizer": lambda: tokenizer(False),
    "moco": moco,
    "classifier": classifier,
}


class Explosion(LRSchedule):
    """The base rate for two steps, then 1e30 times as much."""

    def after_warmup(self, step: int, total: int) -> float:
        return 1.0 if step < 2 else 1e30


def exploding(stage):
    adversary = getattr(stage, "adversary", None)
    for owner in (stage, adversary):
        for value in vars(owner).values() if owner is not None else ():
            if isinstance(value, Optimizer):
                value.lr_schedule = Explosion()
    return stage


@pytest.fixture
def data(tmp_path, digits):
    return lambda name: digits(tmp_path if name == "rdm" else None, batch_size=64)


@pytest.mark.parametrize(("name", "every"), [*((name, 2) for name in STAGES), ("diffusion", 1), ("adversarial", 1)])
def test_a_run_that_diverges_stops_and_keeps_its_last_good_checkpoint(name, every, tmp_path, trainer, data):
    settings = {"checkpoint_every": every, "max_skipped_steps": 3, "log_every_n_steps": 10}
    stage = exploding(STAGES[name]())
    at = r"step [34] \(loss \S+, gradient norm nan, learning" if every == 2 else r"step 3 \(loss"
    line = rf"^training has diverged at {at}.*last good checkpoint is .*last\.ckpt \(step 2\).*$"
    with pytest.raises(UserError, match=line):
        trainer(tmp_path, 40, **settings).fit(stage, datamodule=data(name))
    assert all(value.isfinite().all() for value in Stage.load(tmp_path / "last.ckpt").state_dict().values())


class RecordStates(Callback):
    """Records the state dict before each step; the step counts in it go on in a skipped step, too."""

    def __init__(self):
        self.states = []

    def on_train_batch_start(self, trainer, stage, *_):
        state = {k: v for k, v in stage.state_dict().items() if not k.endswith("_extra_state")}
        optimizers = [tree_leaves(optimizer.state_dict()["state"]) for optimizer in trainer.optimizers]
        self.states.append(copy.deepcopy(([*state.values()], optimizers)))

    def changed(self, step):
        return not same(self.states[step - 1], self.states[step])


def same(one, other):
    pairs = zip(tree_leaves(one), tree_leaves(other))  # a first step creates the optimizer's state, at the end
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


KEYS = {"rdm": "representation", "masked": None}


@pytest.mark.parametrize("name", STAGES)
def test_a_step_with_broken_values_changes_nothing_and_training_goes_on(name, tmp_path, trainer, data, caplog):
    states = RecordStates()
    callbacks = [states, Poison(1, 3, key=KEYS.get(name, "image"))]
    fit = trainer(tmp_path, 6, callbacks=callbacks, log_every_n_steps=1)
    fit.fit(STAGES[name](), datamodule=data(name))
    assert [states.changed(step) for step in range(1, 6)] == [False, True, False, True, True]
    assert fit.callback_metrics["train/skipped_steps"] == 2
    assert "step 3 was skipped: loss nan, gradient norm nan, learning rate" in caplog.text
    assert "(2 skipped in this run)" in caplog.text
    assert all(value.isfinite().all() for value in Stage.load(tmp_path / "last.ckpt").state_dict().values())
    assert not (tmp_path / "diverged.ckpt").exists()


@pytest.mark.parametrize("name", ["rdm", "diffusion", "adversarial", "classifier"])
def test_images_that_are_broken_end_the_run(name, tmp_path, trainer, data):
    poison = Poison(*range(3, 40), key=KEYS.get(name, "image"))
    fit = trainer(tmp_path, 40, callbacks=[poison], checkpoint_every=1, max_skipped_steps=5, log_every_n_steps=10)
    with pytest.raises(UserError, match=r"at step 3 \(loss nan.*the first of 6 skipped.*last\.ckpt \(step 2\)"):
        fit.fit(STAGES[name](), datamodule=data(name))
    last, diverged = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("last", "diverged"))
    weights = [{k: v for k, v in state["state_dict"].items() if "_extra" not in k} for state in (last, diverged)]
    assert same(*weights)


def test_a_run_that_ends_in_skipped_steps_has_diverged(tmp_path, trainer, digits):
    fit = trainer(tmp_path, 5, callbacks=[Poison(5)], checkpoint_every=3)
    with pytest.raises(UserError, match=r"at step 5 .*last\.ckpt \(step 3\)"):
        fit.fit(classifier(), datamodule=digits(batch_size=64))
    assert torch.load(tmp_path / "diverged.ckpt", weights_only=True)["global_step"] == 5  # step 4 is not lost
    assert not (tmp_path / "classifier").exists()


@pytest.mark.parametrize("name", ["rdm", "adversarial", "moco", "tokenizer"])
def test_a_run_continues_to_the_last_bit_around_skipped_steps(name, tmp_path, trainer, data):
    def run(folder, resume=None, kill=None):
        callbacks = [Poison(2, 3, 6, key=KEYS.get(name, "image")), *([KillAtStep(kill)] if kill else [])]
        settings = {"spike_guard": 1e3, "checkpoint_every": 3, "callbacks": callbacks}
        trainer(tmp_path / folder, 7, **settings).fit(STAGES[name](), datamodule=data(name), ckpt_path=resume)
        return torch.load(tmp_path / folder / "last.ckpt", weights_only=True)

    whole = run("whole")
    with pytest.raises(Killed):
        run("killed", kill=5)
    partial = tmp_path / "killed" / "last.ckpt"
    assert torch.load(partial, weights_only=True)["global_step"] == 4  # step 3 was skipped: one step later
    resumed = run("killed", resume=partial)
    assert whole["step_guard"]["total"] == 3
    for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "step_guard"):
        assert same(whole[key], resumed[key])


def test_weights_that_are_not_finite_are_never_saved(tmp_path, trainer, digits):
    class Break(Callback):
        def on_train_batch_end(self, trainer, stage, *_):
            if trainer.global_step == 3:
                next(stage.ema.parameters()).data.view(-1)[0] = torch.inf

    fit = trainer(tmp_path, 6, callbacks=[Break()], checkpoint_every=2)
    with pytest.raises(UserError, match=r"at step 4 .* such as ema\.copies\.\S+, are not saved; .*\(step 2\)"):
        fit.fit(generator("pixels", "none", False), datamodule=digits(batch_size=64))
    with pytest.raises(UserError, match="not saved"):
        fit.save_checkpoint(tmp_path / "new.ckpt")
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["last.ckpt"]


def test_accumulated_gradients_are_watched(tmp_path, trainer, digits, caplog):
    states = RecordStates()
    settings = {"accumulate_grad_batches": 2, "callbacks": [states, Poison(2)], "log_every_n_steps": 1}
    trainer(tmp_path, 4, **settings).fit(classifier(), datamodule=digits(batch_size=64))
    assert [not same(states.states[i], states.states[i + 2]) for i in (0, 2, 4)] == [True, False, True]
    assert "step 2 was skipped: loss nan" in caplog.text


def test_weights_that_are_not_finite_are_not_validated(tmp_path, trainer, digits):
    class Look(Callback):
        def on_validation_batch_start(self, trainer, *_):
            validated.append(trainer.global_step)

    validated = []
    fit = trainer(tmp_path, 6, callbacks=[Look()], val_check_interval=2)
    with pytest.raises(UserError, match="diverged at step 4"):
        fit.fit(exploding(classifier()), datamodule=digits(batch_size=64))
    assert set(validated) == {2}
