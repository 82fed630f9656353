"""All workloads of `rcg bench`, and the choice among them."""

import difflib
import importlib.util
from pathlib import Path

from rcg_lightning.bench.generators import DiTSampling, DiTTraining, MAGESampling, MAGETraining, TokenDecoding
from rcg_lightning.bench.neighbours import NeighbourSearch
from rcg_lightning.bench.representations import Extraction, RDMSampling, RDMTraining
from rcg_lightning.bench.surroundings import DECODERS, Decoding, Input, Scoring
from rcg_lightning.bench.workload import Workload
from rcg_lightning.types import require


def workloads(images: Path | None, gpu: bool) -> list[Workload]:
    """Return all workloads in the order of the stages, with batch sizes that suit the device.

    Args:
        images: folder of JPEG files to read; None generates some.
    """
    return [
        Input(images),
        *(Decoding(library, images) for library in DECODERS),
        Extraction(256 if gpu else 4),
        *neighbour_searches(gpu),
        *(RDMTraining(batch) for batch in ((512,) if gpu else (16, 128))),
        *(RDMSampling(batch) for batch in ((16, 8192) if gpu else (16, 1024))),
        MAGETraining(64 if gpu else 2),
        MAGETraining(64 if gpu else 2, attention_dropout=0.0),
        MAGETraining(64 if gpu else 2, dropout=0.0),
        *(MAGESampling(64 if gpu else 2, guided) for guided in (False, True)),
        TokenDecoding(64 if gpu else 2),
        *(DiTTraining(64 if gpu else 2, size) for size in ("B/2", "XL/2")),
        *(DiTSampling(64 if gpu else 2, size) for size in ("B/2", "XL/2")),
        Scoring(256 if gpu else 32),
    ]


def neighbour_searches(gpu: bool) -> list[Workload]:
    """Return searches of a tenth of ImageNet in little and much memory, also by faiss if installed; on a GPU of all."""
    if gpu:
        return [NeighbourSearch(memory, size=1_281_167) for memory in (2 * 10**9, 16 * 10**9)]
    variants = (False, True) if importlib.util.find_spec("faiss") else (False,)
    return [NeighbourSearch(memory, faiss) for faiss in variants for memory in (64 * 10**6, 10**9)]


def chosen(every: list[Workload], only: list[str] | None, gpu: bool) -> list[Workload]:
    """Return the workloads whose names contain one of ``only``; None omits the heavy ones, except on a GPU.

    Raises:
        UserError: no name contains one of ``only``.
    """
    if only is None:
        return [workload for workload in every if gpu or not workload.heavy]
    for word in only:
        near = difflib.get_close_matches(word, [name for w in every for name in w.name.split()], n=1)
        hint = f": did you mean {near[0]}?" if near else f": there are {'; '.join(w.name for w in every)}"
        require(any(word in workload.name for workload in every), f"no workload has {word!r} in its name{hint}")
    return [workload for workload in every if any(word in workload.name for word in only)]
