"""Interruption of a run, progress bar, and speed and hyperparameters in the logs."""

import signal
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from rcg_lightning import interruption
from rcg_lightning.config import ConfigMixin, describe
from rcg_lightning.overall_progress import overall


class Interruption(Callback):
    """Ends a run whose keyboard interrupt was swallowed by other code; after SIGTERM, ends prediction between batches.

    Lightning itself ends training and validation after SIGTERM, but not prediction.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        interruption.begin_loop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        interruption.end_loop()

    def on_exception(self, *_: Any) -> None:
        interruption.end_loop()

    def on_train_start(self, *_: Any) -> None:
        interruption.check()  # of a SIGTERM that came before Lightning handled it

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING:  # a training saves first: see Checkpoint
            interruption.check_keyboard()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        launcher = trainer.strategy.launcher

        def terminate(number: int, frame: FrameType | None) -> None:
            if launcher is not None:
                launcher.kill(number)  # the processes that this one started
            interruption.terminate(number, frame)

        # Lightning's handler would wait for all processes, of which some may have finished; it restores ours later
        signal.signal(signal.SIGTERM, terminate)

    def on_predict_batch_start(self, *_: Any) -> None:
        interruption.check()

    def on_predict_batch_end(self, *_: Any) -> None:
        interruption.check()


class Progress(TQDMProgressBar):
    """Progress bar drawn at most ten times a second, which reads the losses from the device at most once a second.

    Lightning reads what is logged with ``prog_bar=True`` after every step, and each time the host waits for the device.
    Drawing takes longer than a small step. Where a command runs several stages, the bar begins with the place among
    them.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=1, leave=True)
        self._read_at = self._drawn_at = -1.0
        self._shown: dict[str, Any] = {}
        self._first = 0

    def _should_update(self, current: int, total: int) -> bool:
        now = time.monotonic()
        if current != total and now - self._drawn_at < 0.1:
            return False
        self._drawn_at, stages = now, overall()
        if stages is not None:
            fitting = self.trainer.state.fn == TrainerFn.FITTING
            step, last = (self.trainer.global_step, self.trainer.max_steps) if fitting else (current, total)
            text = stages.line(step - self._first, last - step)
            for bar in (self._train_progress_bar, self._predict_progress_bar):
                if bar is not None:
                    bar.set_description_str(text, refresh=False)
        return super()._should_update(current, total)

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        self._first = trainer.global_step  # a continued run has not done these now

    def on_exception(self, *_: Any) -> None:
        for bar in (self._train_progress_bar, self._val_progress_bar, self._predict_progress_bar):
            if bar is not None:
                bar.close()  # the message of the error begins a line

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        now = time.monotonic()
        if now - self._read_at > 1 or trainer.global_step == trainer.max_steps:
            losses = {name: value for name, value in trainer.callback_metrics.items() if is_loss(name)}
            values = torch.stack(list(losses.values())).tolist() if losses else []
            self._read_at, self._shown = now, dict(zip(losses, values))
        return super().get_metrics(trainer, pl_module) | self._shown


def is_loss(name: str) -> bool:
    """Whether a logged metric is a training loss that an optimizer minimises."""
    return name.startswith("train/") and name.endswith("loss")


class Throughput(Callback):
    """Logs training examples per second, over all processes, without waiting for the device."""

    def __init__(self) -> None:
        self._since = 0.0
        self._examples = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since, self._examples = time.perf_counter(), 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since, self._examples = time.perf_counter(), 0  # validation is not training time

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._examples += len(batch["index"]) * trainer.world_size
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            elapsed = time.perf_counter() - self._since
            pl_module.log("speed/examples_per_second", self._examples / max(elapsed, 1e-9))
            self._since, self._examples = time.perf_counter(), 0


class Hyperparameters(Callback):
    """Gives the stage's settings to every logger, and the final metrics too to TensorBoard's HPARAMS table."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, ConfigMixin):
            return
        scalars = {name: float(value) for name, value in trainer.callback_metrics.items() if isinstance(value, Tensor)}
        table = flatten(describe(pl_module))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(table, metrics=scalars, step=trainer.global_step)
            else:
                logger.log_hyperparams(table)


def flatten(description: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a description to dotted keys and plain values; a class name is the value of its argument's key."""
    if not isinstance(description, Mapping):
        return {prefix: description if isinstance(description, bool | int | float | str) else str(description)}
    flat: dict[str, Any] = {}
    for key, value in description.items():
        if key == "class_path":
            flat[prefix or "class"] = str(value).rpartition(".")[2]
        else:
            inner = prefix if key == "init_args" else f"{prefix}.{key}".strip(".")
            flat |= flatten(value, inner)
    return flat
