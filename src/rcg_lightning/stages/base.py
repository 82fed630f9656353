"""Base of every training stage: networks built from the data spec, training step, optimizer, checkpoints."""

import logging
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from rcg_lightning.config import ConfigMixin, construct, describe
from rcg_lightning.errors import UserError
from rcg_lightning.networks.ema import EMA
from rcg_lightning.pretrained.checkpoints import check_description, check_weights
from rcg_lightning.random_state import seeded
from rcg_lightning.stages.divergence import require_finite
from rcg_lightning.stages.optimization import Optimizer
from rcg_lightning.stages.stage_folder import FORMAT, checked_stage, stage_content
from rcg_lightning.stages.step_guard import StepGuard
from rcg_lightning.stages.warm_start import take_over
from rcg_lightning.types import Batch, DataSpec, require

log = logging.getLogger(__name__)


def lay_out(module: LightningModule) -> None:
    """Store the weights of convolutions channels last if the trainer of ``module`` does so."""
    if getattr(module.trainer, "channels_last", False):
        module.to(memory_format=torch.channels_last)


class Stage(ConfigMixin, LightningModule):
    """A LightningModule whose networks are sized by the data and whose checkpoints rebuild it.

    Subclasses create their networks in ``build_networks`` and return their losses from ``losses``. ``seed`` makes the
    initial weights independent of whatever ran before in the process.

    Args:
        optimizer: settings of the optimizer.
        seed: seed of the initial weights.
    """

    spec: DataSpec | None = None

    def __init__(self, optimizer: Optimizer, seed: int = 0) -> None:
        super().__init__()
        self.optimizer, self.seed = optimizer, seed
        self.guard = StepGuard()

    @property
    def needs(self) -> frozenset[str]:
        """Keys of the batch that this stage reads; the data module loads nothing else."""
        return frozenset({"image"})

    @abstractmethod
    def build_networks(self, spec: DataSpec) -> None:
        """Create every parameter, from the data spec alone."""

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scalars to log; ``loss`` is minimised."""

    def after_step(self) -> None:
        """Update EMA weights and counters: called after each optimizer step, before anything is saved."""

    def step_state(self) -> list[Tensor]:
        """What a training step changes and a skipped one does not, besides optimized weights and moving averages."""
        averages = {id(b) for module in self.modules() if isinstance(module, EMA) for b in module.buffers()}
        saved = self.state_dict().keys()  # the others are tables
        return [buffer for name, buffer in self.named_buffers() if name in saved and id(buffer) not in averages]

    def trained_modules(self) -> Iterable[nn.Module]:
        """The modules that the optimizer updates."""
        return [self]

    def networks(self) -> list[nn.Module]:
        """The networks that a training step calls; ``trainer.compile`` compiles these."""
        return [child for child in self.children() if next(child.parameters(), None) is not None]

    # -- building ------------------------------------------------------------------------------------------------------

    def build(self, spec: DataSpec) -> Self:
        """Create the networks once; a second call only checks that the data spec still fits."""
        if self.spec is None:
            with seeded(self.seed):
                self.spec = spec
                self.build_networks(spec)
        else:
            check_spec(self.spec, spec, self.needs)
        return self

    def setup(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None and hasattr(datamodule, "spec"):
            self.build(datamodule.spec)
        require(self.spec is not None, f"{type(self).__name__} needs a data module to know the size of its networks")

    def configure_model(self) -> None:
        lay_out(self)  # before DDP lays out its buckets

    def on_train_start(self) -> None:
        for optimizer in self.trainer.optimizers:  # a run may continue with other settings than it began with
            match_memory_layout(optimizer)
        for config in self.trainer.lr_scheduler_configs:
            set_rates(config.scheduler)
        self.guard.spike = getattr(self.trainer, "spike_guard", None)
        self.guard.start(self.step_state())

    # -- training ------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        losses = self.losses(batch)
        # as a float: Lightning averages the sizes over processes too, and would round integers down
        size: Any = float(len(batch["index"]))
        self.log_dict({f"val/{name}": value for name, value in losses.items()}, batch_size=size, sync_dist=True)

    # a data set has one split for evaluation, so Lightning's test loop measures what its validation loop does

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return columns of a store: the stage's output for each image."""
        raise UserError(f"{type(self).__name__} predicts nothing for an image: evaluate it with `rcg validate`")

    def on_fit_start(self) -> None:
        steps = self.trainer.max_steps
        lines = [module.fit_to(steps) for module in self.modules() if isinstance(module, EMA)]
        schedule = getattr(getattr(self, "optimizer", None), "lr_schedule", None)
        if schedule is not None and (shorter := schedule.warmup_steps(steps)) < schedule.warmup:
            lines.append(f"a warm-up of {schedule.warmup} steps is longer than this run of {steps}: it takes {shorter}")
        for line in filter(None, lines if self.trainer.is_global_zero else []):
            log.warning(line)

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = self.optimizer.make(self.trained_modules(), self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.guard.add_loss(loss)
        # 1, or nan for a loss that is not finite: all its gradients are nan then, and so are their means over processes
        gradient = torch.add(torch.ones_like(loss), loss.detach(), alpha=0)
        super().backward(loss, *args, gradient=gradient, **kwargs)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        if isinstance(self.trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            self.guard.check(optimizer, self.optimizer.clip, self.trainer.global_step + 1)
        elif self.optimizer.clip is not None:  # each process has a part of the gradients, which its norm would miss
            self.clip_gradients(optimizer, self.optimizer.clip, "norm")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # not in on_train_batch_end: callbacks that save run before that hook
        self.guard.begin_step()
        super().optimizer_step(*args, **kwargs)
        self.finish_step()

    def finish_step(self) -> None:
        """Complete a step whose optimizers are done."""
        self.guard.restore_buffers()
        self.after_step()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_finite(checkpoint, self.guard, self._trainer)
        checkpoint["step_guard"] = self.guard.state_dict()
        checkpoint["format"], checkpoint["stage"] = FORMAT, describe(self)
        checkpoint["data_spec"] = self.spec.to_dict() if self.spec else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found = checked_stage(checkpoint, "the checkpoint")["stage"]["class_path"]
        mine = describe(self)["class_path"]
        require(found == mine, f"the checkpoint holds a {found}, not a {mine}: give one that this stage wrote")
        self.build(DataSpec.from_dict(checkpoint["data_spec"]))
        check_weights(self, checkpoint["state_dict"])
        self.guard.load_state_dict(checkpoint.get("step_guard", {}))

    def start_from(self, path: Path) -> list[str]:
        """Take over the weights at ``path`` that fit, before training; return a report, line by line.

        Args:
            path: checkpoint, stage folder or bundle of a stage of this class; its data and settings may differ.
        """
        content = stage_content(path)
        report = take_over(self, content, str(path))
        more = self.after_start(frozenset(report.fresh))
        assert self.spec is not None
        others = changed_identities(self.spec, DataSpec.from_dict(content["data_spec"]), self.needs)
        return [*report.lines(), *more, *others]

    def after_start(self, fresh: frozenset[str]) -> list[str]:
        """Complete ``start_from``, given the names of the tensors that stayed fresh; return lines for its report."""
        return []

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Self:
        """Rebuild a stage with its weights, in evaluation mode. Nothing is unpickled.

        Args:
            path: its checkpoint, its folder, or a bundle whose generator it is.

        Raises:
            UserError: no such file, not a checkpoint of this project, or a stage of another class.
        """
        checkpoint = stage_content(path)

        def rebuilt() -> Self:
            stage = construct(checkpoint["stage"])
            require(isinstance(stage, cls), f"it holds a {type(stage).__name__}, but a {cls.__name__} is needed")
            return stage.build(DataSpec.from_dict(checkpoint["data_spec"]))

        check_description(rebuilt, checkpoint["state_dict"], str(path))
        stage = rebuilt()
        stage.load_state_dict(checkpoint["state_dict"])
        return stage.to(device).eval()

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, map_location: Any = "cpu", **_: Any) -> Self:
        """Lightning's name for ``load``."""
        return cls.load(Path(checkpoint_path), map_location)


def match_memory_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer's state of each weight the weight's strides: fused kernels read both in memory order."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def set_rates(scheduler: Any) -> None:
    """Set an optimizer's learning rates by its schedule: a run may continue with another length than it began with."""
    if isinstance(scheduler, LambdaLR):
        for group, base, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas):
            group["lr"] = base * factor(scheduler.last_epoch)


def check_spec(built: DataSpec, given: DataSpec, needs: frozenset[str]) -> None:
    """Raise UserError where the data differ, in a key that the stage reads, from those it was built for."""
    if "image" in needs and built.image != given.image:
        raise UserError(f"the networks were built for images of {built.image}, the data give {given.image}")
    if "label" in needs and built.classes != given.classes:
        raise UserError(f"the networks were built for {built.classes} classes, the data have {given.classes}")
    online = {name for name, column in built.columns.items() if column.get("online")}
    for name in sorted((needs | online) & built.columns.keys()):
        mine, other = built.identities.get(name), given.identities.get(name)
        if other is not None and mine != other:
            raise UserError(
                f"the stage was trained on {name} {mine}, these data have {other}: use the store or encoder of training"
            )


def changed_identities(built: DataSpec, given: DataSpec, needs: frozenset[str]) -> list[str]:
    """Describe the columns that a stage reads and that have another identity than when the weights were trained."""
    names = [name for name in sorted(needs) if name in given.identities and name in built.identities]
    pairs = [(name, given.identities[name], built.identities[name]) for name in names]
    return [f"{name}: {now} here, {before} in the file" for name, before, now in pairs if before != now]
