"""Report a lack of memory in one line: the setting to lower, and by how much. Nothing here imports torch."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rcg_lightning.config import ConfigMixin
from rcg_lightning.errors import UserError

_WORDS = (  # errors that only the message identifies: on CPUs, and in some GPU libraries
    "can't allocate memory",
    "out of memory",
    "not enough memory",
    "ALLOC_FAILED",
)


@contextmanager
def remedied(advice: Callable[[], str]) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into a UserError that ends with ``advice``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lack = shortage(error)
        if lack is None:
            raise
        raise UserError(f"{lack}: {advice()}") from error


def shortage(error: BaseException) -> str | None:
    """Describe the lack of memory that caused an error; None for any other error."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _in_words(error):
        words = str(error)
        device = re.search(r"CUDA|HIP|XPU|MPS|CUBLAS|CUDNN", words)
        amount = re.search(r"(?:[Tt]ried to allocate|[Uu]nable to allocate) ([\d.]+ ?\w+)", words)
        owner = "the GPU" if device else "this machine"
        return f"{owner} is out of memory" + (f" (for another {amount[1]})" if amount else "")
    return None if error.__cause__ is None else shortage(error.__cause__)


def _in_words(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def in_training(stage: Any, batch_size: int, accumulated: int) -> str:
    """Advise how to train ``stage`` in less memory.

    Args:
        stage: the LightningModule.
        batch_size: of the loader.
        accumulated: batches over which the trainer accumulates gradients.
    """
    variants = []
    if not stage.automatic_optimization:
        variants.append(f"{_changed('model.accumulate', stage.accumulate, 2 * stage.accumulate)} (it divides a batch)")
    elif batch_size > 1:
        added = f"{_changed('trainer.accumulate_grad_batches', accumulated, 2 * accumulated)}, so that a step still has"
        variants.append(
            f"{halved('data.batch_size', batch_size)} with {added} {batch_size // 2 * 2 * accumulated} images"
        )
    path = _uncheckpointed(stage)
    if path is not None:
        variants.append(f"set model.{path}.checkpointing true, for a third more time")
    return "; or ".join(variants) or "choose a smaller network"


def in_command(values: Mapping[str, Any]) -> str:
    """Advise which of a command's arguments to lower."""
    batch_size, data = values.get("batch_size"), values.get("data")
    if "tile" in values:  # a generator computes a tile at once, whatever the batch size
        tile = values["tile"]
        return halved("--tile", tile) if tile else "give --tile 16, or less: this many samples are computed together"
    if batch_size is not None:
        return halved("--batch_size", batch_size)
    size = getattr(data, "batch_size", None)
    return "give it a smaller task" if size is None else halved("--data.batch_size", size)


def halved(setting: str, value: int) -> str:
    """Advise to halve a setting."""
    return _changed(setting, value, value // 2) if value > 1 else f"{setting} is 1 already: choose a smaller network"


def _changed(setting: str, value: int, other: int) -> str:
    return f"{'lower' if other < value else 'raise'} {setting} from {value} to {other}"


def _uncheckpointed(stage: Any) -> str | None:
    """Return the config path of a network that could use checkpointing but stores all activations."""
    for name, module in stage.named_modules():
        can_checkpoint = isinstance(module, ConfigMixin) and getattr(module, "checkpointing", None) is False
        if can_checkpoint and not name.startswith("ema."):
            return name
    return None
