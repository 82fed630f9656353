"""`rcg bench`: cost of the stages at their real sizes, next to the machine's limit and the official code."""

from pathlib import Path

from rcg_lightning.arguments import PositiveInt
from rcg_lightning.artifacts import write_json, write_text
from rcg_lightning.bench.report import Row, comparison, machine, read_bench, table
from rcg_lightning.bench.suite import chosen, workloads
from rcg_lightning.bench.timing import Timing
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.trainer import pick_device


def bench(
    only: list[str] | None = None,
    out: Path | None = None,
    compare: Path | None = None,
    profile: Path | None = None,
    images: Path | None = None,
    times: PositiveInt = 5,
    threads: PositiveInt = 1,
    device: str | None = None,
    baseline: bool = False,
    markdown: Path | None = None,
) -> None:
    """Time the stages at their published sizes, with random weights: items per second, CPU seconds and FLOPs per item.

    --baseline also times the same work as the official code does it: explicit attention, one parameter after the other
    in optimizer and EMA weights, the official batch size in sampling, and so on, by switches of the same modules. It
    times it again without a store, with the frozen networks in every training step, and the cost of writing a store.

    On a CPU, times are CPU seconds of this process, which other programs disturb least; one thread by default. The
    official code's times are constants, scaled by the matrix rate that is measured in the same run. Each workload has
    its own process: memory used by earlier workloads would slow it and hide its peak.

    Args:
        only: time the workloads whose names contain one of these words; heavy ones need this, or a GPU.
        out: JSON file to write.
        compare: file that an earlier run wrote with --out.
        profile: folder for a trace of one run of each workload, which TensorBoard and Perfetto open.
        images: folder of JPEG files to read; without it noise images are generated.
        times: number of runs, of which the median counts; at most 3 for a run of more than 10 seconds.
        threads: of the CPU.
        device: cpu, cuda or mps; by default the GPU if there is one.
        baseline: time the baseline in the same run.
        markdown: file for the tables.
    """
    where = pick_device(device or "auto")
    before = read_bench(compare) if compare else None
    timing = Timing(where, times, threads, baseline, profile)
    rows: list[Row] = []
    for workload in chosen(workloads(images, where.type == "cuda"), only, where.type == "cuda"):
        rows.append(timing.in_new_process(workload))
        speed = f"{1 / rows[-1].seconds:.3g} {workload.unit}s per second, {rows[-1].rate / 1e9:.0f} GFLOP/s"
        echo(f"{workload.name}: {speed}")
    tables = "\n\n".join([table(rows, before), comparison(rows)])
    echo("\n" + tables)
    if markdown:
        write_text(markdown, tables + "\n")
    if out:
        found = {row.workload.name: row.to_dict() for row in rows}
        write_json(out, {"machine": machine(where), "workloads": found})


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg bench --out runs/bench.json",
        "rcg bench --only RDM --profile runs/traces",
        "rcg bench --compare runs/bench.json",
        "rcg bench --baseline --out runs/bench.json --markdown runs/bench.md",
    ]
    call(bench, name, argv, examples)
