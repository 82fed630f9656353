"""Networks compiled for training, or for sampling."""

import logging
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.sampling import SamplingModule
from rcg_lightning.types import require

log = logging.getLogger(__name__)

GRAPHS = ("reduce-overhead", "max-autotune")  # modes that record CUDA graphs


class Compilation(Callback):
    """Compiles the networks of a stage while it trains, or those that samples are made with while they are made.

    Where that fails, work goes on without, after one warning. Only calls are replaced: names in checkpoints, EMA weights
    and what samplers use stay as they are. Validation is not compiled, since other batch sizes and modes would each be
    compiled again; samples are made in tiles of one shape. On a GPU the mode ``reduce-overhead`` records the calls as
    CUDA graphs.

    Args:
        mode: of ``torch.compile``.
    """

    def __init__(self, mode: str = "default") -> None:
        self.mode = mode
        self._networks: list[nn.Module] = []
        self._calls: list[Any] = []
        self._settings = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Stage)
        added_up = trainer.accumulate_grad_batches > 1 and self.mode in GRAPHS
        why = f"trainer.compile {self.mode} records CUDA graphs, which write over gradients that are added up"
        require(not added_up, f"{why}: compile with default, or set trainer.accumulate_grad_batches to 1")
        self._compile(pl_module.networks(), keeps=False)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, SamplingModule):
            self._compile(pl_module.networks(), keeps=True)

    def on_predict_end(self, *_: Any) -> None:
        self._end()

    def _compile(self, networks: list[nn.Module], keeps: bool) -> None:
        """Compile the calls of networks; ``keeps``: what they return is needed beyond the next call."""
        from torch._dynamo.exc import TorchDynamoException  # seconds to import: only where it is asked for
        from torch._functorch import config

        # the backward pass is compiled with the forward pass, where a failure is noticed before anything is computed;
        # several backward passes through one graph need its buffers again (adaptive weights of adversaries)
        self._settings.enter_context(config.patch(force_non_lazy_backward_lowering=True, donated_buffer=False))
        self._networks = networks
        try:
            self._calls = [self._compiled(network, TorchDynamoException, keeps) for network in self._networks]
        except RuntimeError as error:  # a Python or a system that torch.compile does not know
            self._give_up(error)
        self._put(self._calls)

    def _compiled(self, network: nn.Module, failure: type[Exception], keeps: bool) -> Any:
        compiled: Any = torch.compile(network._call_impl, mode=self.mode)
        graphs = keeps and self.mode in GRAPHS  # the next call writes over the last one's

        def call(*inputs: Any, **named: Any) -> Any:
            try:
                if not graphs:
                    return compiled(*inputs, **named)
                torch.compiler.cudagraph_mark_step_begin()
                return compiled(*inputs, **named).clone()
            except failure as error:
                self._give_up(error)
                return network(*inputs, **named)

        return call

    def _give_up(self, error: Exception) -> None:
        if self._networks:
            reason = " ".join(str(error).split())[:200]
            log.warning(f"torch.compile does not work here, work goes on without: {reason}")
        self._put([])
        self._networks, self._calls = [], []

    def _put(self, calls: list[Any]) -> None:
        """Let the networks be called by ``calls``, or as_baseline where there are none."""
        for network, call in zip(self._networks, calls or [None] * len(self._networks)):
            network._compiled_call_impl = call  # what nn.Module.compile sets: no part of its state, nor of copies

    def on_train_batch_start(self, *_: Any) -> None:
        if self._calls:
            self._put(self._calls)  # and not when validation ends, where other callbacks sample
            torch.compiler.cudagraph_mark_step_begin()

    def on_validation_start(self, *_: Any) -> None:
        self._put([])

    def on_train_end(self, *_: Any) -> None:
        self._end()

    def on_exception(self, *_: Any) -> None:
        self._end()

    def _end(self) -> None:
        self._put([])
        self._networks, self._calls = [], []
        self._settings.close()
