"""Compiled training: the losses and names of uncompiled training, and a fallback where compilation fails."""

import logging
from functools import partial

import pytest
import torch

from rcg_lightning.callbacks import compilation
from rcg_lightning.core.counter_rng import SeededNoise, mix, noise_by, random_bits
from rcg_lightning.core.schedule import CosineSchedule
from rcg_lightning.errors import UserError
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.rdm_mlp import ModulatedMLP
from rcg_lightning.stages.diffusion import DiffusionStage

pytestmark = pytest.mark.slow

STEPS = 3


@pytest.fixture
def losses_of(trainer, digits, tmp_path):
    """Train a stage; return it, its losses and the networks that were compiled during training."""
    from lightning.pytorch.callbacks import Callback

    class Recorder(Callback):
        def __init__(self):
            self.losses, self.compiled = [], set()

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.losses.append(float(trainer.callback_metrics["train/loss"]))
            self.compiled |= {name for name, m in pl_module.named_modules() if m._compiled_call_impl is not None}

        def on_validation_start(self, trainer, pl_module):
            assert all(module._compiled_call_impl is None for module in pl_module.modules())

        def on_validation_end(self, trainer, pl_module):
            assert all(
                module._compiled_call_impl is None for module in pl_module.modules()
            )  # other callbacks sample here
            self.losses.append(float(trainer.callback_metrics["val/loss"]))

    def fit(stage, name, **settings):
        recorder = Recorder()
        run = trainer(tmp_path / name, STEPS, callbacks=[recorder], val_check_interval=2, **settings)
        run.fit(stage, datamodule=digits())
        assert all(module._compiled_call_impl is None for module in stage.modules())
        return stage, recorder.losses, recorder.compiled

    return fit


@pytest.fixture
def backend(monkeypatch):
    """Compile with another backend than inductor."""

    def use(backend):
        monkeypatch.setattr(compilation.torch, "compile", partial(torch.compile, backend=backend))

    yield use
    torch.compiler.reset()


