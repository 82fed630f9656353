"""kill -9 of one of two processes (DDP, gloo): the other gets SIGTERM, as torchrun does; both continue."""

import random
import signal
import socket
from functools import partial
from pathlib import Path

from .cases import Case, expect
from .process import Ended, Running, start
from .results import differences, results, torn_files
from .world import World

RUNS = ("encoder", "gan", "rdm", "dit", "store")
SECONDS = 30  # from torchrun's SIGTERM to its SIGKILL
EXPECTED = "nothing finished is lost, both continue to the same bits"


def ranks(world: World, seed: int) -> list[Case]:
    """Cases of killing the first or the second process of a job."""
    cases = []
    for name in RUNS:
        for rank in range(2):
            moment = random.Random(f"{seed} rank {name} {rank}").random()
            check = partial(_kill_rank, world, name, rank, moment)
            cases.append(Case("kill -9 of a rank", f"{name} {rank}", EXPECTED, check, (name,)))
    return cases


def _kill_rank(world: World, name: str, rank: int, moment: float, folder: Path) -> None:
    undisturbed = [process.wait() for process in _pair(world, name, folder, folder / "undisturbed")]
    expect([ended.code for ended in undisturbed] == [0, 0], f"two undisturbed processes: {_codes(undisturbed)}")
    out, both = folder / "run", _pair(world, name, folder, folder / "run")
    known = undisturbed[rank].cpu
    if both[rank].signal_at(0.3 * known + moment * 0.65 * known, signal.SIGKILL):
        both[rank].wait()
        ended = both[1 - rank].terminate(SECONDS)
        expect(ended.code != 0 or name == "store", "the other process reports success")
    else:
        _ = [process.wait() for process in both]
    expect(not torn_files(out), f"half files under final names: {torn_files(out)}")
    again = [process.wait() for process in _pair(world, name, folder, out, resumed=True)]
    expect([ended.code for ended in again] == [0, 0], f"the continued run: {_codes(again)}")
    wrong = differences(results(out), results(folder / "undisturbed"))
    expect(not wrong, f"results are not those of the undisturbed processes: {wrong[:4]}")


def _codes(both: list[Ended]) -> str:
    return f"rc {[ended.code for ended in both]}: {' // '.join(ended.output[-300:] for ended in both)}"


def _pair(world: World, name: str, folder: Path, out: Path, resumed: bool = False) -> list[Running]:
    """Start both processes of a job, as torchrun does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    job |= {"TORCHELASTIC_RUN_ID": "faults"}
    argv = world.argv(name, out, resumed)
    argv += ["--trainer.devices", "2"] if argv[0] == "fit" else ["--devices", "2", "--accelerator", "cpu"]
    return [start(argv, folder, environment={**job, "RANK": rank, "LOCAL_RANK": rank}) for rank in range(2)]
