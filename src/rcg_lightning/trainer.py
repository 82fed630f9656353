"""Lightning's Trainer with this project's defaults."""

import gc
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from rcg_lightning.arguments import (
    Checked,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Range,
    Share,
    UnitInterval,
    check_arguments,
)
from rcg_lightning.callbacks.checkpoint import AtomicCheckpointIO, Checkpoint, EarlierRun
from rcg_lightning.callbacks.compilation import Compilation
from rcg_lightning.callbacks.ddp_static_graph import DDPStaticGraph
from rcg_lightning.callbacks.divergence import Divergence
from rcg_lightning.callbacks.monitor import Hyperparameters, Interruption, Progress, Throughput
from rcg_lightning.callbacks.onednn import OneDNNMatmul
from rcg_lightning.callbacks.reseed import Reseed
from rcg_lightning.core.precision import Float32Precision, set_float32_precision
from rcg_lightning.errors import UserError, one_line
from rcg_lightning.types import require

SpikeFactor = Annotated[float, Range(1, above=True)]
Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
Devices = PositiveInt | Literal[-1] | str  # -1 is every device of the machine


class Trainer(Checked, pl.Trainer):
    """Trains by steps on an endless stream, logs to TensorBoard; a resumed run is bit-equal to an unbroken one.

    Args:
        default_root_dir: the run's folder: ``last.ckpt``, TensorBoard events, ``config.yaml`` and exported networks.
        max_steps: optimizer steps to train for.
        devices: processes on each machine. The default is one, because each process adds its batch to the effective
            batch size.
        precision: None is bf16-mixed if the accelerator is a GPU that has it, and 32-true elsewhere. 16-mixed is
            rejected: its gradient scaler works neither with fused optimizers nor with stages that read their gradients.
        float32_precision: of matmuls and convolutions in float32 on NVIDIA GPUs: ``high`` is TF32, several times
            faster, with 10 bits of mantissa; ``highest`` is float32. Frozen networks have their own setting.
        checkpoint_every: optimizer steps between checkpoints, or a share of ``max_steps``, such as 0.1.
        val_check_interval: optimizer steps between validations, or a share of ``max_steps``; None validates at the end
            only. Neither is longer than the run.
        callbacks: further callbacks.
        logger: None for TensorBoard in the run's folder, False for no logs. Grids of images that no logger takes are
            files in the run's folder.
        seed: seed of the random numbers of every step.
        strategy: distributed strategy; auto and ddp reduce the gradients as those of a static graph.
        compile: compile the networks for training: true, or a mode of ``torch.compile``.
        channels_last: store the weights of convolutions channels last; None does on NVIDIA GPUs in bf16 or TF32, whose
            tensor cores read this layout. Not yet measured there.
        max_skipped_steps: steps in a row that may be skipped because their loss or gradients are not finite; one more
            ends the run.
        spike_guard: also skip a step whose gradient norm is this many times the median of the last 100; None for off.
        onednn: compute large matmuls on CPUs by oneDNN; None where it is faster.
    """

    def __init__(
        self,
        default_root_dir: str | Path = "runs/latest",
        max_steps: PositiveInt = 1000,
        devices: Devices | list[NonNegativeInt] = 1,
        precision: str | int | None = None,
        float32_precision: Float32Precision = "high",
        checkpoint_every: PositiveInt | Share = 1000,
        val_check_interval: PositiveInt | Share | None = None,
        callbacks: list[Callback] | None = None,
        logger: Logger | list[Logger] | bool | None = None,
        log_every_n_steps: PositiveInt = 50,
        seed: int = 0,
        strategy: str | Strategy = "auto",
        compile: bool | Mode = False,
        channels_last: bool | None = None,
        onednn: bool | None = None,
        max_skipped_steps: NonNegativeInt = 10,
        spike_guard: SpikeFactor | None = None,
        **kwargs: Any,
    ) -> None:
        _count_limits(kwargs)  # in place: the command line finds Lightning's own settings by this name
        check_arguments(_lightning_settings, kwargs, "Trainer: ")
        scaled = str(precision) in ("16", "16-mixed")
        require(not scaled, f"trainer.precision cannot be {precision}: take bf16-mixed, or 32-true without bf16")
        folder = str(default_root_dir)
        logger = TensorBoardLogger(folder, name="", version="") if logger is None or logger is True else logger
        own: list[Callback] = [EarlierRun(Path(folder)), Interruption(), Reseed(seed), Divergence()]
        own += [Checkpoint(_steps(checkpoint_every, max_steps)), OneDNNMatmul(onednn)]
        own += [DDPStaticGraph()] if strategy in ("auto", "ddp") else []
        own += [Compilation("default" if compile is True else compile)] if compile else []
        own += [Progress()] if kwargs.get("enable_progress_bar", True) else []
        own += [LearningRateMonitor("step"), Throughput(), Hyperparameters()] if logger else []
        self.max_skipped_steps, self.spike_guard = max_skipped_steps, spike_guard  # read by stages
        validation_steps = _steps(val_check_interval or max_steps, max_steps)
        accumulate = kwargs.get("accumulate_grad_batches", 1)
        accelerator = kwargs.get("accelerator", "auto")
        precision, gpu = precision or default_precision(accelerator), on_cuda(accelerator)
        set_float32_precision(float32_precision if gpu else "highest")
        full = str(precision).startswith("32") and float32_precision == "highest"
        # read by stages and sampling modules
        self.channels_last = (gpu and not full) if channels_last is None else channels_last
        given = kwargs.pop("plugins", None) or []
        plugins = given if isinstance(given, list) else [given]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        try:
            super().__init__(
                plugins=plugins,
                default_root_dir=folder,
                max_steps=max_steps,
                devices=devices,
                strategy=strategy,
                max_epochs=-1,
                precision=precision,  # type: ignore[arg-type]
                val_check_interval=validation_steps * accumulate,
                check_val_every_n_epoch=None,
                num_sanity_val_steps=0,
                callbacks=[*own, *(callbacks or [])],
                logger=logger,
                log_every_n_steps=log_every_n_steps,
                use_distributed_sampler=False,  # the data module shards exactly, without padding or repetition
                enable_model_summary=False,
                **kwargs,
            )
        except (MisconfigurationException, TypeError, ValueError) as error:  # all that it raises is about its arguments
            raise UserError(f"the trainer's settings: {one_line(error)}") from error

    test = pl.Trainer.validate  # callbacks measure at validation, and a data set has one split for evaluation


