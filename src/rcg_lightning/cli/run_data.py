"""The images of a run, for commands that take its folder as first word."""

from collections.abc import Sequence
from pathlib import Path

from rcg_lightning.cli.parsing import underscored, with_option
from rcg_lightning.planning.files import read_plan
from rcg_lightning.sampling.run_parts import named_run

_IMAGES = {"--config", "--data", "--statistics", "--reference_samples"}


def with_run_data(argv: Sequence[str], option: str) -> list[str]:
    """Give the first word to ``option`` and, where it is a run of `rcg train` and no images are named, the run's."""
    words = with_option(argv, option)
    named = {underscored(word).partition("=")[0].partition(".")[0] for word in words}
    if len(words) == len(argv) or named & _IMAGES:
        return words
    run = named_run(Path(argv[0]))
    for folder in (run, run.parent):
        data = read_plan(folder).get("parts", {}).get("data")
        if data is not None:
            return [*words[:2], "--config", str(folder / data), *words[2:]]
    return words
