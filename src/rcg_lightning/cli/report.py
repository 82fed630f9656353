"""`rcg report`: what a run has made, on one page. Nothing here imports torch."""

from pathlib import Path

from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call, with_option
from rcg_lightning.pipeline.run_report import report_of


def report(run: Path) -> None:
    """Write report.md and report.html: verdicts, samples, curves, times and settings of a run, as far as there are any.

    report.html is one file with all images, among them thumbnails of training images. The command may run at any time,
    also while the run goes on.

    Args:
        run: folder that `rcg train` or `rcg pipeline` wrote. The option's name may be left out.
    """
    echo(f"{report_of(run)}: holds thumbnails of your images")


def main(name: str, argv: list[str]) -> None:
    call(report, name, with_option(argv, "--run"), ["rcg report runs/digits"], names=False, config_file=False)