def _count_limits(settings: dict[str, Any]) -> None:
    """Make limits numbers of batches where they are: a config's 4 arrives as 4.0, since it may be a share."""
    for name, limit in settings.items():
        if name.startswith("limit_") and isinstance(limit, float) and limit > 1 and limit.is_integer():
            settings[name] = int(limit)


def _steps(interval: int | float, total: int) -> int:
    """Return an interval in steps, given so or as a share of a run of ``total``."""
    steps = round(interval * total) if isinstance(interval, float) else interval
    return max(1, min(steps, total) if total > 0 else steps)


def _lightning_settings(
    accumulate_grad_batches: PositiveInt,
    fast_dev_run: bool | NonNegativeInt,
    gradient_clip_val: NonNegativeFloat | None,
    limit_predict_batches: PositiveInt | Share | None,
    limit_test_batches: PositiveInt | Share | None,
    limit_train_batches: PositiveInt | Share | None,
    limit_val_batches: NonNegativeInt | UnitInterval | None,
    num_nodes: PositiveInt,
    overfit_batches: NonNegativeInt | UnitInterval,
) -> None:
    """The ranges of Lightning's own settings, some of which it takes for no work at all."""


def on_cuda(accelerator: str | Accelerator) -> bool:
    """Whether Lightning's ``accelerator`` is an NVIDIA GPU of this machine; ``cpu`` is none, whatever there is."""
    chosen = isinstance(accelerator, CUDAAccelerator) or accelerator in ("auto", "gpu", "cuda")
    return chosen and torch.cuda.is_available()


def default_precision(accelerator: str | Accelerator) -> str:
    """bf16-mixed on a GPU with bf16 hardware, else 32-true: on CPUs and by emulation bf16 is far slower."""
    has_bf16 = on_cuda(accelerator) and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if has_bf16 else "32-true"


def pick_device(accelerator: str) -> torch.device:
    """Return the device of an accelerator's name: cpu, gpu (or cuda), mps or auto; UserError if it is not there."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator == "auto":
        return found or torch.device("cpu")
    require(accelerator in ("cpu", "gpu", "cuda", "mps"), f"no accelerator {accelerator}: give cpu, gpu, mps or auto")
    device = torch.device({"gpu": "cuda"}.get(accelerator, accelerator))
    here = "cpu" if found is None else f"cpu and {found.type}"
    missing = f"this machine has no {accelerator} that torch can use, only {here}"
    require(device.type == "cpu" or (found is not None and device.type == found.type), missing)
    return device


def reset_torch() -> None:
    """Reset torch's global state after a run, so that the next run in this process starts as in a new process."""
    gc.collect()
    torch.set_grad_enabled(True)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
