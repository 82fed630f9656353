"""Cost of watching training steps for values that are not finite: python -m rcg_lightning.bench.guard_cost."""

import time
from statistics import median

import torch
from torch import nn

from rcg_lightning.bench.frozen import DIM
from rcg_lightning.bench.generators import SPEC, dit, stored
from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.bench.representations import STORED
from rcg_lightning.bench.training import TrainingStep
from rcg_lightning.bench.workload import shipped_stage
from rcg_lightning.types import DataSpec

TIMES = 7


def unwatched(step: TrainingStep) -> None:
    """Take a step without the guard."""
    step.stage.guard.begin_step()
    vars(step.optimizer).pop("found_inf", None)
    step.losses()["loss"].backward()
    if step.stage.optimizer.clip is not None:
        nn.utils.clip_grad_norm_(step.parameters, step.stage.optimizer.clip)
    step.optimizer.step()
    step.optimizer.zero_grad(set_to_none=True)
    step.rate.step()
    step.stage.after_step()


def compare(name: str, step: TrainingStep) -> str:
    """Time both steps in turn; return their medians, the median ratio, and the operators that the guard adds."""
    calls = []
    for work in (lambda: unwatched(step), step):
        work()
        with HostSyncs() as syncs:
            work()
        calls.append(syncs.calls)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(TIMES):
        for work, times in zip((lambda: unwatched(step), step), seconds):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
    ratio = median(after / before for before, after in zip(*seconds))
    added = calls[1] - calls[0]
    more = ", ".join(f"{count} {operator}" for operator, count in sorted(added.items()))
    return f"{name}: {median(seconds[0]):.3f} s, watched {median(seconds[1]):.3f} s, ratio {ratio:.3f}; adds {more}"


def main() -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    rdm = shipped_stage("imagenet256/rdm", DataSpec((3, 256, 256), columns=STORED))
    rows = {"representation": torch.randn(128, DIM), "index": torch.arange(128)}
    print(compare("RDM, batch 128", TrainingStep(rdm, rows, device)), flush=True)  # type: ignore[arg-type]
    small = shipped_stage("imagenet256/dit_rep", SPEC, denoiser=dit("S/2"))
    print(compare("DiT-S/2, batch 4", TrainingStep(small, stored(4), device)), flush=True)


if __name__ == "__main__":
    main()
