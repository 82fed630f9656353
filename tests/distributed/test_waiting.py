"""No training step waits for the device, including the Trainer's logging and progress bar."""

import pytest
from lightning.pytorch.callbacks import Callback

from helpers.every_stage import BATCH, classifier, gan, generator, masked, moco, tokenizer
from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.callbacks.monitor import Progress
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.trainer import Trainer

STEPS, LOGGED = 9, 4
STAGES = {
    "diffusion": lambda: generator("pixels", "class", False),
    "masked": lambda: masked(False),
    "adversarial": lambda: gan(False),
    "tokenizer": lambda: tokenizer(False),
    "moco": moco,
    "classifier": classifier,
}


class CountWaits(Callback):
    """Counts the waits between the beginnings of two batches, by the number of the step."""

    def __init__(self):
        self.waits, self.counter = {}, None

    def on_train_batch_start(self, *_):
        self.stop()
        self.counter = HostSyncs()
        self.counter.__enter__()

    def stop(self, *_):
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
            self.waits[len(self.waits) + 1], self.counter = dict(self.counter.found), None

    on_validation_start = on_train_end = stop


@pytest.mark.parametrize("name", STAGES)
def test_only_steps_that_are_logged_wait(name, tmp_path, monkeypatch):
    callback = CountWaits()
    monkeypatch.setattr("rcg_lightning.callbacks.monitor.time.monotonic", lambda: 0.0)  # the bar is read once a second
    settings = {"accelerator": "cpu", "precision": "32-true", "log_every_n_steps": LOGGED, "callbacks": [callback]}
    trainer = Trainer(tmp_path, STEPS, **settings)
    trainer.fit(STAGES[name](), datamodule=ImageDataModule(Digits(limit=256), batch_size=BATCH))
    unlogged = [step for step in callback.waits if 1 < step < STEPS and step % LOGGED]  # the first may check its batch
    assert len(unlogged) == 5
    assert {step: callback.waits[step] for step in unlogged} == {step: {} for step in unlogged}
    assert callback.waits[LOGGED]


def test_the_progress_bar_shows_the_loss(tmp_path):
    trainer = Trainer(tmp_path, 2, accelerator="cpu", precision="32-true", logger=False)
    stage = classifier()
    trainer.fit(stage, datamodule=ImageDataModule(Digits(limit=256), batch_size=BATCH))
    (bar,) = (callback for callback in trainer.callbacks if isinstance(callback, Progress))
    assert bar.get_metrics(trainer, stage) == {
        "train/loss": pytest.approx(float(trainer.callback_metrics["train/loss"]))
    }
