"""`rcg fit | validate | test | predict`: LightningCLI over every stage of the project."""

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from rcg_lightning import class_modules  # noqa: F401
from rcg_lightning.artifacts import file_sha256, locked, replacing
from rcg_lightning.callbacks.checkpoint import Checkpoint
from rcg_lightning.callbacks.prediction_writer import predict_store
from rcg_lightning.cli.flags import with_flags
from rcg_lightning.cli.messages import NOTHING_SAVED, echo
from rcg_lightning.cli.out_of_memory import halved, in_training, remedied
from rcg_lightning.cli.parsing import Help, construction_errors, one_line_errors, prepared
from rcg_lightning.config_files import named_configs
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.errors import UserError
from rcg_lightning.run_folder import LAST, newest_checkpoint
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.stage_folder import stage_content
from rcg_lightning.trainer import Trainer
from rcg_lightning.types import require

SHARD_ROWS = 1024

USAGE = {
    "fit": "rcg fit --config FILE [--config FILE ...] [--ckpt_path runs/NAME/last.ckpt] [--key value ...]",
    "validate": "rcg validate --config FILE --ckpt_path CHECKPOINT [--key value ...]",
    "test": "rcg test --config FILE --ckpt_path CHECKPOINT [--key value ...]",
    "predict": "rcg predict --config FILE --ckpt_path CHECKPOINT [--key value ...]",
}
_GUIDE = "--model.help NAME and --data.source.help NAME explain a class; --print_config shows every value in use."
DESCRIPTION = {
    "fit": f"""Train a stage: encoder, RDM, generator or classifier.
  rcg fit --config digits/encoder --trainer.default_root_dir runs/encoder
  rcg fit --config digits/generator --model.condition ClassCondition --trainer.max_steps 200
  rcg fit --config runs/encoder/config.yaml --ckpt_path last             continue where it stopped
  rcg fit --config digits/generator --init_from runs/converted           start from other weights, as far as they fit
{_GUIDE}""",
    "validate": f"""Measure a checkpoint on the evaluation images, as training does at its end.
  rcg validate --config runs/generator/config.yaml --ckpt_path runs/generator/last.ckpt
{_GUIDE}""",
    "test": f"""The same as `rcg validate`: a data set has one split for evaluation.
  rcg test --config runs/generator/config.yaml --ckpt_path runs/generator/last.ckpt
{_GUIDE}""",
    "predict": f"""Write a stage's prediction for each evaluation image as a store: its representation or class,
or a sample with its condition. To generate samples use `rcg sample`, to encode a data set `rcg extract`.
  rcg predict --config runs/generator/config.yaml --ckpt_path runs/generator/last.ckpt
{_GUIDE}""",
}


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml to the run's folder when training starts: an earlier failure leaves that of a previous run."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pass  # Lightning writes here, to the folder of the logger

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        config = _with_absolute_paths(self.config)
        config.ckpt_path = None  # the config describes a run from its start
        folder = config.trainer.default_root_dir = str(Path(trainer.default_root_dir).absolute())
        with replacing(Path(folder) / self.config_filename) as draft:
            self.parser.save(config, str(draft), skip_none=False, overwrite=True, multifile=False)


def _with_absolute_paths(value: Any) -> Any:
    """Copy a parsed config with absolute paths, so that it holds in every working directory."""
    if isinstance(value, Path):
        return value.absolute()
    if isinstance(value, Namespace):
        return Namespace(**{key: _with_absolute_paths(item) for key, item in vars(value).items()})
    if isinstance(value, dict):
        return {key: _with_absolute_paths(item) for key, item in value.items()}
    return [_with_absolute_paths(item) for item in value] if isinstance(value, list) else value


