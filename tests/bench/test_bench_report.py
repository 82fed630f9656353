"""Costs compared with the official code, the baseline and another run."""

import pytest

from helpers.matmuls import Matmuls
from rcg_lightning.bench.measure import Cost
from rcg_lightning.bench.report import Row, comparison, table
from rcg_lightning.bench.workload import OFFICIAL_RATE


def cost_of(seconds, saved):
    return Cost(cpu=seconds, wall=seconds, flops=1.0, syncs=0, peak=None, saved=saved)


def test_ratios_are_at_equal_matrix_rate():
    cost = cost_of(0.5, 0)
    slow, fast = (Row(Matmuls(), cost, rate, gpu=False).ratios()["same work"] for rate in (OFFICIAL_RATE / 2, 1e12))
    assert slow == pytest.approx(2 / cost.cpu)
    assert fast < slow


def test_cost_of_a_store_and_when_it_pays():
    fast, baseline, recomputing, caching = (
        cost_of(seconds, saved) for seconds, saved in ((2, 4), (3, 6), (7, 6), (10, 0))
    )
    variants = {"baseline": baseline, "recomputing": recomputing, "caching": caching}
    row = Row(Matmuls(), fast, 1e9, gpu=False, variants=variants)
    assert (row.times_as_fast("baseline"), row.times_as_fast("recomputing")) == (1.5, 3.5)
    assert row.fewer_bytes == 1.5
    assert row.epochs == 2  # 10 + 2 * 2 = 2 * 7
    assert Row(Matmuls(), recomputing, 1e9, gpu=False, variants=variants).epochs is None  # it never pays
    output = comparison([row])
    assert "1.50x (goal 2 not met)" in output
    assert "2.00 epochs" in output


def test_a_new_workload_is_not_compared():
    row = Row(Matmuls(), cost_of(0.5, 0), 1e9, gpu=False)
    assert "not measured" in table([row], {"workloads": {}})
