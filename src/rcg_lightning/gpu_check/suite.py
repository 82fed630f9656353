"""The parts of `rcg check-gpu`, in order of worth."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rcg_lightning.gpu_check.agreement import Agreement
from rcg_lightning.gpu_check.environment import Environment
from rcg_lightning.gpu_check.parts import Part, Trial
from rcg_lightning.gpu_check.resumption import Resumption
from rcg_lightning.gpu_check.target import Target
from rcg_lightning.gpu_check.waits import Waits
from rcg_lightning.types import require

BUDGETS = {  # seconds on a GPU, eight minutes with the start of the process
    "environment": 20.0,
    "agreement": 60.0,
    "waits": 30.0,
    "resumption": 30.0,
}
TITLES = {
    "environment": "imports, versions, flags",
    "agreement": "every stage and sampler against the CPU, in float32, TF32 and bf16",
    "waits": "no wait of the host in training steps and sampling loops",
    "resumption": "resumed runs against unbroken ones",
}


@dataclass(frozen=True)
class Settings:
    """What the parts are told.

    Attributes:
        rehearse: run every part on the CPU at a tiny size.
        minutes: of each training on CIFAR-10.
        images: folder of CIFAR-10; None leaves its part out.
        folder: for data and runs.
    """

    rehearse: bool
    minutes: float
    images: Path | None
    folder: Path


def chosen(only: Iterable[str]) -> list[str]:
    """Return the names of the parts to run, in their order; all of them where ``only`` is empty.

    Raises:
        UserError: there is no part of a name.
    """
    names = list(only)
    for name in names:
        near = difflib.get_close_matches(name, BUDGETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(BUDGETS)}"
        require(name in BUDGETS, f"--only: check-gpu has no part {name!r}: {hint}")
    return [name for name in BUDGETS if name in names or not names]


def budgets(names: Iterable[str], settings: Settings) -> dict[str, float]:
    """Return the seconds of each part; a rehearsal has no limit that a busy machine would exceed."""
    return {name: 600.0 if settings.rehearse else BUDGETS[name] for name in names}


def parts(names: Iterable[str], settings: Settings, target: Target) -> list[Part]:
    """Return the parts ``names``; each prepares its checks when its turn comes."""
    folder = settings.folder
    make: dict[str, Callable[[], Iterable[Trial]]] = {
        "environment": lambda: Environment(target).trials(),
        "agreement": lambda: Agreement(target, folder / "agreement").trials(),
        "waits": lambda: Waits(target, folder / "waits").trials(),
        "resumption": lambda: Resumption(target, folder / "resumption").trials(),
    }
    seconds = budgets(names, settings)
    return [Part(name, TITLES[name], seconds[name], make[name]) for name in seconds]