class StartFrom(pl.Callback):
    """Starts training from the weights of another run; a continued run has its own weights.

    Args:
        path: checkpoint, stage folder or bundle.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Stage)
        if trainer.ckpt_path is None:
            lines = pl_module.start_from(self.path)  # every process: the same file gives the same weights
            if trainer.is_global_zero:
                echo("\n  ".join([f"starting from {self.path}", *lines]))


class StageCLI(LightningCLI):
    """LightningCLI with short help, one-line errors, and a check of the checkpoint before anything is built."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.usage = USAGE[subcommand]
        for action in parser._actions:
            if action.dest == "ckpt_path":
                action.help = "checkpoint of this stage; `last` is the latest in the run's folder"
        own = "start from the weights of this checkpoint, stage folder or bundle, as far as they fit"
        # the config that `rcg fit` saves holds this key, and every subcommand takes that config
        parser.add_argument(
            "--init_from", type=Path | None, default=None, help=own if subcommand == "fit" else argparse.SUPPRESS
        )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with one_line_errors(parser, args):
            super().parse_arguments(parser, with_flags(args, parser))

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"--seed_everything: {error}") from error

    def instantiate_classes(self) -> None:
        with construction_errors(self.parser):
            super().instantiate_classes()

    def _parse_ckpt_path(self) -> None:
        """Raise a UserError if the checkpoint is missing, damaged or of another kind of stage."""
        config = self.config[self.config.subcommand]
        given = config.get("ckpt_path")
        if given is None:
            require(self.config.subcommand == "fit", "no trained weights are given: give --ckpt_path")
            if config.init_from is not None:
                stage_content(config.init_from)
            return
        path = self._last(Path(config.trainer.default_root_dir)) if str(given) == "last" else Path(given)
        require(
            not path.is_dir(),
            f"{path} is a folder, which holds weights but no training state: --ckpt_path takes a .ckpt file, and "
            "`rcg fit --init_from` starts from the weights of a folder",
        )
        found = stage_content(path)["stage"]["class_path"].rpartition(".")[2]
        wanted = config.model.class_path.rpartition(".")[2]
        require(found == wanted, f"{path} holds a {found}, the config a {wanted}: give the right checkpoint or config")
        config.ckpt_path = str(path)

    def _last(self, folder: Path) -> Path:
        """Return the newest checkpoint of a run; to continue training, the newest one that is whole."""
        path = newest_checkpoint(folder) if self.config.subcommand == "fit" else folder / LAST
        if path is None or not path.is_file():
            raise UserError(f"no checkpoint at {folder / LAST}: leave out --ckpt_path to begin, or correct the folder")
        return path

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            with remedied(self._remedy), self._lock(subcommand):
                super()._run_subcommand(subcommand)
        except BaseException as error:
            path = Path(self.trainer.default_root_dir) / LAST
            saved = [c.saved_step for c in self.trainer.checkpoint_callbacks if isinstance(c, Checkpoint)]
            if not path.is_file():
                error.add_note(NOTHING_SAVED)
            elif any(saved):
                error.add_note(f"{path} holds step {max(filter(None, saved))}")
            raise

    def _lock(self, subcommand: str) -> AbstractContextManager[None]:
        """Return a context in which no other training may run in this run's folder."""
        trainer, folder = self.trainer, Path(self.trainer.default_root_dir)
        if subcommand != "fit" or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return nullcontext()
        busy = f"another rcg fit is running in {folder}: wait for it, or give another --trainer.default_root_dir"
        return locked(folder / ".lock", busy)

    def _remedy(self) -> str:
        """Advise how to run the subcommand with less memory."""
        batch_size = self.datamodule.batch_size
        if self.config.subcommand == "fit":
            return in_training(self.model, batch_size, self.trainer.accumulate_grad_batches)
        return halved("data.batch_size", batch_size)

    def before_fit(self) -> None:
        start = self.config.fit.init_from
        if start is not None:
            self.trainer.callbacks.append(StartFrom(Path(start)))  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        unfinished = self.trainer.interrupted or self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.trainer.is_global_zero and not unfinished:
            echo(f"{Path(self.trainer.default_root_dir) / 'last.ckpt'}: trained")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skipped = {
            "weights_only",
            "return_predictions",
        }  # weights are always loaded safely, predictions never stored in memory
        return {name: values | skipped for name, values in LightningCLI.subcommands().items() if name in USAGE}

    def predict(self, model: Stage, datamodule: ImageDataModule, ckpt_path: str) -> None:
        """Write a store of predictions for the evaluation images."""
        trainer, folder = self.trainer, Path(self.trainer.default_root_dir) / "predictions"
        datamodule.prepare_data()
        identity = {**datamodule.store_identity("eval"), "checkpoint": file_sha256(Path(ckpt_path))[:16]}
        writer = StoreWriter(folder, len(datamodule.images("eval")), 1, SHARD_ROWS, identity)
        datamodule.extract("eval", writer.pending(trainer.global_rank, trainer.world_size))
        store = predict_store(trainer, model, datamodule, writer, ckpt_path=ckpt_path)
        if trainer.is_global_zero:
            echo(f"{folder}: {', '.join(sorted(store.columns))} of {store.size} evaluation images")


def default_folder(argv: Sequence[str]) -> Path:
    """Return the folder of a run that names none: runs/digits-rdm for ``--config digits/rdm``."""
    names = [name for _, name in named_configs(argv)]
    parts = [Path(name).stem if Path(name).is_file() else name.removesuffix(".yaml") for name in names]
    models = [value for word, value in pairwise(argv) if word == "--model"]  # without configs
    return Path("runs", "-".join(parts or models).replace("/", "-") or "latest")


def main(name: str, argv: list[str]) -> None:
    """Run one of Lightning's commands."""
    asked = any(word.partition("=")[0] in ("--init_from", "--init-from") for word in argv)
    require(not asked or name == "fit", "--init_from is of `rcg fit`: --ckpt_path gives the weights here")
    common = {"exit_on_error": False, "allow_abbrev": False, "formatter_class": Help}
    cli = StageCLI(
        Stage,
        ImageDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_class=Trainer,
        args=[name, *prepared(argv)],
        seed_everything_default=0,
        trainer_defaults={"default_root_dir": str(default_folder(argv))},
        save_config_callback=SaveConfig,
        auto_configure_optimizers=False,  # a stage configures its own
        parser_kwargs={**common, **{command: {**common, "description": DESCRIPTION[command]} for command in USAGE}},
    )
    if cli.trainer.interrupted:  # newer versions of Lightning exit the process themselves
        raise KeyboardInterrupt
