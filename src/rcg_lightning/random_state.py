"""Random numbers of a seed, without a change of the caller's random state."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.seed import isolate_rng


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Take torch's random numbers on the CPU from ``seed``; restore the generators of torch, NumPy and Python after.

    Those of every GPU too, once CUDA runs: a worker process must not start it. ``torch.manual_seed`` would seed GPUs
    where they are not restored, or ask for that at their start.
    """
    with isolate_rng(include_cuda=torch.cuda.is_initialized()):
        torch.default_generator.manual_seed(seed)
        yield
