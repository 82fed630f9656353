"""DDP with a static graph."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy


class DDPStaticGraph(Callback):
    """Sets DDP to a static graph, in which every parameter is used, with gradients as views of its buckets.

    The graph is not static where gradients of several batches are accumulated: torch would need to reduce in the first
    backward pass. A stage with several optimizers averages its gradients itself; then DDP is left as it is.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        strategy = trainer.strategy
        if isinstance(strategy, DDPStrategy) and pl_module.automatic_optimization:
            static = trainer.accumulate_grad_batches == 1
            strategy._ddp_kwargs |= {"static_graph": static, "gradient_as_bucket_view": True}
