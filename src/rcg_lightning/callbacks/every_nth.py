"""What costs too much for every validation: done at every n-th one."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from rcg_lightning.types import require


class EveryNth(Callback):
    """Base of callbacks that act at every n-th validation of a training, also across resumes; ``due`` says whether.

    A validation that was asked for by itself is always due.

    Args:
        every: n; the first validation of a training is not due where n > 1, the n-th is.
    """

    def __init__(self, every: int = 1) -> None:
        name = type(self).__name__
        require(every > 0, f"{name} acts at every n-th validation, with n at least 1, not {every}")
        self.every = every
        self.due = False
        self._validations = 0

    @property
    def state_key(self) -> str:
        """Two callbacks of one class are told apart by their settings."""
        plain = {name: value for name, value in vars(self).items() if name[0] != "_" and isinstance(value, int | str)}
        return self._generate_state_key(**{name: value for name, value in plain.items() if name != "due"})

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validations += 1
            self.due = self._validations % self.every == 0
        else:
            self.due = True  # asked for by hand, or to find mistakes early
