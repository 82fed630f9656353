"""The `rcg` command. Help and unknown commands are answered without importing torch."""

import difflib
import errno
import importlib
import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from rcg_lightning import __version__, interruption
from rcg_lightning.cli.messages import NOTHING_SAVED, echo, flush
from rcg_lightning.cli.out_of_memory import shortage
from rcg_lightning.cli.plugins import OPTION, loaded_plugins, split_plugins
from rcg_lightning.cli.user_mistakes import mistake
from rcg_lightning.errors import UserError, one_line

# name -> (module and function, one line of help)
COMMANDS = {
    "train": ("rcg_lightning.cli.train:main", "train on your own images and generate new ones: rcg train my_images"),
    "pipeline": ("rcg_lightning.cli.pipeline:main", "run all stages of a pipeline: rcg pipeline digits"),
    "fit": ("rcg_lightning.cli.stages:main", "train a stage: encoder, RDM, generator or classifier"),
    "validate": ("rcg_lightning.cli.stages:main", "run a stage's validation on a checkpoint"),
    "test": ("rcg_lightning.cli.stages:main", "run a stage's test on a checkpoint"),
    "predict": ("rcg_lightning.cli.stages:main", "run a stage's prediction over a data set"),
    "extract": (
        "rcg_lightning.cli.extract:main",
        "write a store of representations, tokens or latents of a data set",
    ),
    "cluster": (
        "rcg_lightning.cli.cluster:main",
        "write a store of cluster labels from a store of representations",
    ),
    "neighbours": (
        "rcg_lightning.cli.neighbours:main",
        "write a store of each image's nearest neighbours by representation",
    ),
    "instances": (
        "rcg_lightning.cli.instances:main",
        "choose the instances that an instance-conditioned generator samples from",
    ),
    "principal": ("rcg_lightning.cli.principal:main", "fit principal components of the pixels, as an encoder"),
    "word-vectors": (
        "rcg_lightning.cli.word_vectors:main",
        "train word vectors on the tags of images, for a generator of tags",
    ),
    "tag": ("rcg_lightning.cli.tag:main", "predict tags for images: precision, recall, mean average precision"),
    "sample": (
        "rcg_lightning.cli.sample:main",
        "generate images: unconditional, by class, variations, interpolations",
    ),
    "convert": (
        "rcg_lightning.cli.convert:main",
        "read official files (MoCo v3, RDM, MAGE, DiT, …), or write them",
    ),
    "bundle": ("rcg_lightning.cli.bundle:main", "put generator, prior, autoencoder, encoder into one folder"),
    "verify": ("rcg_lightning.cli.verify:main", "find damaged files: stores, checkpoints, bundles, whole run folders"),
    "evaluate": ("rcg_lightning.cli.evaluate:main", "score samples: FID or FD, IS, precision, recall, copies"),
    "reconstruct": ("rcg_lightning.cli.reconstruct:main", "score a codec: rFID, PSNR, SSIM, LPIPS"),
    "probe": ("rcg_lightning.cli.probe:main", "probe an encoder: uniformity, effective rank, kNN, linear probe"),
    "compare": ("rcg_lightning.cli.compare:main", "score several sets of samples side by side: table and image"),
    "gallery": ("rcg_lightning.cli.gallery:main", "show samples, variations, interpolations, nearest training images"),
    "verdict": ("rcg_lightning.cli.verdict:main", "evaluate the stages of a run: good, usable or broken, what to do"),
    "report": ("rcg_lightning.cli.report:main", "write what a run has made on one page: report.html"),
    "sweep": ("rcg_lightning.cli.sweep:main", "score a generator over guidance, steps, temperature: table, plots"),
    "bench": ("rcg_lightning.cli.bench:main", "time the stages at their real sizes, next to the machine's limit"),
    "check-gpu": (
        "rcg_lightning.cli.check_gpu:main",
        "check in eight minutes that everything is right and fast on a GPU",
    ),
    "reproduce": ("rcg_lightning.cli.reproduce:main", "list published metrics next to those measured here"),
}
STEP_COMMANDS = COMMANDS.keys() - {"pipeline", "train"}  # those that a step of a pipeline may run


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 is success, 2 what the user can mend: input, a full disk, too little memory; 1 a fault of this program, 130 an
    interruption from the keyboard, 143 one from outside.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # waiting threads that spin cost tenfold on a busy machine; must be set before torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    show_traceback = "--traceback" in argv or bool(os.environ.get("RCG_TRACEBACK"))
    try:
        plugins, words = split_plugins([word for word in argv if word != "--traceback"])
    except UserError as error:
        print(f"rcg: {error}", file=sys.stderr)
        return 2
    name, *rest = words or ["--help"]
    title = f"rcg {name}" if name in COMMANDS else "rcg"

    def command() -> None:
        interruption.end_with_main_process()
        with loaded_plugins(plugins):
            run(name, rest)

    ended_by = error_of(command if name in COMMANDS else lambda: answer(name))
    unwritten = error_of(flush)
    if unwritten is not None and (ended_by is None or isinstance(ended_by, SystemExit)):
        ended_by = unwritten
    if ended_by is None:
        return 0
    if show_traceback and not isinstance(ended_by, SystemExit):
        traceback.print_exception(ended_by)
    code, line = verdict(ended_by)
    if code in (130, 143):
        line += (
            f"; continue with: {continuation(name, [*rest, *(f'{OPTION}={plugin}' for plugin in plugins)], ended_by)}"
        )
    further = code in (130, 143) and os.environ.get("LOCAL_RANK", "0") != "0"  # the main process of the job reports
    if line and not further:
        print(f"{title}: {line}", file=sys.stderr)
    return code


