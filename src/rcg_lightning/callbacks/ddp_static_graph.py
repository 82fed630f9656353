"""How gradients are averaged over processes."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy


class DDPStaticGraph(Callback):
    """Tells DDP that every step has one and the same graph, in which every parameter is used, and to copy no gradients.

    Where gradients of several batches are added up, torch cannot take the graph as static: its first backward pass
    would have to be a reduced one. A stage with several optimizers averages its gradients itself, and DDP is left as it
    is.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        strategy = trainer.strategy
        if isinstance(strategy, DDPStrategy) and pl_module.automatic_optimization:
            static = trainer.accumulate_grad_batches == 1
            strategy._ddp_kwargs |= {"static_graph": static, "gradient_as_bucket_view": True}