@pytest.fixture
def graphs():
    """Return the reasons of graph breaks, and the number of graphs."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    return lambda: (dict(counters["graph_break"]), counters["stats"]["unique_graphs"])


def tiny():
    return Denoiser(ModulatedMLP(width=8, depth=1, time_dim=8), CosineSchedule(100))


def test_the_losses_are_those_of_uncompiled_training(make_stage, losses_of, graphs, tmp_path):
    baseline, expected, not_compiled = losses_of(make_stage(denoiser=tiny()), "baseline")
    stage, losses, compiled = losses_of(make_stage(denoiser=tiny()), "compiled", compile=True)
    assert (not_compiled, compiled) == (set(), {"denoiser.network"})
    assert graphs() == ({}, 1)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert stage.state_dict().keys() == baseline.state_dict().keys()
    for name, value in baseline.state_dict().items():
        torch.testing.assert_close(stage.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    again = DiffusionStage.load(tmp_path / "compiled" / "last.ckpt")
    seeds = {"seed": torch.arange(4)}
    assert torch.equal(again.sample(seeds), stage.sample(seeds))


def test_checkpointed_blocks_are_in_one_graph(make_stage, losses_of, backend, graphs):
    def stage():
        return make_stage(denoiser=Denoiser(DiT(2, 16, 2, 2, checkpointing=True), CosineSchedule(100)))

    expected = losses_of(stage(), "baseline")[1]
    backend("aot_eager")
    assert losses_of(stage(), "compiled", compile=True)[1] == pytest.approx(expected, rel=1e-4)
    assert graphs() == ({}, 1)


def test_cuda_graphs_do_not_go_with_accumulated_gradients(make_stage, losses_of):
    with pytest.raises(UserError, match="accumulated gradients"):
        losses_of(make_stage(denoiser=tiny()), "graphs", compile="reduce-overhead", accumulate_grad_batches=2)


def broken_backend(graph, inputs):
    raise RuntimeError("no compiler here")


def broken_compile(function, **_):
    raise RuntimeError("no compiler here")


@pytest.mark.parametrize("fails", ["at the first call", "at once"])
def test_where_compilation_fails_training_continues_after_one_warning(
    make_stage, losses_of, backend, monkeypatch, caplog, fails
):
    if fails == "at once":
        monkeypatch.setattr(compilation.torch, "compile", broken_compile)
    else:
        backend(broken_backend)
    with caplog.at_level(logging.WARNING, "rcg_lightning"):
        _, losses, compiled = losses_of(make_stage(denoiser=tiny()), "compiled", compile=True)
    output = [record.getMessage() for record in caplog.records if record.name == compilation.__name__]
    assert len(output) == 1
    assert "no compiler here" in output[0]
    assert compiled == set()
    assert losses == losses_of(make_stage(denoiser=tiny()), "baseline")[1]


def test_the_mode_is_passed_to_torch(make_stage, trainer, tmp_path):
    callbacks = trainer(tmp_path, 1, compile="max-autotune").callbacks
    assert [c.mode for c in callbacks if isinstance(c, compilation.Compilation)] == ["max-autotune"]
    assert not any(isinstance(c, compilation.Compilation) for c in trainer(tmp_path, 1).callbacks)


def test_compiled_sampling_with_a_prior_gives_the_same(make_stage, trainer, digits, backend, graphs, tmp_path):
    from rcg_lightning.conditions.representation import RepresentationCondition
    from rcg_lightning.data.seed_data_module import SeedDataModule
    from rcg_lightning.pretrained.codecs import Representations
    from rcg_lightning.stages.sampling import GuidedSampling

    backend("aot_eager")
    spec = digits(tmp_path / "stores").spec
    prior = make_stage(codec=Representations()).build(spec).eval()
    generator = make_stage(RepresentationCondition()).build(spec).eval()
    generator.condition._prior = type("Frozen", (), {"module": prior, "__call__": lambda _, *args: prior(*args)})()
    module, called = GuidedSampling(generator), []
    assert module.networks() == [generator.for_sampling()[0].network, prior.for_sampling()[0].network]

    class RecordedSampling(GuidedSampling):
        def predict_step(self, batch, batch_idx):
            called.append([network._compiled_call_impl is not None for network in self.networks()])
            return super().predict_step(batch, batch_idx)

    samples = []
    for compiled in (False, True, "reduce-overhead"):
        run = trainer(tmp_path / str(compiled), 1, compile=compiled)
        predictions = run.predict(RecordedSampling(generator), SeedDataModule(range(8), 8))
        samples.append(torch.cat([columns["image"] for columns in predictions]).int())
    assert called == [[False] * 2, [True] * 2, [True] * 2]
    assert all((images - samples[0]).abs().max() <= 1 for images in samples[1:])
    assert all(network._compiled_call_impl is None for network in module.networks())
    assert graphs()[0] == {}


@pytest.mark.parametrize("distribution", ["normal", "uniform", "gumbel"])
def test_compiled_noise_is_one_graph_for_all_steps(graphs, distribution):
    compiled = compilation.Compilation()
    compiled._calls = [None]
    seeds = torch.arange(-5, 20) * 2**40
    numbers = getattr(SeededNoise(seeds, 3), distribution)
    expected = [numbers(step, 3, 5) for step in range(4)]
    with noise_by(compiled._compiled_noise):
        found = [numbers(step, 3, 5) for step in range(4)]
    assert graphs() == ({}, 1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(numbers(step, 3, 5), rows) for step, rows in enumerate(expected))


def test_compiled_bits_are_the_same(graphs):
    bits = torch.compile(random_bits, dynamic=False)
    elements = mix(torch.arange(37))
    for steps in mix(torch.arange(900) - 7).view(3, 300):
        assert torch.equal(bits(steps, elements), random_bits(steps, elements))
    assert graphs() == ({}, 1)
