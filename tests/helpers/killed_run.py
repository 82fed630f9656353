"""A training that stops as if its process was killed."""

from lightning.pytorch.callbacks import Callback


class Killed(Exception):
    pass


class KillAtStep(Callback):
    """Raises ``Killed`` at the start of a training step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Killed
