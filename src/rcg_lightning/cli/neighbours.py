"""`rcg neighbours`: the nearest neighbours of every image among stored representations, as a store."""

import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from rcg_lightning.cli.compare import pick_device
from rcg_lightning.cli.parsing import call, echo, progress_bar
from rcg_lightning.data.neighbours import ExactIndex
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import ShardCollector, StoreWriter
from rcg_lightning.data.stored_neighbours import FaissIndex, StoredNeighbours, faiss_module
from rcg_lightning.types import require

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def neighbours(
    store: Path,
    out: Path,
    k: int = 50,
    memory: str = "2GB",
    index: Literal["exact", "faiss"] = "exact",
    accelerator: str = "auto",
) -> None:
    """Find each image's nearest neighbours by the cosine of representations, for conditions on instances.

    Exact. Stopped at any moment, the same command continues.

    Args:
        store: made by `rcg extract`; of several views the first is compared.
        out: store to write, to be given in data.stores next to the first.
        k: neighbours of each image, itself included and first.
        memory: what may be used at a time beyond the program itself, such as 500MB or 8GB; of a GPU too.
        index: exact, by matmuls, or faiss, which finds the same on the CPU.
        accelerator: cpu, gpu, mps or auto.
    """
    limit = bytes_of(memory)
    source = Store.open(store)
    require("representation" in source.columns, f"{store} holds no representations: give a store of `rcg extract`")
    if index == "faiss":
        faiss_module()
        require(
            accelerator in ("auto", "cpu"), f"faiss computes on the CPU here: leave --accelerator {accelerator} out"
        )
    device = torch.device("cpu") if index == "faiss" else pick_device(accelerator)
    found = StoredNeighbours(source, k, limit, device, FaissIndex if index == "faiss" else ExactIndex)
    encoder = source.identity.get("representation")
    fixed = {name: source.identity[name] for name in ("dataset", "split", "transform")}
    writer = StoreWriter(out, source.size, 1, source.shard_rows, {**fixed, "neighbours": f"{encoder}/k{k}"})
    collector = ShardCollector(writer)
    parts = [part for shard in writer.pending() for part in found.parts(shard)]
    for start, stop in progress_bar(parts, "neighbours", len(parts)):
        rows = np.arange(start, stop)
        collector.add(rows, np.zeros_like(rows), {"neighbours": found.find(start, stop)})
    writer.finish({"neighbours": {"representation": encoder}})
    echo(f"{out}: {k} neighbours of each of {source.size} images")


def bytes_of(text: str) -> int:
    """Return how many bytes ``text`` means, such as 500MB, 2GB, 1.5 GiB or 100000.

    Raises:
        UserError: it is no amount of memory.
    """
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    try:
        assert match is not None
        return int(float(match[1]) * _UNITS[match[2]])
    except (AssertionError, ValueError, KeyError):
        require(False, f"--memory is an amount such as 500MB or 2GB, not {text!r}")
        raise


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg neighbours --store runs/store --k 50 --out runs/neighbours",
        "rcg neighbours --store runs/store --memory 8GB --index faiss --out runs/neighbours",
    ]
    call(neighbours, name, argv, examples)
