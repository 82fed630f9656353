"""Frozen networks: used, not trained, and outside the module tree."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute float32 matmuls and convolutions on NVIDIA GPUs in full precision."""
    matmul: Any = torch.backends.cuda.matmul
    convolution: Any = torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


class Frozen:
    """A network outside the module tree: never in a state dict, an EMA copy, an optimizer or DDP.

    It is in eval mode and its weights take no gradient, but a gradient can pass to its input, as a perceptual loss
    needs. It follows its input's device. It computes in ``dtype``, also inside autocast, and in full float32 also where
    training uses TF32: metrics and the identities of stored columns depend on its values.

    Args:
        make: builds the network on the CPU; picklable where worker processes need the network.
        dtype: precision of weights and inputs.
    """

    def __init__(self, make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> None:
        self.make = make
        self.dtype = dtype
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
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = self.make().eval().requires_grad_(False)
            self._module = module.to(dtype=self.dtype)
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
            self._device = device
        with torch.autocast(device.type, enabled=False), without_tf32():
            return use(module, *(self._cast(value) for value in inputs))

    def _cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

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
