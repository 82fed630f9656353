"""Compilation of networks for training or for sampling."""

import logging
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from rcg_lightning.arguments import Checked
from rcg_lightning.core.counter_rng import Numbers, noise_by
from rcg_lightning.errors import one_line
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.sampling import SamplingModule
from rcg_lightning.types import require

log = logging.getLogger(__name__)

GRAPHS = ("reduce-overhead", "max-autotune")  # modes that record CUDA graphs


class Compilation(Checked, Callback):
    """Compiles the networks of a stage during training, or those of a sampling module during prediction.

    Where compilation fails, the run continues uncompiled after one warning. Only calls are replaced: the modules, and
    so the names in checkpoints and the EMA weights, stay as they are. Validation is not compiled, because each other
    batch size and mode would be compiled again; sampling has tiles of one shape, and its noise is compiled too. On a
    GPU the mode ``reduce-overhead`` records the calls as CUDA graphs.

    Args:
        mode: mode of ``torch.compile``.
    """

    def __init__(self, mode: str = "default") -> None:
        self.mode = mode
        self._networks: list[nn.Module] = []
        self._calls: list[Any] = []
        self._settings = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Stage)
        conflict = trainer.accumulate_grad_batches > 1 and self.mode in GRAPHS
        reason = f"trainer.compile {self.mode} records CUDA graphs, which overwrite accumulated gradients"
        require(not conflict, f"{reason}: compile with default, or set trainer.accumulate_grad_batches to 1")
        self._compile(pl_module.networks(), clone_outputs=False)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, SamplingModule):
            self._compile(pl_module.networks(), clone_outputs=True)
            if self._calls:
                self._settings.enter_context(noise_by(self._compiled_noise))

    def on_predict_end(self, *_: Any) -> None:
        self._release()

    def _compile(self, networks: list[nn.Module], clone_outputs: bool) -> None:
        """Compile the calls of networks; ``clone_outputs`` where an output is read after the next call."""
        from torch._dynamo.exc import TorchDynamoException  # takes seconds, so only where networks are compiled
        from torch._functorch import config

        # compiling the backward pass with the forward pass shows a failure before anything is computed;
        # several backward passes through one graph (the adaptive weight of an adversary) need its buffers again
        self._settings.enter_context(config.patch(force_non_lazy_backward_lowering=True, donated_buffer=False))
        self._networks = networks
        try:
            self._calls = [self._compiled(network, TorchDynamoException, clone_outputs) for network in networks]
        except RuntimeError as error:  # torch.compile does not support this Python or system
            self._give_up(error)
        self._set_calls(self._calls)

    def _compiled(self, network: nn.Module, failure: type[Exception], clone_outputs: bool) -> Any:
        # a shape is compiled once, for itself: guidance in an interval has two, and a graph for any size is slower
        compiled: Any = torch.compile(network._call_impl, mode=self.mode, dynamic=False)
        clone = clone_outputs and self.mode in GRAPHS  # the next call of a graph overwrites the output

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                if not clone:
                    return compiled(*args, **kwargs)
                torch.compiler.cudagraph_mark_step_begin()
                return compiled(*args, **kwargs).clone()
            except failure as error:
                self._give_up(error)
                return network(*args, **kwargs)

        return call

    def _compiled_noise(self, numbers: Numbers) -> Numbers:
        """Compile a function of random numbers once for all steps; its integers stay bit-equal."""
        from torch._dynamo.exc import TorchDynamoException

        compiled: Any = torch.compile(numbers, dynamic=False)  # no CUDA graph: the numbers are read after the next call

        def call(step_hashes: Tensor, element_hashes: Tensor) -> Tensor:
            if not self._calls:  # compilation failed
                return numbers(step_hashes, element_hashes)
            try:
                return compiled(step_hashes, element_hashes)
            except TorchDynamoException as error:
                self._give_up(error)
                return numbers(step_hashes, element_hashes)

        return call

    def _give_up(self, error: Exception) -> None:
        if self._networks:
            reason = one_line(error, 200)
            log.warning(f"torch.compile does not work here, the run continues without: {reason}")
        self._set_calls([])
        self._networks, self._calls = [], []

    def _set_calls(self, calls: list[Any]) -> None:
        """Set the compiled calls of the networks; without ``calls`` the networks run uncompiled."""
        for network, call in zip(self._networks, calls or [None] * len(self._networks)):
            network._compiled_call_impl = call  # as nn.Module.compile does; not part of its state or of copies

    def on_train_batch_start(self, *_: Any) -> None:
        if self._calls:
            self._set_calls(self._calls)  # not at the end of validation, where other callbacks still sample
            torch.compiler.cudagraph_mark_step_begin()

    def on_validation_start(self, *_: Any) -> None:
        self._set_calls([])

    def on_train_end(self, *_: Any) -> None:
        self._release()

    def on_exception(self, *_: Any) -> None:
        self._release()

    def _release(self) -> None:
        self._set_calls([])
        self._networks, self._calls = [], []
        self._settings.close()
