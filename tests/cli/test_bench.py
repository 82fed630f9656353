"""`rcg bench`: what it counts is what was done."""

import json
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rcg_lightning.bench import generators
from rcg_lightning.bench.generators import DiTTraining, MAGETraining
from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.bench.measure import Cost, SavedBytes, measure, measure_in_turns
from rcg_lightning.bench.neighbours import NeighbourSearch
from rcg_lightning.bench.report import Row, comparison, table
from rcg_lightning.bench.representations import RDMTraining
from rcg_lightning.bench.surroundings import by_pillow, by_pillow_scaled, by_torchvision, jpeg_files
from rcg_lightning.bench.workload import OFFICIAL_RATE, OfficialCost, Variants, Workload
from rcg_lightning.cli import bench as command
from rcg_lightning.data.decode import to_tensor
from rcg_lightning.errors import UserError

CPU = torch.device("cpu")


class Products(Workload):
    """Two 8 x 8 matmuls for each of three items."""

    name = "products, small"

    @property
    def baselines(self):
        return {"same work": OfficialCost(1.0, 2.0)}

    def prepare(self, device):
        a = torch.ones(6, 8, 8, device=device)
        return Variants(
            lambda: a @ a, 3, lambda: (a @ a, a @ a), None, lambda: [a @ a for _ in range(4)], lambda: a @ a
        )


def measured(workload, times=1):
    variants = workload.prepare(CPU)
    return measure(variants.fast, variants.items, times, CPU)


def test_pillow_and_torchvision_decode_to_the_same_pixels(tmp_path):
    (content,) = jpeg_files(None, count=1)
    assert torch.equal(by_torchvision(content), to_tensor(by_pillow(content)))
    assert by_pillow_scaled(content).size == (500, 375)  # a half would be smaller than what is cropped
    (tmp_path / "image.jpeg").write_bytes(content)
    assert jpeg_files(tmp_path) == [content]
    with pytest.raises(UserError, match="holds no JPEG files"):
        jpeg_files(tmp_path / "empty")


def test_flops_of_matrix_products_are_counted():
    cost = measured(Products(), times=2)
    assert cost.flops == 2 * 2 * 8**3
    assert cost.cpu > 0
    assert cost.syncs == 0
    assert cost.saved == 0


def test_host_synchronisations_are_counted():
    x = torch.arange(4.0)
    with HostSyncs() as syncs:
        x.sum().item()
        x[x > 1]
        x.nonzero()
        x[torch.tensor([0, 1])]  # an index of fixed size waits for nothing
    assert syncs.found.total() == 3


def test_copies_between_devices_count_unless_they_do_not_block():
    with FakeTensorMode(), HostSyncs() as syncs:  # a GPU of which there are only shapes
        here = torch.ones(3)
        there = here.to("cuda", non_blocking=True)
        there.copy_(here, non_blocking=True)
        there.half()
        assert not syncs.found
        here.to("cuda")
        there.copy_(here)
        there.cpu()
    assert syncs.found == {"_to_copy": 2, "copy_": 1}


def test_saved_bytes_are_activations_without_weights():
    layer, x = torch.nn.Linear(8, 8), torch.ones(16, 8)
    kept = SavedBytes()
    with kept.hooks():
        layer(layer(x).tanh()).sum()
    assert kept.bytes == 2 * x.nbytes  # the input is saved once, tanh's result serves it and the second layer


def test_ratios_are_at_equal_matrix_rate():
    cost = measured(Products())
    slow, fast = (Row(Products(), cost, rate, gpu=False).ratios()["same work"] for rate in (OFFICIAL_RATE / 2, 1e12))
    assert slow == pytest.approx(2 / cost.cpu)
    assert fast < slow


def test_a_training_step_waits_for_nothing():
    work = RDMTraining(2).prepare(CPU).fast
    work()
    with HostSyncs() as syncs:
        work()
    assert not syncs.found


