"""Short trainings on the digits with all callbacks."""

import errno
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rcg_lightning import interruption
from rcg_lightning.callbacks.checkpoint import Checkpoint
from rcg_lightning.callbacks.fidelity import Fidelity
from rcg_lightning.callbacks.monitor import flatten
from rcg_lightning.callbacks.representation_distance import RepresentationDistance
from rcg_lightning.callbacks.reseed import Reseed, seed_of
from rcg_lightning.callbacks.sample_grid import SampleGrid
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.config import describe
from rcg_lightning.core.frechet import frechet_distance, moments
from rcg_lightning.core.samplers import DDIM
from rcg_lightning.errors import UserError
from rcg_lightning.networks.ema import EMA, PowerEMA
from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.stages.optimization import AdamW, CosineLR, StableDecayLR


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def test_callbacks_log_a_generator_of_images(make_stage, digits, trainer, extractor, tmp_path):
    stage = make_stage(JointCondition([RepresentationCondition(), ClassCondition()]), sampler=DDIM(2), tile=64)
    callbacks = [SampleGrid(count=6, columns=3), Fidelity(extractor, count=100)]
    run = tmp_path / "run"
    fit = trainer(run, 4, val_check_interval=2, callbacks=callbacks, logger=None, log_every_n_steps=2)
    fit.fit(stage, digits(tmp_path))
    log = events(run)

    scalars = log.Tags()["scalars"]
    assert {"train/loss", "val/loss", "speed/examples_per_second"} <= set(scalars)
    steps = [event.step for event in log.Scalars("val/loss")]
    assert steps == sorted(steps)  # the HPARAMS table does not take a curve back to step 0
    assert len(steps) >= 2
    assert all(event.value > 0 for event in log.Scalars("speed/examples_per_second"))
    assert any(name.startswith("lr-") for name in scalars)

    distances = [name for name in fit.callback_metrics if name.startswith(("fd", "fid"))]
    assert distances
    assert all("classifier" in name and "100" in name for name in distances)
    assert all(bool(torch.isfinite(fit.callback_metrics[name])) for name in distances)
    assert set(distances) <= set(scalars)
    assert list((run / "reference-0").glob("reference-classifier-*.safetensors"))

    images = log.Tags()["images"]
    assert set(images) == {"samples/generated", "samples/real_of_the_same_condition"}
    assert [event.step for event in log.Images("samples/generated")] == [2, 4]
    assert [event.step for event in log.Images("samples/real_of_the_same_condition")] == [2]
    image = log.Images("samples/generated")[-1]
    assert (image.width, image.height) == (3 * (32 + 2) + 2, 2 * (32 + 2) + 2)  # digits are shown four times larger

    assert "_hparams_/session_start_info" in log.summary_metadata
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 4


def test_callbacks_log_a_generator_of_representations(make_stage, digits, trainer, tmp_path):
    data = digits(tmp_path, batch_size=64)
    stage = make_stage(codec=Representations(), sampler=DDIM(2), tile=64)
    fit = trainer(tmp_path / "run", 2, callbacks=[RepresentationDistance(count=128)])
    fit.fit(stage, data)
    metrics = {name: float(value) for name, value in fit.callback_metrics.items() if name.startswith("rep_fd")}
    assert metrics.keys() == {"rep_fd/encoder_128_train", "rep_fd_of_real/encoder_128_train"}

    train = torch.from_numpy(data.columns("train")["representation"].whole("representation")[:, 0])
    real = train[np.random.default_rng(0).integers(0, len(train), 128)]
    reference_value = frechet_distance(*moments(real), *moments(train))
    assert metrics["rep_fd_of_real/encoder_128_train"] == pytest.approx(float(reference_value), rel=1e-4, abs=1e-5)
    samples = stage.eval().sample({"seed": torch.arange(128)})
    expected = frechet_distance(*moments(samples), *moments(train))
    assert metrics["rep_fd/encoder_128_train"] == pytest.approx(float(expected), rel=1e-4)
    assert metrics["rep_fd/encoder_128_train"] > metrics["rep_fd_of_real/encoder_128_train"] > 0


