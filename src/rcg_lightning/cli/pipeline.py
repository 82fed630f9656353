"""`rcg pipeline`: run all stages of an experiment that are out of date. Nothing here imports torch."""

from pathlib import Path

from rcg_lightning.arguments import PositiveInt
from rcg_lightning.artifacts import locked
from rcg_lightning.cli.main import STEP_COMMANDS, run
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.config_files import find_config
from rcg_lightning.pipeline.runner import Run
from rcg_lightning.pipeline.spec import read_pipeline


def pipeline(
    config: Path,
    seeds: PositiveInt = 1,
    root: Path = Path("runs"),
    set: dict[str, str] | None = None,
    dry_run: bool = False,
) -> None:
    """Run every step of a pipeline that is not up to date, then print the table of its results.

    Args:
        config: a pipeline file, or the name of a shipped one, such as digits.
        seeds: number of seeds to run; several give the table error bars.
        root: parent of the pipeline's folder.
        set: values for the pipeline file's arguments, such as --set.root my_images.
        dry_run: only print the commands.
    """
    parsed = read_pipeline(find_config(str(config), "pipeline"), STEP_COMMANDS, set)
    steps = Run(parsed, root / parsed.name, list(range(seeds)))
    if dry_run:
        steps.work(run, echo, dry_run)
        return
    busy = f"another rcg pipeline is running in {steps.root}: wait for it, or give another --root"
    with locked(steps.root / ".lock", busy):
        steps.work(run, echo)
        steps.make_table(run, echo)


def main(name: str, argv: list[str]) -> None:
    """Parse the command line of `rcg pipeline`; the pipeline needs no --config before it."""
    for i, (before, word) in enumerate(zip(["", *argv], argv)):
        follows_flag = before in ("--dry-run", "--dry_run") and word not in ("true", "false")
        if not word.startswith("-") and (follows_flag or "=" in before or not before.startswith("-")):
            argv = [*argv[:i], "--config", *argv[i:]]
            break
    examples = ["rcg pipeline digits", "rcg pipeline digits --seeds 3", "rcg pipeline folder --set.root my_images"]
    call(pipeline, name, argv, examples, names=False, config_file=False)
