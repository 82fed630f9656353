"""Two processes on the CPU, started by Lightning on one machine and by torchrun as two machines, against one process.

Each launch runs every stage in turn (every_stage.py) and writes what each process ended with. Extraction and sampling
have to agree to the last bit; training has to reach, up to rounding, what one process computes from the same images.
"""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.every_stage import (
    ALTERNATING,
    BATCH,
    CONDITIONS,
    SAMPLES,
    STEPS,
    Session,
    aligned,
    classifier,
    generator,
    masked,
    moco,
    transformer,
)
from rcg_lightning.callbacks.reseed import seed_of
from rcg_lightning.data.data_module import as_floats
from rcg_lightning.data.image_dataset import ImageDataset
from rcg_lightning.data.index_samplers import StreamSampler
from rcg_lightning.data.store import Store
from rcg_lightning.stages import ssl

if not torch.distributed.is_available():
    pytest.skip("this torch was built without torch.distributed", allow_module_level=True)

SCRIPT = Path(__file__).parents[1] / "helpers" / "every_stage.py"
RDMS = {"rdm_equally": "none", "rdm_class_equally": "class"}
EQUALLY = [*RDMS, *(f"{condition}_equally" for condition in CONDITIONS), "aligned_equally", "masked_equally"]
EQUALLY += ["again_equally", "accumulated_equally"]
TURNS = [f"{name}_equally" for name in ALTERNATING]
AS_IT_IS = ["moco", "classifier", "rdm", "masked", *CONDITIONS, *ALTERNATING]
LIMIT = 300  # seconds for a launch