def test_expensive_callbacks_act_at_every_nth_validation(make_stage, digits, trainer, tmp_path):
    run = {"val_check_interval": 1, "limit_val_batches": 1, "logger": None, "log_every_n_steps": 1}
    grid, distance = SampleGrid(4, every=2), RepresentationDistance(64, every=2)
    trainer(tmp_path / "grid", 5, callbacks=[grid], **run).fit(make_stage(sampler=DDIM(2)), digits())
    stage = make_stage(codec=Representations(), sampler=DDIM(2))
    trainer(tmp_path / "rdm", 5, callbacks=[distance], **run).fit(stage, digits(tmp_path))
    assert [event.step for event in events(tmp_path / "grid").Images("samples/generated")] == [2, 4]
    logged = events(tmp_path / "rdm").Scalars("rep_fd/encoder_64_train")
    assert len({event.value for event in logged}) == 2  # the HPARAMS table repeats the last one


@pytest.mark.parametrize("wrong", [SampleGrid, RepresentationDistance, Fidelity])
def test_a_callback_rejects_another_stage_at_the_start(wrong, make_stage, digits, trainer, extractor, tmp_path):
    callback = wrong(extractor) if wrong is Fidelity else wrong()
    codec = {} if wrong is RepresentationDistance else {"codec": Representations()}
    with pytest.raises(UserError, match=wrong.__name__):
        trainer(tmp_path / "run", 1, callbacks=[callback]).fit(make_stage(**codec), digits(tmp_path))


# -- checkpoints -------------------------------------------------------------------------------------------------------


def steps_of(folder):
    return {path.name: torch.load(path, weights_only=True)["global_step"] for path in folder.glob("*.ckpt")}


def test_last_checkpoint_at_the_end_and_in_between(make_stage, digits, trainer, tmp_path):
    class RecordCheckpoint(Callback):
        def on_train_batch_start(self, trainer, *_):
            seen.append(steps_of(tmp_path).get("last.ckpt"))

    seen = []
    trainer(tmp_path, 5, checkpoint_every=2, callbacks=[RecordCheckpoint()]).fit(make_stage(), digits())
    assert seen == [None, None, 2, 2, 4]
    assert steps_of(tmp_path) == {"last.ckpt": 5}
    assert not list(tmp_path.glob(".*"))


