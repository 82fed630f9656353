"""Workloads do the work that their names promise."""

from functools import partial

import pytest
import torch

from rcg_lightning.bench import generators
from rcg_lightning.bench.execution import Execution
from rcg_lightning.bench.generators import DiTTraining, MAGESampling, MAGETraining
from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.bench.measure import measure
from rcg_lightning.bench.neighbours import NeighbourSearch
from rcg_lightning.bench.representations import RDMTraining
from rcg_lightning.bench.surroundings import by_pillow, by_pillow_scaled, by_torchvision, jpeg_files
from rcg_lightning.bench.training import TrainingStep
from rcg_lightning.data.decode import to_tensor
from rcg_lightning.errors import UserError

CPU = torch.device("cpu")


def test_pillow_and_torchvision_decode_to_the_same_pixels(tmp_path):
    (content,) = jpeg_files(None, count=1)
    assert torch.equal(by_torchvision(content), to_tensor(by_pillow(content)))
    assert by_pillow_scaled(content).size == (500, 375)  # half the size would be smaller than the crop
    (tmp_path / "image.jpeg").write_bytes(content)
    assert jpeg_files(tmp_path) == [content]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no JPEG files"):
        jpeg_files(tmp_path / "empty")
    with pytest.raises(UserError, match="no folder of images"):
        jpeg_files(tmp_path / "absent")


def test_a_training_step_has_no_host_synchronisation():
    work = RDMTraining(2).prepare(CPU).fast
    work()
    with HostSyncs() as syncs:
        work()
    assert not syncs.found


def test_neighbours_are_counted_for_each_query():
    search = NeighbourSearch(10**8, size=1200, queries=150)
    variants = search.prepare(CPU)
    assert variants.items == 150
    assert measure(variants.fast, variants.items, 1, CPU).flops == 2 * 1200 * NeighbourSearch.DIM


@pytest.mark.parametrize("make", [lambda: MAGETraining(1), lambda: DiTTraining(1, "B/2")], ids=["mage", "dit"])
def test_generators_train_on_the_columns_of_a_store(make, monkeypatch):
    """Run one example through the losses of the published stage, with networks of one narrow block."""
    monkeypatch.setattr(generators, "shipped_stage", partial(narrow, generators.shipped_stage))
    assert make().prepare(CPU).fast.losses()["loss"].isfinite()


@pytest.mark.parametrize(
    ("make", "mode"),
    [(lambda: MAGETraining(2, dropout=0.0), "graphed"), (lambda: MAGESampling(2, guided=False), "compiled")],
    ids=["training", "sampling"],
)
def test_networks_are_compiled_except_in_the_baseline(make, mode, monkeypatch):
    """Count the calls of the compiled code, which a mock backend makes."""
    modes, calls, compile_network = [], [], torch.compile
    monkeypatch.setattr(generators, "shipped_stage", partial(narrow, generators.shipped_stage))

    def counted(module, inputs):
        return lambda *args: calls.append(1) or module(*args)

    def compile(*args, mode=None, dynamic=None):
        modes.append(mode)
        return compile_network(*args, backend=counted)

    monkeypatch.setattr(torch, "compile", compile)
    variants = make().prepare(CPU, Execution(mode=mode))
    variants.fast()
    assert modes[0] == {"compiled": "default", "graphed": "reduce-overhead"}[mode]
    assert calls
    calls.clear()
    if isinstance(variants.fast, TrainingStep):
        variants.baseline()
        assert not calls
        variants.fast()
        assert calls
    variants.settings.close()
    calls.clear()
    variants.fast() if mode == "compiled" else variants.fast.losses()
    assert not calls


@pytest.mark.parametrize(
    ("precision", "dtype", "tf32"),
    [("float32", torch.float32, False), ("tf32", torch.float32, True), ("bf16", torch.bfloat16, True)],
)
def test_the_precision_is_that_of_the_execution(precision, dtype, tf32, monkeypatch):
    monkeypatch.setattr(generators, "shipped_stage", partial(narrow, generators.shipped_stage))
    step, seen = MAGETraining(1, dropout=0.0).prepare(CPU, Execution(precision)).fast, []
    layer = next(module for module in step.stage.modules() if isinstance(module, torch.nn.Linear))
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    layer.register_full_backward_hook(lambda *_: seen.append(torch.backends.cuda.matmul.allow_tf32))
    step()
    assert seen == [dtype, tf32]
    assert not torch.backends.cuda.matmul.allow_tf32


def narrow(shipped, config, spec, **changes):
    small = {"width": 32, "depth": 1, "heads": 2}
    for arguments in (changes.get("transformer", {}), changes.get("denoiser", {}).get("network", {})):
        if arguments:
            arguments["init_args"] |= small
    if "mage_" in config:
        changes.setdefault("transformer", {"class_path": "MAGE", "init_args": {"dropout": 0.0, **small}})
        changes["transformer"]["init_args"] |= {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
    return shipped(config, spec, **changes)
