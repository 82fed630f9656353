"""Images that callbacks make: to every logger that takes images, else to files in the run's folder."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from rcg_lightning.evaluation.image_grid import save_png
from rcg_lightning.types import to_uint8


def log_grid(trainer: pl.Trainer, name: str, images: Tensor, columns: int, as_file: bool = False) -> None:
    """Log a grid of images (B, C, H, W) in [0, 1] at the current step; for the main process.

    With ``as_file``, or where no logger takes images, such as with ``CSVLogger``, it is ``grids/NAME-step.png`` in the
    run's folder.
    """
    pixels = to_uint8(_enlarged(images, columns)).permute(1, 2, 0).numpy()
    taken = [_log(logger, name, pixels, trainer.global_step) for logger in trainer.loggers]
    if as_file or not any(taken):
        file = f"{name.replace('/', '_')}-{trainer.global_step:07d}.png"
        save_png(Image.fromarray(pixels), Path(trainer.default_root_dir) / "grids" / file)


def _log(logger: Logger, name: str, pixels: np.ndarray, step: int) -> bool:
    """Give an image, uint8 (H, W, 3), to a logger; return whether it takes images."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, pixels, step, dataformats="HWC")
        return True
    log_image = getattr(logger, "log_image", None)  # Weights & Biases and those like it
    if log_image is not None:
        log_image(key=name, images=[Image.fromarray(pixels)], step=step)
    return log_image is not None


def _enlarged(images: Tensor, columns: int) -> Tensor:
    """Arrange images in a grid (3, H, W) on the CPU, ``columns`` in a row; small images are four times larger."""
    small = images.shape[-1] < 32
    images = images.repeat_interleave(4, 2).repeat_interleave(4, 3) if small else images
    return make_grid(images.float().cpu(), nrow=columns, padding=2)