def test_the_command_writes_and_compares(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "workloads", lambda images, gpu: [Products()])
    monkeypatch.setattr(command, "_in_a_process", command._row)
    out = tmp_path / "bench.json"
    command.bench(out=out, times=1, profile=tmp_path / "traces")
    found = json.loads(out.read_text())
    assert found["workloads"]["products, small"]["flops"] == 2048
    assert json.loads((tmp_path / "traces" / "products_small.json").read_text())["traceEvents"]
    command.bench(compare=out, times=1)
    assert "than before" in capsys.readouterr().out


def test_the_plain_way_stands_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "workloads", lambda images, gpu: [Products()])
    monkeypatch.setattr(command, "_in_a_process", command._row)
    out, tables = tmp_path / "bench.json", tmp_path / "bench.md"
    command.bench(out=out, times=1, plain=True, markdown=tables)
    found = json.loads(out.read_text())["workloads"]["products, small"]
    assert found["ways"]["plain"]["flops"] == 2 * found["flops"]
    assert found["ways"]["recomputing"]["flops"] == 4 * found["flops"]
    assert found["times_as_fast"]["plain"]["goals"] == [2.0]
    assert "than as_baseline" in tables.read_text()


def test_what_a_store_costs_and_when_it_pays():
    fast, plain, recomputing, caching = (
        cost_of(seconds, saved) for seconds, saved in ((2, 4), (3, 6), (7, 6), (10, 0))
    )
    variants = {"plain": plain, "recomputing": recomputing, "caching": caching}
    row = Row(Products(), fast, 1e9, gpu=False, variants=variants)
    assert (row.times_as_fast("plain"), row.times_as_fast("recomputing")) == (1.5, 3.5)
    assert row.fewer_bytes == 1.5
    assert row.epochs == 2  # 10 + 2 * 2 = 2 * 7
    assert Row(Products(), recomputing, 1e9, gpu=False, variants=variants).epochs is None  # it never pays
    output = comparison([row])
    assert "1.50x (goal 2 not met)" in output
    assert "2.00 epochs" in output


def cost_of(seconds, saved):
    return Cost(cpu=seconds, wall=seconds, flops=1.0, syncs=0, peak=None, saved=saved)


def test_ways_are_measured_in_turns():
    order = []
    measure_in_turns([(lambda: order.append("a"), 1), (lambda: order.append("b"), 1)], 2, CPU)
    assert "".join(order[-4:]) == "abab"


def test_a_workload_that_is_new_says_so():
    row = Row(Products(), measured(Products()), 1e9, gpu=False)
    assert "not measured" in table([row], {"workloads": {}})


def test_neighbours_are_counted_for_each_query():
    search = NeighbourSearch(10**8, size=1200, queries=150)
    assert search.prepare(CPU).items == 150
    assert measured(search).flops == 2 * 1200 * NeighbourSearch.DIM


def test_mistakes(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "workloads", lambda images, gpu: [Products()])
    with pytest.raises(UserError, match="did you mean products"):
        command.bench(only=["product5"])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="no result of"):
        command.bench(compare=tmp_path / "other.json")


@pytest.mark.parametrize("make", [lambda: MAGETraining(1), lambda: DiTTraining(1, "B/2")], ids=["mage", "dit"])
def test_generators_take_what_a_store_gives(make, monkeypatch):
    """One example through the losses of the published stage, with networks of one narrow block."""
    monkeypatch.setattr(generators, "shipped_stage", partial(narrow, generators.shipped_stage))
    assert make().prepare(CPU).fast.losses()["loss"].isfinite()


def narrow(shipped, config, spec, **changes):
    small = {"width": 32, "depth": 1, "heads": 2}
    for arguments in (changes.get("transformer", {}), changes.get("denoiser", {}).get("network", {})):
        if arguments:
            arguments["init_args"] |= small
    if "transformer" in changes:
        changes["transformer"]["init_args"] |= {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
    return shipped(config, spec, **changes)


def test_each_workload_has_a_process_of_its_own(tmp_path):
    command.bench(only=["decode JPEG files, Pillow, scaled"], times=1, out=tmp_path / "bench.json")
    (found,) = json.loads((tmp_path / "bench.json").read_text())["workloads"].values()
    assert found["items_per_second"] > 0
    with pytest.raises(UserError, match="holds no JPEG files"):
        command.bench(only=["decode JPEG files, Pillow, scaled"], images=tmp_path)
