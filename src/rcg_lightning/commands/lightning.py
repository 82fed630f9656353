"""`rcg fit | validate | test | predict`: LightningCLI over every stage of the project."""

from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from rcg_lightning.commands import names  # noqa: F401
from rcg_lightning.commands.parsing import one_line_errors, with_found_configs
from rcg_lightning.data.images import ImageData
from rcg_lightning.stages.base import Stage
from rcg_lightning.trainer import Trainer

USAGE = {
    "fit": "rcg fit --config FILE [--config FILE ...] [--ckpt_path runs/NAME/last.ckpt] [--key value ...]",
    "validate": "rcg validate --config FILE --ckpt_path CHECKPOINT [--key value ...]",
    "test": "rcg test --config FILE --ckpt_path CHECKPOINT [--key value ...]",
    "predict": "rcg predict --config FILE --ckpt_path CHECKPOINT [--key value ...]",
}


class StageCLI(LightningCLI):
    """LightningCLI with short usage lines and errors on one line."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.usage = USAGE[subcommand]
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with one_line_errors(parser):
            super().parse_arguments(parser, args)

    def instantiate_classes(self) -> None:
        with one_line_errors(self.parser):
            super().instantiate_classes()

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: values for name, values in LightningCLI.subcommands().items() if name in USAGE}


def main(name: str, argv: list[str]) -> ArgumentParser:
    """Run one of Lightning's own commands."""
    cli = StageCLI(
        Stage,
        ImageData,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_class=Trainer,
        args=[name, *with_found_configs(argv)],
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"exit_on_error": False, **{subcommand: {"exit_on_error": False} for subcommand in USAGE}},
    )
    return cli.parser