def test_the_checkpoint_before_the_decay_is_kept_and_a_longer_run_continues_from_it(
    make_stage, digits, trainer, tmp_path
):
    def stage():
        return make_stage(optimizer=AdamW(1e-2, lr_schedule=StableDecayLR(0.0, 0.2)), ema=PowerEMA(0.2))

    trainer(tmp_path / "short", 10).fit(stage(), digits())
    assert steps_of(tmp_path / "short") == {"undecayed.ckpt": 8, "last.ckpt": 10}
    start, longer, unbroken = tmp_path / "short" / "undecayed.ckpt", stage(), stage()
    trainer(tmp_path / "longer", 20).fit(longer, digits(), ckpt_path=start)
    trainer(tmp_path / "unbroken", 20).fit(unbroken, digits())
    torch.testing.assert_close(longer.state_dict(), unbroken.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("where", ["on_train_batch_start", "on_validation_batch_start"])
def test_an_interruption_from_the_keyboard_saves_the_finished_step(where, make_stage, digits, trainer, tmp_path):
    class Interrupt(Callback):
        def strike(self, trainer, *_):
            if trainer.global_step == 3 and not interruption.was_interrupted():
                signal.raise_signal(signal.SIGINT)

    interrupt = Interrupt()
    setattr(interrupt, where, interrupt.strike)
    settings = {"checkpoint_every": 100, "val_check_interval": 3, "callbacks": [interrupt]}
    with interruption.remembered(), pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(tmp_path / "run", 8, **settings).fit(make_stage(), digits())
    last = tmp_path / "run" / "last.ckpt"
    assert steps_of(tmp_path / "run") == {"last.ckpt": 4 if "train" in where else 3}
    continued, unbroken = make_stage(), make_stage()
    with interruption.remembered():  # forgets the earlier one
        trainer(tmp_path / "run", 8).fit(continued, digits(), ckpt_path=last)
        trainer(tmp_path / "unbroken", 8).fit(unbroken, digits())
    torch.testing.assert_close(continued.state_dict(), unbroken.state_dict(), rtol=0, atol=0)


def test_intervals_may_be_shares_of_the_run(make_stage, digits, trainer, tmp_path):
    class RecordCheckpoint(Callback):
        def on_train_batch_start(self, trainer, *_):
            seen.append(steps_of(tmp_path).get("last.ckpt"))

    seen = []
    grid = SampleGrid(4, files=True)
    run = {"checkpoint_every": 0.5, "val_check_interval": 0.25, "callbacks": [RecordCheckpoint(), grid]}
    trainer(tmp_path, 8, **run).fit(make_stage(sampler=DDIM(2)), digits())
    assert seen == [None] * 4 + [4] * 4
    names = [f"samples_generated-{step:07d}.png" for step in (2, 4, 6, 8)]
    assert sorted(path.name for path in (tmp_path / "grids").iterdir()) == names


def test_a_schedule_longer_than_its_run_is_shortened_with_one_line(make_stage, digits, trainer, tmp_path, caplog):
    stage = make_stage(optimizer=AdamW(1e-2, lr_schedule=CosineLR(50)), ema=EMA(0.999))
    trainer(tmp_path, 40, max_time={"seconds": 0}).fit(stage, digits())
    assert [line for line in caplog.messages if "warm-up of 50 steps" in line and "it takes 4" in line]
    assert [line for line in caplog.messages if line.startswith("EMA decay 0.999: after 40 steps 96%")]


def test_every_checkpoint_can_be_stored(make_stage, digits, trainer, tmp_path):
    fit = trainer(tmp_path, 4, checkpoint_every=100, callbacks=[Checkpoint(every=2, keep_all=True)])
    fit.fit(make_stage(), digits())
    assert steps_of(tmp_path) == {"step=2.ckpt": 2, "step=4.ckpt": 4, "last.ckpt": 4}


def test_a_full_disk_leaves_the_earlier_checkpoint_intact(make_stage, digits, trainer, tmp_path, monkeypatch):
    write, written = Path.write_bytes, []

    def full(path, content):
        written.append(path)
        write(path, content[:100] if len(written) > 1 else content)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    fit = trainer(tmp_path, 4, checkpoint_every=2)
    with pytest.raises(UserError, match=r"last\.ckpt .*No space left"):
        fit.fit(make_stage(), digits())
    assert steps_of(tmp_path) == {"last.ckpt": 2}


def test_a_checkpoint_needs_no_room_outside_the_run(make_stage, digits, trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    trainer(tmp_path / "run", 1).fit(make_stage(), digits())
    assert steps_of(tmp_path / "run") == {"last.ckpt": 1}


def test_checkpoints_hold_no_path_of_the_machine(make_stage, digits, trainer, tmp_path):
    trainer(tmp_path, 1).fit(make_stage(), digits())
    assert str(tmp_path).encode() not in (tmp_path / "last.ckpt").read_bytes()


# -- seeds and settings ------------------------------------------------------------------------------------------------


def test_each_batch_has_its_own_seed(make_stage, digits, trainer, tmp_path):
    class RecordRandomNumbers(Callback):
        def __init__(self):
            self.training, self.validation = [], []

        def on_train_batch_start(self, trainer, *_):
            self.training.append(float(torch.rand(1)))

        def on_validation_batch_start(self, *_):
            self.validation.append(float(torch.rand(1)))

    def run(number, **settings):
        torch.manual_seed(number)
        record = RecordRandomNumbers()
        trainer(tmp_path / str(number), 4, callbacks=[record], **settings).fit(make_stage(), digits())
        return record.training, record.validation

    first, in_validation = run(0, val_check_interval=2)
    assert len(set(first)) == 4
    assert in_validation[: len(in_validation) // 2] == in_validation[len(in_validation) // 2 :]
    assert run(1)[0] == first  # training is the same with or without validation
    assert run(2, seed=1)[0] != first


def test_seeds_are_hashes_of_their_counters():
    seeds = {
        seed_of(seed, kind, batch, rank) for seed in (0, 1) for kind in (0, 1) for batch in range(50) for rank in (0, 1)
    }
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, 0, 5, 0) == seed_of(0, 0, 5, 0)
    assert Reseed(3).seed == 3


def test_settings_become_a_flat_table(make_stage):
    table = flatten(describe(make_stage(ClassCondition())))
    assert table["class"] == "DiffusionStage"
    assert table["condition"] == "ClassCondition"
    assert table["denoiser.network"] == "ModulatedMLP"
    assert table["denoiser.network.width"] == 16
    assert table["optimizer.lr_schedule.warmup"] == 2
    assert all(isinstance(value, bool | int | float | str) for value in table.values())
