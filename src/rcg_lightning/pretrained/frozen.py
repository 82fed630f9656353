"""Frozen networks: used, not trained, and outside the module tree."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rcg_lightning.core.precision import FrozenPrecision, frozen_precision, uses_tensor_cores
from rcg_lightning.random_state import seeded


class Frozen:
    """A network outside the module tree: never in a state dict, an EMA copy, an optimizer or DDP.

    It is in eval mode and its weights take no gradient, but a gradient can pass to its input, as a perceptual loss
    needs. It follows its input's device. It computes in its own precision, whatever the training's is, because metrics
    and the identities of stored columns depend on its values. Weights, inputs and outputs are float32.

    Args:
        make: builds the network on the CPU; picklable where worker processes need the network.
        precision: ``highest`` is float32, ``high`` TF32 where the GPU has it, ``bf16`` autocast; None is the caller's.
    """

    def __init__(self, make: Callable[[], nn.Module], precision: FrozenPrecision | None = "highest") -> None:
        self.make = make
        self.precision: FrozenPrecision | None = precision
        self._module: nn.Module | None = None
        self._device = torch.device("cpu")

    @property
    def ready(self) -> bool:
        """Whether the network exists."""
        return self._module is not None

    @property
    def module(self) -> nn.Module:
        """The network; builds it at the first use."""
        if self._module is None:
            self.setup()
        assert self._module is not None
        return self._module

    def setup(self) -> None:
        """Build the network unless it exists, without a change of the caller's random state.

        Its tensors are ordinary ones even inside ``torch.inference_mode``: inference tensors fail later in backward.
        """
        if self._module is not None:
            return
        with torch.inference_mode(False), seeded(0):
            self._module = self.make().eval().requires_grad_(False).float()
        self._device = torch.device("cpu")

    def __call__(self, *inputs: Any) -> Any:
        """Run the network on ``inputs``, on the device of the first tensor among them."""
        return self.apply(lambda module, *values: module(*values), *inputs)

    def apply(self, use: Callable[..., Any], *inputs: Any) -> Any:
        """Return ``use(network, *inputs)``: for other methods of a network than its forward pass."""
        device = next((value.device for value in inputs if isinstance(value, Tensor)), self._device)
        module = self.module
        if device != self._device:
            with torch.inference_mode(False):
                module.to(device)
                if uses_tensor_cores(device.type, self.precision or "high"):
                    module.to(memory_format=torch.channels_last)
            self._device = device
        with nullcontext() if self.precision is None else frozen_precision(self.precision, device):
            output = use(module, *map(_as_float32, inputs))
        return tuple(map(_as_float32, output)) if isinstance(output, tuple) else _as_float32(output)

    def release(self) -> None:
        """Free the network and its memory; the next use builds it again."""
        self._module = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen":
        return self

    def __getstate__(self) -> dict[str, Any]:
        # a worker process builds its own copy: weights do not travel
        return {**self.__dict__, "_module": None, "_device": torch.device("cpu")}


def _as_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
