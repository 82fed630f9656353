"""The `rcg` command. Help and mistakes in the command's name are answered without importing torch."""

import difflib
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from rcg_lightning import __version__
from rcg_lightning.errors import UserError

# name -> (module and function, one line of help)
COMMANDS = {
    "pipeline": ("rcg_lightning.pipeline:main", "run all stages of a pipeline: rcg pipeline digits"),
    "fit": ("rcg_lightning.commands.lightning:main", "train a stage: encoder, RDM, generator or classifier"),
    "validate": ("rcg_lightning.commands.lightning:main", "run a stage's validation on a checkpoint"),
    "test": ("rcg_lightning.commands.lightning:main", "run a stage's test on a checkpoint"),
    "predict": ("rcg_lightning.commands.lightning:main", "run a stage's prediction over a data set"),
    "extract": ("rcg_lightning.commands.extract:main", "write a store of representations of a data set"),
    "cluster": (
        "rcg_lightning.commands.cluster:main",
        "write a store of cluster labels from a store of representations",
    ),
    "principal": ("rcg_lightning.commands.principal:main", "fit principal components of the pixels, as an encoder"),
    "sample": (
        "rcg_lightning.commands.sample:main",
        "generate pictures: unconditional, by class, like a picture, between two",
    ),
    "evaluate": ("rcg_lightning.commands.evaluate:main", "score samples: FID or FD, IS, precision, recall, copies"),
    "compare": ("rcg_lightning.commands.compare:main", "score several sets of samples side by side: table and picture"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 where the input cannot work."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # threads that spin while they wait cost tenfold on a busy machine; must be set before torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    show_traceback = "--traceback" in argv or bool(os.environ.get("RCG_TRACEBACK"))
    argv = [word for word in argv if word != "--traceback"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"rcg {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f": did you mean {near[0]}?" if near else ": `rcg --help` lists the commands"
        print(f"rcg: no command {name}{hint}", file=sys.stderr)
        return 2
    try:
        run(name, rest)
    except UserError as error:
        if show_traceback:
            traceback.print_exc()
        print(f"rcg {name}: {error}", file=sys.stderr)
        return 2
    return 0


def run(name: str, argv: Sequence[str]) -> None:
    """Run command ``name`` in this process; raises UserError where the input cannot work."""
    quiet()
    module, _, function = COMMANDS[name][0].partition(":")
    getattr(importlib.import_module(module), function)(name, list(argv))


def quiet() -> None:
    """Keep Lightning's advertisements, and its warnings about what is meant to be so, off the screen."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        r".*Couldn't infer the batch indices.*",  # batches carry their own index
        r".*does not have many workers.*",  # pictures in memory need none
        r".*LeafSpec.*",
        r".*LightningCLI's args parameter is intended.*",
        r".*Checkpoint directory .* exists and is not empty.*",  # a run continues in its own folder
        r".*`?isinstance\(treespec.*",
        r".*The `?srun`? command is available.*",
    ):
        warnings.filterwarnings("ignore", message)


def overview() -> str:
    """Return the text of `rcg --help`."""
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "rcg: image generation without labels, by way of representations.",
            "",
            "usage: rcg COMMAND [--config FILE ...] [--key value ...]",
            "",
            *lines,
            "",
            "`rcg COMMAND --help` explains a command. `--print_config` shows its whole configuration, and --traceback",
            "where in the code an error arose. Try `rcg pipeline digits`: all stages on two cores in a few minutes.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
