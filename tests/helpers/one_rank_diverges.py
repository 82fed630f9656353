"""Train stages of which only the second process sees values that are not finite, as a script for both processes."""

import json
import sys
from pathlib import Path

import torch

from helpers.every_stage import BATCH, classifier, gan, generator
from helpers.poison import Poison
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.errors import UserError
from rcg_lightning.trainer import Trainer

STAGES = {
    "diffusion": lambda: generator("pixels", "class", True),
    "adversarial": lambda: gan(True),
    "classifier": classifier,
}


def fit(folder: Path, name: str, *steps: int) -> None:
    """Train and write this process's message and weights."""
    settings = {"logger": False, "enable_progress_bar": False, "precision": "32-true", "accelerator": "cpu"}
    poison = Poison(*steps, rank=1)
    trainer = Trainer(folder, 8, devices=2, callbacks=[poison], checkpoint_every=1, max_skipped_steps=2, **settings)  # type: ignore[arg-type]
    stage, message = STAGES[name](), ""
    try:
        trainer.fit(stage, datamodule=ImageDataModule(Digits(limit=256), batch_size=BATCH // 2))
    except UserError as error:
        message = str(error)
    result = {"message": message, "skipped": stage.guard.total, "step": trainer.global_step}
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(result))
    torch.save({name: p.detach() for name, p in stage.named_parameters()}, folder / f"{trainer.global_rank}.pt")
    torch.distributed.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    for name in STAGES:
        fit(out / name, name, 2, 4)
    for name in STAGES:
        fit(out / f"{name}_diverged", name, *range(3, 9))
