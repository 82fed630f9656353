"""The parts of `rcg check-gpu`, in order of worth."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rcg_lightning.gpu_check.agreement import Agreement
from rcg_lightning.gpu_check.cifar10 import OVERHEAD, TRAININGS, CIFAR10Check, source_of
from rcg_lightning.gpu_check.commands import CommandCheck, Commands
from rcg_lightning.gpu_check.environment import Environment
from rcg_lightning.gpu_check.parts import Part, Trial
from rcg_lightning.gpu_check.resumption import Resumption
from rcg_lightning.gpu_check.target import Target
from rcg_lightning.gpu_check.throughput import Throughput
from rcg_lightning.gpu_check.waits import Waits
from rcg_lightning.pipeline.runner import Command
from rcg_lightning.types import require

BUDGETS = {  # seconds on a GPU: eight minutes in all
    "environment": 25.0,
    "agreement": 80.0,
    "waits": 30.0,
    "resumption": 30.0,
    "throughput": 130.0,
    "cifar10": 150.0,
    "commands": 35.0,
}
TITLES = {
    "environment": "versions, flags",
    "agreement": "every stage and sampler against the CPU in float32, TF32 and bf16",
    "waits": "no wait of the host in training steps and sampling",
    "resumption": "resumed runs against unbroken ones",
    "throughput": "speed and memory at published sizes",
    "cifar10": "generators of CIFAR-10 without a condition, by class and by representation",
    "commands": "rcg fit, sample, evaluate",
}


@dataclass(frozen=True)
class Settings:
    """The settings of a check.

    Attributes:
        rehearse: run every part on the CPU at a tiny size.
        minutes: of each training on CIFAR-10.
        images: folder of CIFAR-10; None leaves its part out.
        folder: for data and runs, which are deleted.
        out: for what stays.
    """

    rehearse: bool
    minutes: float
    images: Path | None
    folder: Path
    out: Path


def chosen(only: Iterable[str], settings: Settings) -> list[str]:
    """Return the names of the parts to run, in their order; all that are possible where ``only`` is empty.

    Raises:
        UserError: there is no part of a name, or it lacks its images.
    """
    names = list(only)
    for name in names:
        near = difflib.get_close_matches(name, BUDGETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(BUDGETS)}"
        require(name in BUDGETS, f"--only: check-gpu has no part {name!r}: {hint}")
    lacking = {"cifar10"} if settings.images is None and not settings.rehearse else set()
    require(not lacking & set(names), "the part cifar10 needs the folder of CIFAR-10: give --images")
    if settings.images is not None:
        source_of(settings.images)  # a wrong folder is found now
    return [name for name in BUDGETS if name in names or not (names or name in lacking)]


def budgets(names: Iterable[str], settings: Settings) -> dict[str, float]:
    """Return the seconds of each part; a rehearsal has no limit that a busy machine would exceed."""
    if settings.rehearse:
        return dict.fromkeys(names, 600.0)
    trainings = TRAININGS * 60 * settings.minutes + OVERHEAD
    return {name: trainings if name == "cifar10" else BUDGETS[name] for name in names}


def parts(names: Iterable[str], settings: Settings, target: Target, command: Command) -> list[Part]:
    """Return the parts ``names``; each prepares its checks when its turn comes."""
    folder, out, images, run = settings.folder, settings.out, settings.images, Commands(command)
    make: dict[str, Callable[[], Iterable[Trial]]] = {
        "environment": Environment(target).trials,
        "agreement": Agreement(target, folder / "agreement").trials,
        "waits": Waits(target, folder / "waits").trials,
        "resumption": Resumption(target, folder / "resumption").trials,
        "throughput": Throughput(target).trials,
        "cifar10": CIFAR10Check(target, folder / "cifar10", out / "cifar10", run, settings.minutes, images).trials,
        "commands": CommandCheck(target, folder / "commands", run).trials,
    }
    return [Part(name, TITLES[name], seconds, make[name]) for name, seconds in budgets(names, settings).items()]