def error_of(action: Callable[[], None]) -> BaseException | None:
    """Return the error that ends an action, or an interruption that the action ignored."""
    try:
        with interruption.remembered():
            action()
            interruption.check()
    except BaseException as error:
        return interruption.Terminated.of(error) if interruption.was_terminated() else error
    return None


def answer(word: str) -> None:
    """Answer `rcg --help` and `rcg --version`; raise a UserError for a command that does not exist."""
    if word in ("-h", "--help", "help"):
        echo(overview())
    elif word in ("-V", "--version"):
        echo(f"rcg {__version__}")
    else:
        near = difflib.get_close_matches(word, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "`rcg --help` lists the commands"
        raise UserError(f"no command {word}: {hint}")


def verdict(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the user's message for the error that ended a command."""
    if isinstance(error, UserError):
        return 2, " ".join(str(error).split())  # whole
    # Lightning leaves the process itself after an interruption
    remains = "; ".join(getattr(error, "__notes__", [])) or "what was saved stays"
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return 130, f"interrupted; {remains}"
    of_lightning = type(error).__name__ == "SIGTERMException"  # not imported here
    if of_lightning or isinstance(error, interruption.Terminated):
        return 143, f"terminated; {remains}"
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None), ""
    if isinstance(error, BrokenPipeError):  # as of a program that SIGPIPE ends
        return 141, ""
    if is_full(error):
        where = getattr(error, "filename", None)
        disk = f"the disk of {where}" if where else "the disk"
        return 2, f"{disk} is full; what was finished before stays: make room and run the same command again"
    lack = shortage(error)
    if lack is not None:
        return 2, f"{lack}: lower the batch size"
    described = mistake(error)
    if described is not None:
        return 2, described
    return 1, f"{type(error).__name__}: {one_line(error)} (--traceback shows where)"


def continuation(name: str, argv: Sequence[str], error: BaseException) -> str:
    """Return the command that continues an interrupted one, to copy into a shell."""
    words = list(argv)
    if name == "fit" and NOTHING_SAVED not in getattr(error, "__notes__", []):
        for i, word in enumerate(words):
            option, equals, _ = word.replace("-", "_").partition("=")
            if option == "__ckpt_path":
                del words[i : i + 2 - len(equals)]
                break
        words += ["--ckpt_path", "last"]
    return shlex.join(["rcg", name, *words])


def is_full(error: BaseException) -> bool:
    """Whether a full disk or quota caused an error; some libraries report it only in the message."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = ("No space left on device", "PytorchStreamWriter failed writing")  # of safetensors, of torch
    return any(text in str(error) for text in words) or (error.__cause__ is not None and is_full(error.__cause__))


def run(name: str, argv: Sequence[str]) -> None:
    """Run command ``name`` in this process, or raise a UserError if the input cannot work."""
    from rcg_lightning.config_files import find_config, named_configs

    if name not in ("pipeline", "reproduce"):
        for _, config in named_configs(argv):
            find_config(config)  # report a misspelt name before seconds of imports
    quiet()
    module, _, function = COMMANDS[name][0].partition(":")
    getattr(importlib.import_module(module), function)(name, list(argv))


def quiet() -> None:
    """Silence Lightning's advertisements and its warnings about intended behaviour."""
    for part in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.seed"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    for message in (
        r".*Couldn't infer the batch indices.*",  # batches carry their own index
        r".*Total length of list across ranks is zero.*",  # the data module has warned why there is no validation
        r".*does not have many workers.*",  # images in memory need no workers
        r".*LeafSpec.*",
        r".*LightningCLI's args parameter is intended.*",
        r".*Checkpoint directory .* exists and is not empty.*",  # a run continues in its own folder
        r".*`?isinstance\(treespec.*",
        r".*The `?srun`? command is available.*",
        r".*module\(s\) in eval mode at the start of training.*",  # EMA weights are
        r".*no pre-optimization state was saved.*",  # checkpoints are saved after a step
        r".*predict returned None.*",  # evaluation returns metrics, not images
    ):
        warnings.filterwarnings("ignore", message)


def overview() -> str:
    """Return the text of `rcg --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "rcg: image generation without labels, conditioned on representations.",
            "",
            "usage: rcg COMMAND [--config FILE ...] [--key value ...]",
            "",
            *lines,
            "",
            "`rcg COMMAND --help` explains a command. `--print_config` shows its whole configuration, --traceback",
            "where in the code an error arose, and --plugin NAME_OR_FILE imports a module with your own classes.",
            "Try `rcg train digits --budget 1m`, then `rcg train my_images`.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
