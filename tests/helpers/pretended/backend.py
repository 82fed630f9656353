"""The device "gpu" of this process: torch's Python backend of PrivateUse1, registered when this file is imported."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration


class Backend(backend_registration._DummyBackendModule):
    """The module ``torch.gpu``. The device has random numbers of its own, as a GPU has."""

    def __init__(self) -> None:
        self._generator = torch.Generator()

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return True

    def get_rng_state(self, device: Any = None) -> Tensor:
        return self._generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        self._generator.set_state(state)

    def manual_seed(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    manual_seed_all = manual_seed

    def synchronize(self, device: Any = None) -> None: ...

    def empty_cache(self) -> None: ...

    @contextmanager
    def random_numbers(self) -> Iterator[None]:
        """Let operators on CPU tensors take the device's random numbers."""
        host = torch.get_rng_state()
        torch.set_rng_state(self._generator.get_state())
        try:
            yield
        finally:
            self._generator.set_state(torch.get_rng_state())
            torch.set_rng_state(host)


BACKEND = Backend()
backend_registration._setup_privateuseone_for_python_backend("gpu", BACKEND)
GPU = torch.device("gpu:0")


def on_gpu(device: Any) -> bool:
    """Whether ``device``, given in any form or not at all, is the pretended one."""
    return device is not None and torch.device(device).type == GPU.type
