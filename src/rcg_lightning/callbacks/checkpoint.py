"""Checkpoints written every n steps, each as a whole or not at all."""

import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from rcg_lightning import interruption
from rcg_lightning.arguments import Checked, PositiveInt
from rcg_lightning.artifacts import flush, replacing
from rcg_lightning.errors import UserError
from rcg_lightning.run_folder import LAST, PREVIOUS, UNDECAYED, keep_as, set_run_aside, written_files
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.divergence import steady


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a draft and renames it: after a kill or on a full disk the earlier checkpoint is intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        # Lightning writes through the system's temporary folder, which may be small, and where a kill leaves the file
        path = Path(path)
        with replacing(path) as draft:
            draft.write_bytes(content.getbuffer())
            if path.name == LAST:
                flush(draft)  # a full disk shows here at the latest
                keep_as(path, PREVIOUS)


class EarlierRun(pl.Callback):
    """Moves the files of another run in the same folder to ``version_N`` when training starts.

    Not before: a start that fails leaves them. A run that continues from a checkpoint in its folder keeps its files.

    Args:
        folder: of the run; what it holds now is the earlier run's.
    """

    def __init__(self, folder: Path) -> None:
        self.files = written_files(folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder, start = Path(trainer.default_root_dir), trainer.ckpt_path
        continues = start is not None and Path(start).resolve().parent == folder.resolve()
        if trainer.is_global_zero and not continues and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            set_run_aside(folder, self.files)
        self.files = []


class Checkpoint(Checked, ModelCheckpoint):
    """Writes ``last.ckpt`` to the run's folder every n steps and at the end; until then also keeps the one before.

    Args:
        every: optimizer steps between two checkpoints.
        keep_all: also store each one under its step number.
    """

    def __init__(self, every: PositiveInt = 1000, keep_all: bool = False) -> None:
        super().__init__(
            filename="{step}" if keep_all else "last",
            save_last=keep_all,
            save_top_k=-1 if keep_all else 1,
            every_n_train_steps=every,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._saved_at = -1
        self._validated = False  # since the last checkpoint, which then lacks what callbacks remember of it
        self._undecayed_at = -1
        self._overdue: int | None = None  # step whose checkpoint waits for a step that is not skipped

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.dirpath = trainer.default_root_dir
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if self._overdue is not None and trainer.global_step > self._overdue:
            self._overdue, metrics = None, self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, metrics)
            self._save_last_checkpoint(trainer, metrics)
        super().on_train_batch_end(trainer, *args)
        if trainer.global_step == _decay_start(trainer) and trainer.global_step > self._undecayed_at:
            self._undecayed_at = trainer.global_step  # once, however many batches a step accumulates
            self._save_checkpoint(trainer, str(Path(trainer.default_root_dir) / UNDECAYED))
        self._end_if_asked(trainer)

    def _end_if_asked(self, trainer: pl.Trainer) -> None:
        """After SIGINT or SIGTERM save the finished step; processes of a job may be at different steps and do not."""
        asked = interruption.was_interrupted() or trainer.received_sigterm
        if (
            asked
            and trainer.global_step != self._saved_at
            and trainer.world_size == 1
            and not self._accumulating(trainer)
        ):
            self._save_checkpoint(trainer, str(Path(trainer.default_root_dir) / LAST))
        if not self._accumulating(trainer):
            interruption.check_keyboard()

    @staticmethod
    def _accumulating(trainer: pl.Trainer) -> bool:
        """Whether the gradients of a step are not complete yet."""
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        return trainer.world_size == 1 and done % trainer.accumulate_grad_batches != 0

    def on_validation_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._end_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._validated = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.world_size == 1:
            interruption.begin_training()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        interruption.end_training()
        super().on_exception(trainer, pl_module, exception)

    @property
    def saved_step(self) -> int | None:
        """The step of the last checkpoint that this process has written."""
        return None if self._saved_at < 0 else self._saved_at

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        stage = trainer.lightning_module
        if isinstance(stage, Stage) and not steady(trainer, stage.guard):
            self._overdue = trainer.global_step  # the weights may be the cause: nothing is overwritten by them
            return
        try:
            super()._save_checkpoint(trainer, filepath)
        except OSError as error:
            reason = f"{filepath} cannot be written ({error.strerror or error}); the earlier checkpoint is intact"
            raise UserError(f"{reason}: free some space and continue from it") from error
        if Path(filepath).name != UNDECAYED:
            self._saved_at, self._validated = trainer.global_step, False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        interruption.end_training()
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.global_step != self._saved_at or self._validated:
            self._save_checkpoint(trainer, str(Path(trainer.default_root_dir) / LAST))
        if trainer.is_global_zero:
            (Path(trainer.default_root_dir) / PREVIOUS).unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        return {}  # ModelCheckpoint's state is paths of this machine, which do not belong in a checkpoint

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def _decay_start(trainer: pl.Trainer) -> int | None:
    """Return the step at which the learning rate of a stage with one optimizer begins its final decay."""
    schedule = getattr(getattr(trainer.lightning_module, "optimizer", None), "lr_schedule", None)
    return None if schedule is None else schedule.decay_start(trainer.max_steps)
