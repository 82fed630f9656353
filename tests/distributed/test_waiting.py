"""No step of any stage waits for the device, with the Trainer's own logging and progress bar around it."""

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


class Waits(Callback):
    """Counts from the beginning of one batch to that of the next, by the number of the step."""

    def __init__(self):
        self.counted, self.now = {}, None

    def on_train_batch_start(self, *_):
        self.stop()
        self.now = HostSyncs()
        self.now.__enter__()

    def stop(self, *_):
        if self.now is not None:
            self.now.__exit__(None, None, None)
            self.counted[len(self.counted) + 1], self.now = dict(self.now.found), None

    on_validation_start = on_train_end = stop


@pytest.mark.parametrize("name", STAGES)
def test_only_steps_that_are_logged_wait(name, tmp_path, monkeypatch):
    waits = Waits()
    monkeypatch.setattr("rcg_lightning.callbacks.monitor.time.monotonic", lambda: 0.0)  # the bar is read once a second
    settings = {"accelerator": "cpu", "precision": "32-true", "log_every_n_steps": LOGGED, "callbacks": [waits]}
    trainer = Trainer(tmp_path, STEPS, **settings)
    trainer.fit(STAGES[name](), datamodule=ImageDataModule(Digits(limit=256), batch_size=BATCH))
    quiet = [step for step in waits.counted if step > 1 and step < STEPS and step % LOGGED]  # the first may check
    assert len(quiet) == 5
    assert {step: waits.counted[step] for step in quiet} == {step: {} for step in quiet}
    assert waits.counted[LOGGED]


def test_the_bar_shows_the_loss(tmp_path):
    trainer = Trainer(tmp_path, 2, accelerator="cpu", precision="32-true", logger=False)
    stage = classifier()
    trainer.fit(stage, datamodule=ImageDataModule(Digits(limit=256), batch_size=BATCH))
    (bar,) = (one for one in trainer.callbacks if isinstance(one, Progress))
    shown = bar.get_metrics(trainer, stage)
    assert shown == {"train/loss": pytest.approx(float(trainer.callback_metrics["train/loss"]))}