def start(words: list[str]) -> subprocess.Popen:
    clean = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
    environment = {**clean, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "RCG_TRACEBACK": "1"}
    command = [sys.executable, *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def by_lightning(out: Path) -> list[subprocess.Popen]:
    return [start([str(SCRIPT), "--out", str(out), "--devices", "2", "--num_nodes", "1"])]


def by_torchrun(out: Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
    script = [str(SCRIPT), "--out", str(out), "--devices", "1", "--num_nodes", "2"]
    return [start(["-m", "torch.distributed.run", *where, "--node_rank", str(rank), *script]) for rank in range(2)]


@pytest.fixture(scope="module", params=[by_lightning, by_torchrun], ids=["one machine", "two machines"])
def pair(request, tmp_path_factory):
    """The folder in which two processes have run every stage."""
    out = tmp_path_factory.mktemp(request.param.__name__)
    started = request.param(out)
    try:
        for process in started:
            output = process.communicate(timeout=LIMIT)[0]
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in started:
            process.kill()
    return out


@pytest.fixture(scope="module")
def alone(pair, tmp_path_factory):
    """The folder in which one process has extracted, trained and sampled from what the two began with."""
    session = Session(tmp_path_factory.mktemp("alone"))
    session.extract(pair / "moco" / "encoder")
    session.fit_equally(pair / "stores")
    session.sample(pair)
    return session.folder


def note(folder, name, rank=0):
    return torch.load(folder / f"{name}-{rank}.pt", weights_only=True)


def ema_training(stage, data, world=2):
    """Train as two processes should: each half of a batch by itself, their gradients averaged, rank 0's statistics."""
    stage.build(data.spec).train()
    stage._trainer = SimpleNamespace(max_steps=STEPS)
    optimizer, scheduler = stage.optimizer.make(stage.trained_modules(), STEPS)
    rows = ImageDataset(data.images("train"), data.transform, None, {}, stage.needs, data.seed)
    streams = [iter(StreamSampler(len(data.images("train")), BATCH // world, data.seed, r, world)) for r in (0, 1)]
    for step in range(1, STEPS + 1):
        batches = [as_floats(rows[next(stream)]) for stream in streams]
        before = [buffer.clone() for buffer in stage.buffers()]

        def losses(rank, batches=batches, before=before, step=step):
            with torch.no_grad():
                for buffer, value in zip(stage.buffers(), before):
                    buffer.copy_(value)
            torch.manual_seed(seed_of(0, 0, step, rank))
            return stage.losses(batches[rank])["loss"]

        with all_keys(losses, world):
            optimizer.zero_grad()
            for rank in reversed(range(world)):  # rank 0 comes last: its statistics are kept
                (losses(rank) / world).backward()
        optimizer.step()
        scheduler.step()
        stage.after_step()
    return stage.state_dict()


@contextmanager
def all_keys(losses, world):
    """Let contrastive losses see the keys of every process, as `gather` does between real ones."""
    seen = []

    def note_own(keys):
        seen.append(keys)
        return keys, 0

    def of_everyone(keys):
        rank = next(rank for rank, known in enumerate(seen) if torch.equal(known, keys))
        return torch.cat(seen, dim=1), rank * keys.shape[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "gather", note_own)
        for rank in range(world):
            losses(rank)
        patch.setattr(ssl, "gather", of_everyone)
        yield


def agree(state, expected, start):
    """Assert that two state dicts are equal up to rounding, and far from the ``start`` of training."""
    assert state.keys() == expected.keys() == start.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=2e-4, atol=2e-6, msg=f"{name} differs")
    moved = [float((state[name] - value).abs().max()) for name, value in start.items() if value.is_floating_point()]
    assert max(moved) > 1e-2


@pytest.mark.parametrize("name", AS_IT_IS + EQUALLY + TURNS)
def test_both_processes_end_with_the_same_weights(pair, name):
    first, second = note(pair, name, 0), note(pair, name, 1)
    assert (first["world"], first["strategy"]) == (2, "DDPStrategy")
    static = {"static_graph": name != "accumulated_equally", "gradient_as_bucket_view": True}
    assert first["ddp"] == ({} if name.removesuffix("_equally") in ALTERNATING else static)
    for key, value in first["state"].items():
        if "running_" not in key and not key.endswith(("num_batches_tracked", ".scale")):  # those of rank 0 are kept
            assert torch.equal(value, second["state"][key]), key
    for metric in (name for name in first["metrics"] if not name.startswith("train/")):
        assert first["metrics"][metric] == second["metrics"][metric], metric


@pytest.mark.parametrize("name", EQUALLY)
def test_two_halves_of_a_batch_train_like_the_whole(pair, alone, name):
    mine, other = note(alone, name), note(pair, name)
    if name == "aligned_equally":
        start = aligned(pair / "moco" / "encoder").build(Session(pair).data().spec)
    elif name in ("masked_equally", "again_equally", "accumulated_equally"):
        make = transformer if name != "masked_equally" else lambda: masked(True)
        start = make().build(Session(pair).data().spec)
    else:
        kind, condition = ("rdm", RDMS[name]) if name in RDMS else ("pixels", name.partition("_")[0])
        start = generator(kind, condition, True).build(Session(pair).data(pair / "stores").spec)
    agree(other["state"], mine["state"], start.state_dict())
    assert other["metrics"]["val/loss"] == pytest.approx(mine["metrics"]["val/loss"], rel=1e-4)


@pytest.mark.parametrize("name", ALTERNATING)
def test_two_halves_of_a_batch_move_every_player_like_the_whole(pair, alone, name):
    mine, other = note(alone, f"{name}_equally"), note(pair, f"{name}_equally")
    start = ALTERNATING[name](True).build(Session(pair).data().spec).state_dict()
    agree(other["state"], mine["state"], start)
    assert other["metrics"]["val/loss"] == pytest.approx(mine["metrics"]["val/loss"], rel=1e-3)


@pytest.mark.parametrize(("name", "make"), [("moco", moco), ("classifier", classifier)])
def test_gradients_are_averaged_over_the_processes(pair, name, make):
    data = Session(pair, devices=2).data()
    states = [note(pair, name)["state"], ema_training(make(), data), make().build(data.spec).state_dict()]
    for state in states:
        state.pop("network.scale", None)  # set after training, by the process that exports
    agree(*states)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_extraction_is_equal_to_the_last_bit(pair, alone, split):
    for folder in (split, f"{split}_clusters"):
        both, one = Store.open(pair / "stores" / folder), Store.open(alone / "stores" / folder)
        both.verify()
        assert both.identity == one.identity
        assert both.columns == one.columns
        for column in one.columns:
            assert np.array_equal(both.whole(column), one.whole(column))


@pytest.mark.parametrize("name", ["rdm", *CONDITIONS, "weak"])
def test_samples_are_equal_to_the_last_bit(pair, alone, name):
    both, one = (Store.open(folder / f"samples_{name}" / "store") for folder in (pair, alone))
    (column,) = one.columns
    rows = one.whole(column)
    assert np.array_equal(both.whole(column), rows)
    assert both.identity == one.identity
    assert len(rows) == SAMPLES.get(name, 50)
    assert len(np.unique(rows.reshape(len(rows), -1), axis=0)) > 0.8 * len(rows)  # not all the same image


def test_the_representations_distance_counts_every_process_once(pair):
    first, second = note(pair, "rdm", 0)["metrics"], note(pair, "rdm", 1)["metrics"]
    names = [name for name in first if name.startswith("rep_fd/")]
    assert set(names) == {"rep_fd/encoder_451_train"}
    assert all(first[name] == second[name] for name in names)
