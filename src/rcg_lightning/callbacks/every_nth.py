"""Base of callbacks too expensive for every validation: they act at every n-th one."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from rcg_lightning.arguments import Checked, PositiveInt


class EveryNth(Checked, Callback):
    """Base of callbacks that act at every n-th validation of a training, also across resumes, where ``due`` is set.

    A validation outside training, such as that of ``rcg validate``, is always due.

    Args:
        every: n; the n-th validation of a training is the first one due.
    """

    def __init__(self, every: PositiveInt = 1) -> None:
        self.every = every
        self.due = False
        self._validations = 0

    @property
    def state_key(self) -> str:
        """The settings, which distinguish two callbacks of one class in a checkpoint."""
        public = {name: value for name, value in vars(self).items() if name[0] != "_" and name != "due"}
        return self._generate_state_key(**{k: v for k, v in public.items() if isinstance(v, int | str)})

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validations += 1
            self.due = self._validations % self.every == 0
        else:
            self.due = True  # requested by the user, or a sanity check
