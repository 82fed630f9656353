"""`rcg bench`: what the stages cost at their real sizes, next to the machine's limit and the official code."""

from pathlib import Path

import torch

from rcg_lightning.artifacts import write_json, write_text
from rcg_lightning.bench.report import Row, comparison, machine, read_bench, table
from rcg_lightning.bench.suite import chosen, workloads
from rcg_lightning.bench.timing import Timing
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call


def bench(
    only: list[str] | None = None,
    out: Path | None = None,
    compare: Path | None = None,
    profile: Path | None = None,
    images: Path | None = None,
    times: int = 5,
    threads: int = 1,
    device: str | None = None,
    baseline: bool = False,
    markdown: Path | None = None,
) -> None:
    """Time the stages at their published sizes, with random weights: items a second, CPU seconds and FLOPs an item.

    With --baseline the same work is timed as the official code does it, too: with explicit attention, one parameter
    after the other in optimizer and EMA weights, the official batch in sampling, and so on, by switches of the same
    modules; and once more without a store, with the frozen networks in every training step, next to the cost of making
    a store.

    On a CPU times are CPU seconds of this process, which other programs disturb least; one thread by default. The
    official code's times stand in the program and are scaled by the matrix rate that is measured in the same run.
    Each workload has a process of its own: memory that others used before would slow it and hide its peak.

    Args:
        only: time the workloads whose names hold one of these words; heavy ones are timed only so, or on a GPU.
        out: JSON file to write.
        compare: what an earlier run wrote with --out.
        profile: folder for a trace of one run of each workload, which TensorBoard and Perfetto open.
        images: folder of JPEG files to read; otherwise some are made.
        times: runs, of which the median counts; 3 at most of what takes more than 10 seconds.
        threads: of a CPU.
        device: cpu, cuda or mps; the GPU where there is one.
        baseline: time the baseline in the same run.
        markdown: file to write the tables to.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    before = read_bench(compare) if compare else None
    timing = Timing(where, times, threads, baseline, profile)
    rows: list[Row] = []
    for workload in chosen(workloads(images, where.type == "cuda"), only, where.type == "cuda"):
        rows.append(timing.in_a_process(workload))
        speed = f"{1 / rows[-1].seconds:.3g} {workload.unit}s a second, {rows[-1].rate / 1e9:.0f} GFLOP/s"
        echo(f"{workload.name}: {speed}")
    tables = "\n\n".join([table(rows, before), comparison(rows)])
    echo("\n" + tables)
    if markdown:
        write_text(markdown, tables + "\n")
    if out:
        found = {row.workload.name: row.plain() for row in rows}
        write_json(out, {"machine": machine(where), "workloads": found})


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg bench --out runs/bench.json",
        "rcg bench --only RDM --profile runs/traces",
        "rcg bench --compare runs/bench.json",
        "rcg bench --baseline true --out runs/bench.json --markdown runs/bench.md",
    ]
    call(bench, name, argv, examples)
