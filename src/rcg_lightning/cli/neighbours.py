"""`rcg neighbours`: the nearest neighbours of every image among stored representations, as a store."""

import re
from pathlib import Path
from typing import Literal

import torch

from rcg_lightning.arguments import PositiveInt
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.data.neighbours import ExactIndex
from rcg_lightning.data.store import representation_store
from rcg_lightning.data.stored_neighbours import FaissIndex, StoredNeighbours, faiss_module
from rcg_lightning.trainer import pick_device
from rcg_lightning.types import require

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def neighbours(
    store: Path,
    out: Path,
    k: PositiveInt = 50,
    memory: str = "2GB",
    index: Literal["exact", "faiss"] = "exact",
    accelerator: str = "auto",
) -> None:
    """Find each image's exact nearest neighbours by cosine of representations, for instance conditions.

    After an interruption, the same command continues.

    Args:
        store: written by `rcg extract`; of several views the first is compared.
        out: store to write; list it in data.stores next to the first.
        k: neighbours of each image; the first is the image itself.
        memory: maximum memory in addition to the program itself, on a CPU or GPU, such as 500MB or 8GB.
        index: exact, by matmuls, or faiss, which finds the same neighbours on the CPU.
        accelerator: cpu, gpu, mps or auto.
    """
    limit = bytes_of(memory)
    source = representation_store(store)
    if index == "faiss":
        faiss_module()
        require(accelerator in ("auto", "cpu"), f"faiss computes on the CPU here: omit --accelerator {accelerator}")
    device = torch.device("cpu") if index == "faiss" else pick_device(accelerator)
    StoredNeighbours(source, k, limit, device, FaissIndex if index == "faiss" else ExactIndex).write(out)
    echo(f"{out}: {k} neighbours of each of {source.size} images")


def bytes_of(text: str) -> int:
    """Parse an amount of memory in bytes, such as 500MB, 2GB, 1.5 GiB or 100000.

    Raises:
        UserError: ``text`` is not an amount of memory.
    """
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    number, unit = found.groups() if found else ("", "")
    try:
        amount = int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        amount = 0
    require(amount > 0, f"--memory is an amount such as 500MB or 2GB, not {text!r}")
    return amount


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg neighbours --store runs/store --k 50 --out runs/neighbours",
        "rcg neighbours --store runs/store --memory 8GB --index faiss --out runs/neighbours",
    ]
    call(neighbours, name, argv, examples)
