"""Two processes on the CPU, started by Lightning on one machine and by torchrun as two machines, against one process.

Each launch runs every stage in turn (every_stage.py) and writes the final state of each process. Extraction and
sampling have to be bit-equal; training has to reach, up to rounding, the weights of one process on the same images.
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
# "equally": the noise is a function of the image, so that one process reaches the same weights
RDMS = {"rdm_equally": "none", "rdm_class_equally": "class"}
EQUALLY = [*RDMS, *(f"{condition}_equally" for condition in CONDITIONS), "aligned_equally", "masked_equally"]
EQUALLY += ["again_equally", "accumulated_equally"]
ALTERNATING_EQUALLY = [f"{name}_equally" for name in ALTERNATING]
AS_IT_IS = ["moco", "classifier", "rdm", "masked", *CONDITIONS, *ALTERNATING]
LIMIT = 300  # seconds for a launch


def start(arguments: list[str]) -> subprocess.Popen:
    clean = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
    environment = {**clean, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "RCG_TRACEBACK": "1"}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def by_lightning(out: Path) -> list[subprocess.Popen]:
    return [start([str(SCRIPT), "--out", str(out), "--devices", "2", "--num_nodes", "1"])]


def by_torchrun(out: Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
    script = [str(SCRIPT), "--out", str(out), "--devices", "1", "--num_nodes", "2"]
    return [start(["-m", "torch.distributed.run", *launch, "--node_rank", str(rank), *script]) for rank in range(2)]


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
    """The folder in which one process has extracted, trained and sampled from the same inputs."""
    session = Session(tmp_path_factory.mktemp("alone"))
    session.extract(pair / "moco" / "encoder")
    session.fit_equally(pair / "stores")
    session.sample(pair)
    return session.folder


def final_state(folder, name, rank=0):
    return torch.load(folder / f"{name}-{rank}.pt", weights_only=True)


def train_as_two_processes(stage, data, world=2):
    """Train on each half of a batch by itself, with averaged gradients and rank 0's batch statistics."""
    stage.build(data.spec).train()
    stage._trainer = SimpleNamespace(max_steps=STEPS)
    optimizer, scheduler = stage.optimizer.make(stage.trained_modules(), STEPS)
    images = ImageDataset(data.images("train"), data.transform, None, {}, stage.needs, data.seed)
    streams = [iter(StreamSampler(len(data.images("train")), BATCH // world, data.seed, r, world)) for r in (0, 1)]
    for step in range(1, STEPS + 1):
        batches = [as_floats(images[next(stream)]) for stream in streams]
        before = [buffer.clone() for buffer in stage.buffers()]

        def losses(rank, batches=batches, before=before, step=step):
            with torch.no_grad():
                for buffer, value in zip(stage.buffers(), before):
                    buffer.copy_(value)
            torch.manual_seed(seed_of(0, 0, step, rank))
            return stage.losses(batches[rank])["loss"]

        with all_keys(losses, world):
            optimizer.zero_grad()
            for rank in reversed(range(world)):  # rank 0 comes last: its statistics remain
                (losses(rank) / world).backward()
        optimizer.step()
        scheduler.step()
        stage.after_step()
    return stage.state_dict()


@contextmanager
def all_keys(losses, world):
    """Give contrastive losses the keys of every process, as `gather` does between real processes."""
    recorded = []

    def record(keys):
        recorded.append(keys)
        return keys, 0

    def gather(keys):
        rank = next(rank for rank, own in enumerate(recorded) if torch.equal(own, keys))
        return torch.cat(recorded, dim=1), rank * keys.shape[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "gather", record)
        for rank in range(world):
            losses(rank)
        patch.setattr(ssl, "gather", gather)
        yield


def assert_agree(state, expected, start):
    """Assert that two state dicts are equal up to rounding, and differ from the ``start`` of training."""
    assert state.keys() == expected.keys() == start.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=2e-4, atol=2e-6, msg=f"{name} differs")
    changes = [float((state[name] - value).abs().max()) for name, value in start.items() if value.is_floating_point()]
    assert max(changes) > 1e-2


@pytest.mark.parametrize("name", AS_IT_IS + EQUALLY + ALTERNATING_EQUALLY)
def test_both_processes_end_with_the_same_weights(pair, name):
    first, second = final_state(pair, name, 0), final_state(pair, name, 1)
    assert (first["world"], first["strategy"]) == (2, "DDPStrategy")
    static = {"static_graph": name != "accumulated_equally", "gradient_as_bucket_view": True}
    assert first["ddp"] == ({} if name.removesuffix("_equally") in ALTERNATING else static)
    for key, value in first["state"].items():
        if "running_" not in key and not key.endswith(("num_batches_tracked", ".scale")):  # rank 0's are saved
            assert torch.equal(value, second["state"][key]), key
    for metric in (name for name in first["metrics"] if not name.startswith("train/")):
        assert first["metrics"][metric] == second["metrics"][metric], metric


@pytest.mark.parametrize("name", EQUALLY)
def test_two_halves_of_a_batch_train_like_the_whole(pair, alone, name):
    one, two = final_state(alone, name), final_state(pair, name)
    if name == "aligned_equally":
        start = aligned(pair / "moco" / "encoder").build(Session(pair).data().spec)
    elif name in ("masked_equally", "again_equally", "accumulated_equally"):
        make = transformer if name != "masked_equally" else lambda: masked(True)
        start = make().build(Session(pair).data().spec)
    else:
        kind, condition = ("rdm", RDMS[name]) if name in RDMS else ("pixels", name.partition("_")[0])
        start = generator(kind, condition, True).build(Session(pair).data(pair / "stores").spec)
    assert_agree(two["state"], one["state"], start.state_dict())
    assert two["metrics"]["val/loss"] == pytest.approx(one["metrics"]["val/loss"], rel=1e-4)


@pytest.mark.parametrize("name", ALTERNATING)
def test_two_halves_of_a_batch_train_every_network_like_the_whole(pair, alone, name):
    one, two = final_state(alone, f"{name}_equally"), final_state(pair, f"{name}_equally")
    start = ALTERNATING[name](True).build(Session(pair).data().spec).state_dict()
    assert_agree(two["state"], one["state"], start)
    assert two["metrics"]["val/loss"] == pytest.approx(one["metrics"]["val/loss"], rel=1e-3)


@pytest.mark.parametrize(("name", "make"), [("moco", moco), ("classifier", classifier)])
def test_gradients_are_averaged_over_the_processes(pair, name, make):
    data = Session(pair, devices=2).data()
    trained, start = train_as_two_processes(make(), data), make().build(data.spec).state_dict()
    states = [final_state(pair, name)["state"], trained, start]
    for state in states:
        state.pop("network.scale", None)  # set after training, by the process that exports
    assert_agree(*states)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_extraction_is_bit_equal(pair, alone, split):
    for folder in (split, f"{split}_clusters"):
        both, one = Store.open(pair / "stores" / folder), Store.open(alone / "stores" / folder)
        both.verify()
        assert both.identity == one.identity
        assert both.columns == one.columns
        for column in one.columns:
            assert np.array_equal(both.whole(column), one.whole(column))


@pytest.mark.parametrize("name", ["rdm", *CONDITIONS, "weak"])
def test_samples_are_bit_equal(pair, alone, name):
    both, one = (Store.open(folder / f"samples_{name}" / "store") for folder in (pair, alone))
    (column,) = one.columns
    samples = one.whole(column)
    assert np.array_equal(both.whole(column), samples)
    assert both.identity == one.identity
    assert len(samples) == SAMPLES.get(name, 50)
    assert len(np.unique(samples.reshape(len(samples), -1), axis=0)) > 0.8 * len(samples)  # not all the same image


def test_the_representation_distance_counts_every_process_once(pair):
    first, second = (final_state(pair, "rdm", rank)["metrics"] for rank in (0, 1))
    names = [name for name in first if name.startswith("rep_fd/")]
    assert set(names) == {"rep_fd/encoder_451_train"}
    assert all(first[name] == second[name] for name in names)
