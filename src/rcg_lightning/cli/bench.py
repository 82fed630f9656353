"""`rcg bench`: what the stages cost at their real sizes, next to the machine's limit and the official code."""

import difflib
import importlib.util
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from rcg_lightning.bench.generators import DiTSampling, DiTTraining, MAGESampling, MAGETraining, TokenDecoding
from rcg_lightning.bench.measure import limit, measure_in_turns
from rcg_lightning.bench.neighbours import NeighbourSearch
from rcg_lightning.bench.report import Row, comparison, machine, table
from rcg_lightning.bench.representations import Extraction, RDMSampling, RDMTraining
from rcg_lightning.bench.surroundings import DECODERS, Decoding, Input, Scoring
from rcg_lightning.bench.workload import Workload
from rcg_lightning.cli.parsing import call, echo
from rcg_lightning.errors import UserError
from rcg_lightning.types import require


def workloads(images: Path | None, gpu: bool) -> list[Workload]:
    """Everything that can be timed, in the order of the stages; batches as they suit the device."""
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
    """A tenth of ImageNet in little and in much memory, by faiss too where it is installed; all of it on a GPU."""
    if gpu:
        return [NeighbourSearch(memory, size=1_281_167) for memory in (2 * 10**9, 16 * 10**9)]
    variants = (False, True) if importlib.util.find_spec("faiss") else (False,)
    return [NeighbourSearch(memory, faiss) for faiss in variants for memory in (64 * 10**6, 10**9)]


def bench(
    only: list[str] | None = None,
    out: Path | None = None,
    compare: Path | None = None,
    profile: Path | None = None,
    images: Path | None = None,
    times: int = 5,
    threads: int = 1,
    device: str | None = None,
    plain: bool = False,
    markdown: Path | None = None,
) -> None:
    """Time the stages at their published sizes, with random weights: items a second, CPU seconds and FLOPs an item.

    With --plain the same work is timed the baseline, too: with explicit attention, one parameter after the other in
    optimizer and EMA weights, the official batch in sampling, and so on, by switches of the same modules; and once more
    without a store, with the frozen networks in every training step, next to the cost of a store's making.

    On a CPU the metrics are CPU seconds of this process, which other programs disturb least; one thread unless said.
    The official code's times stand in the program and are scaled by the matrix rate that is measured in the same run.
    Each workload has a process of its own: memory that others used before would slow it and hide its peak.

    Args:
        only: do the workloads whose names hold one of these words; heavy ones are done only so, or on a GPU.
        out: JSON file to write.
        compare: what an earlier run wrote with --out.
        profile: folder for a trace of one run of each workload, which TensorBoard and Perfetto open.
        images: folder of JPEG files to read; otherwise some are made.
        times: runs, of which the median counts; 3 at most of what takes more than 10 seconds.
        threads: of a CPU.
        device: cpu, cuda or mps; the GPU where there is one.
        plain: time the baseline in the same run.
        markdown: file to write the tables to.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    before = _read(compare) if compare else None
    rows: list[Row] = []
    for workload in chosen(workloads(images, where.type == "cuda"), only, where.type == "cuda"):
        settings = (workload, times, threads, where, plain, profile)
        rows.append(_in_a_process(*settings))
        echo(
            f"{workload.name}: {1 / rows[-1].seconds:.3g} {workload.unit}s a second, {rows[-1].rate / 1e9:.0f} GFLOP/s"
        )
    tables = "\n\n".join([table(rows, before), comparison(rows)])
    echo("\n" + tables)
    if markdown:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(tables + "\n")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        found = {row.workload.name: row.plain() for row in rows}
        out.write_text(json.dumps({"machine": machine(where), "workloads": found}, indent=1))


def _in_a_process(*settings: Any) -> Row:
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_row, *settings).result()


def _row(workload: Workload, times: int, threads: int, device: torch.device, plain: bool, profile: Path | None) -> Row:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    variants = workload.prepare(device).several(plain)
    before = limit(device)  # and after, for other programs come and go
    costs = dict(zip(variants, measure_in_turns(list(variants.values()), times, device)))
    rate, best = ((one + other) / 2 for one, other in zip(before, limit(device)))
    if profile:
        _trace(variants["fast"][0], profile / f"{workload.name.replace(', ', '_').replace(' ', '_')}.json", device)
    return Row(workload, costs.pop("fast"), rate, device.type != "cpu", costs, best)


def chosen(every: list[Workload], only: list[str] | None, gpu: bool) -> list[Workload]:
    """Return the workloads that were asked for; UserError where a word fits none."""
    if only is None:
        return [workload for workload in every if gpu or not workload.heavy]
    for word in only:
        near = difflib.get_close_matches(word, [name for w in every for name in w.name.split()], n=1)
        hint = f": did you mean {near[0]}?" if near else f": there are {'; '.join(w.name for w in every)}"
        require(any(word in workload.name for workload in every), f"no workload has {word!r} in its name{hint}")
    return [workload for workload in every if any(word in workload.name for word in only)]


def _trace(work: Any, path: Path, device: torch.device) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as trace:
        work()
    trace.export_chrome_trace(str(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as the result of a bench: {error}") from error
    require({"machine", "workloads"} <= content.keys(), f"{path} is no result of `rcg bench --out`")
    return content


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg bench --out runs/bench.json",
        "rcg bench --only RDM --profile runs/traces",
        "rcg bench --compare runs/bench.json",
        "rcg bench --plain true --out runs/bench.json --markdown runs/bench.md",
    ]
    call(bench, name, argv, examples)
