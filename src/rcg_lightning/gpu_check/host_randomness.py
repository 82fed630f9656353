"""Random numbers of training that are equal on every device: drawn on the CPU, whatever device asks for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FACTORIES = frozenset(["rand", "randn", "randint", "randperm"])
LIKE = frozenset(["rand_like", "randn_like", "randint_like"])  # of the shape of their first argument
OF_VALUES = frozenset(["bernoulli", "multinomial"])  # their first argument holds probabilities
IN_PLACE = frozenset(["uniform_", "normal_", "bernoulli_", "random_", "exponential_"])


class HostRandomness(TorchDispatchMode):
    """Draws all random numbers inside the context by the CPU's generator, so that two devices train alike."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, dict(kwargs or {})
        if name == "native_dropout":  # of GPUs; the CPU's dropout is bernoulli_
            return dropout(*args, **kwargs)
        if name in FACTORIES:
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs.get("device") or "cpu")
        if name in LIKE | OF_VALUES | IN_PLACE:
            return drawn_for(args[0], func, args, kwargs)
        return func(*args, **kwargs)


def drawn_for(like: Tensor, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the random numbers of a call for a tensor, drawn on the CPU; write them where the call does."""
    name, device = func.overloadpacket.__name__, kwargs.get("device") or like.device
    first = like.detach().cpu() if name in OF_VALUES else torch.empty_like(like, device="cpu")
    others = [value.cpu() if isinstance(value, Tensor) else value for value in args[1:]]
    found = func(first, *others, **{key: "cpu" if key == "device" else value for key, value in kwargs.items()})
    return like.copy_(found) if name in IN_PLACE else found.to(device)


def dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """Return ``x`` with a share ``p`` of zeros and the rest scaled, and the mask, as ``torch.native_dropout``."""
    if not train:
        return x, torch.ones_like(x, dtype=torch.bool)
    mask = torch.empty(x.shape).bernoulli_(1 - p).to(x)
    return x * mask / (1 - p), mask.bool()
