"""How far generated representations are from real ones: the RDM's loss does not tell."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from rcg_lightning.core.frechet import frechet_distance, moments
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import require


class RepresentationDistance(Callback):
    """Logs the Fréchet distance of generated representations to the training set's, and the floor beside it.

    The floor is the distance of the held-out representations to the training set's: what a perfect model reaches. The
    distance falls with the number of samples, so by default as many are generated as there are held-out ones. Where
    representations come from an online encoder, the reference is the held-out set, and the floor that between its two
    halves.

    Args:
        count: representations to generate.
        most: real representations to read from a large store.
    """

    def __init__(self, count: int | None = None, most: int = 50_000) -> None:
        self.count, self.most = count, most
        self._held_out: list[Tensor] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        fits = isinstance(pl_module, Generator) and pl_module.codec.makes == "representation"
        require(fits, "RepresentationDistance watches a generator of representations: use it with an RDM only")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._held_out = []

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: dict, *_: object
    ) -> None:
        assert isinstance(pl_module, Generator)
        self._held_out.append(pl_module.codec.encode(batch).cpu())  # type: ignore[arg-type]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Every process makes its share of the samples; the figure is of all of them together."""
        assert isinstance(pl_module, Generator)
        held_out = _gathered(trainer, torch.cat(self._held_out))
        if len(held_out) < 4:  # two halves with a covariance each: a tiny folder should not stop the training
            return
        train = self._stored(trainer)
        count = self.count or len(held_out)
        rank, world = trainer.global_rank, trainer.world_size
        tiles = torch.arange(count).split(pl_module.tile)[rank::world]
        made = [pl_module.sample({"seed": seeds.to(pl_module.device)}).cpu() for seeds in tiles]
        empty = held_out.new_empty(0, *held_out.shape[1:])
        generated = _gathered(trainer, torch.cat([empty, *made]))
        if train is None:
            distances = {
                f"rep_fd/{count}_heldout": _distance(generated, held_out),
                "rep_fd/floor_halves_of_heldout": _distance(held_out[::2], held_out[1::2]),
            }
        else:
            distances = {
                f"rep_fd/{count}_train": _distance(generated, train),
                f"rep_fd/floor_{len(held_out)}_train": _distance(held_out, train),
            }
        pl_module.log_dict(distances, rank_zero_only=False, sync_dist=False)

    def _stored(self, trainer: pl.Trainer) -> Tensor | None:
        columns = trainer.datamodule.columns("train")  # type: ignore[attr-defined]
        if "representation" not in columns:
            return None
        store = columns["representation"]
        rows = torch.linspace(0, store.size - 1, min(store.size, self.most)).long().numpy()
        return torch.from_numpy(store.read("representation", rows)).float()


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return frechet_distance(*moments(one), *moments(other)).float()


def _gathered(trainer: pl.Trainer, rows: Tensor) -> Tensor:
    """Rows (n, R) of every process, in the order of ranks; processes may hold different numbers of them."""
    if trainer.world_size == 1:
        return rows
    parts: list[Tensor] = [rows] * trainer.world_size
    torch.distributed.all_gather_object(parts, rows)
    return torch.cat(parts)
