"""Weights that are cast for autocast once, not at every call of a network."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

# autocast casts all weights of these; subclasses may first compute with theirs in float32
CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@contextmanager
def cast_weights(networks: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Hold the weights of linear layers and convolutions in autocast's precision, if autocast is on for ``device``.

    Autocast caches the casts of weights that take a gradient only, and EMA weights take none: it casts them at every
    call. The results are the same to the last bit. For sampling: these weights are not trained.
    """
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    dtype, modules = torch.get_autocast_dtype(device.type), [m for network in networks for m in network.modules()]
    users = Counter(id(p) for module in dict.fromkeys(modules) for p in module._parameters.values())
    kept: list[tuple[nn.Module, str, nn.Parameter]] = []
    for module in dict.fromkeys(modules):
        weights = module._parameters.items() if type(module) in CAST else ()
        kept += [(module, key, p) for key, p in weights if p is not None and p.dtype != dtype and users[id(p)] == 1]
    try:
        for module, key, parameter in kept:
            with torch.inference_mode(False):  # inference tensors would fail in later calls outside of that mode
                module._parameters[key] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        yield
    finally:
        for module, key, parameter in kept:
            module._parameters[key] = parameter
