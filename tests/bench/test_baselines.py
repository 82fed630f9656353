"""The baseline reaches the same result, without the fast paths."""

from functools import partial

import pytest
import torch

from rcg_lightning.bench.baselines import baseline_networks
from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.bench.training import TrainingStep, training_variants
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.masking import ParallelDecoding
from rcg_lightning.core.samplers import DDIM
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.mage import MAGE
from rcg_lightning.networks.rdm_mlp import ResidualMLP
from rcg_lightning.networks.vit import VisionTransformer
from rcg_lightning.pretrained.codecs import Pixels, Representations, VQTokens
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.masked import MaskedStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import DataSpec

CPU = torch.device("cpu")
SPEC = DataSpec((1, 8, 8), columns={"representation": {"shape": [6]}, "tokens": {"shape": [16], "count": 12}})


def rdm():
    network = ResidualMLP(width=32, depth=2)
    return diffusion(Representations(), NoCondition(), network, Conditioner(drop=0.0), clip=None)


def dit():
    network = DiT(patch=2, width=32, depth=2, heads=2)
    return diffusion(Pixels(), RepresentationCondition(), network, Conditioner(drop=0.0), clip=0.5)


def diffusion(codec, condition, network, conditioner, clip):
    optimizer = AdamW(lr=1e-3, eps=1e-2, clip=clip)  # keys have biases without gradient: eps leaves them alone
    ema = EMA(0.9, warmup=True)
    return DiffusionStage(codec, condition, Denoiser(network), conditioner, optimizer, ema=ema).build(SPEC)


def mage():
    network = MAGE(32, 2, 2, decoder_width=32, decoder_depth=2, decoder_heads=2, dropout=0.0)
    optimizer = AdamW(lr=1e-3, eps=1e-2, decay_vectors=False, clip=0.5)
    conditioner = Conditioner(drop=0.0)
    return MaskedStage(VQTokens(), RepresentationCondition(), network, conditioner, optimizer).build(SPEC)


STAGES = pytest.mark.parametrize("make", [rdm, dit, mage], ids=["rdm", "dit", "mage"])


def batch():
    torch.manual_seed(0)
    return {
        "index": torch.arange(3),
        "image": torch.rand(3, 1, 8, 8),
        "representation": torch.randn(3, 6),
        "tokens": torch.randint(12, (3, 16)),
    }


def randomised(module):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def after(step, take, times=2):
    torch.manual_seed(2)
    for _ in range(times):
        take(step)
    return step.stage.state_dict()


@STAGES
def test_two_baseline_steps_reach_the_weights_of_two_steps(make):
    fast, baseline = (TrainingStep(randomised(make()), batch(), CPU) for _ in range(2))
    ours, theirs = after(fast, TrainingStep.__call__), after(baseline, TrainingStep.baseline)
    start = randomised(make()).state_dict()
    assert any(not torch.equal(ours[name], start[name]) for name in start)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@STAGES
def test_the_baseline_step_has_no_fast_path(make):
    calls = {}
    for name, take in (("fast", TrainingStep.__call__), ("baseline", TrainingStep.baseline)):
        step = TrainingStep(make(), batch(), CPU)
        with HostSyncs() as counter:
            take(step)
        calls[name] = counter.calls
    quick = {"_fused_adamw_", "_foreach_lerp_", "_scaled_dot_product_flash_attention_for_cpu"}
    assert quick & calls["fast"].keys()
    assert not quick & calls["baseline"].keys()
    assert calls["baseline"]["addcdiv_"] > 0


def test_attention_of_the_baseline_stores_its_weights():
    counts = {}
    for name in ("fast", "baseline"):
        step = TrainingStep(mage(), batch(), CPU)
        with HostSyncs() as counter:
            step() if name == "fast" else step.baseline()
        counts[name] = counter.calls["_softmax_backward_data"]
    assert counts == {"fast": 0, "baseline": 4}


@pytest.mark.parametrize(
    ("make", "sampler"), [(rdm, DDIM(3)), (dit, DDIM(3)), (mage, ParallelDecoding(3))], ids=["rdm", "dit", "mage"]
)
def test_samples_are_the_same(make, sampler):
    stage = randomised(make()).eval()
    seeds, representations = torch.arange(3), (torch.randn(3, 6),)
    sample = partial(stage.sample_z, seeds, () if make is rdm else representations, stage.guidance, sampler)
    with torch.no_grad():
        fast = sample()
        with baseline_networks(stage):
            baseline = sample()
    torch.testing.assert_close(fast, baseline, rtol=1e-4, atol=1e-5)


def test_the_baseline_has_one_timestep_per_example():
    stage, seen = rdm().eval(), []
    network = stage.for_sampling()[0].network
    with torch.no_grad(), baseline_networks(stage):
        hook = network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[1])))
        stage.sample_z(torch.arange(3), (), stage.guidance, DDIM(2))
        hook.remove()
    assert set(seen) == {3}
    assert not network._forward_pre_hooks


def test_the_whole_last_block_gives_the_same_class_token():
    network = randomised(VisionTransformer(32, 8, width=48, depth=2, heads=4))
    image, tokens = torch.rand(2, 3, 32, 32), []
    network.blocks[-1].mlp.register_forward_hook(lambda module, inputs, output: tokens.append(output.shape[1]))
    with torch.no_grad():
        fast = network(image)
        with baseline_networks(network):
            baseline = network(image)
        torch.testing.assert_close(fast, baseline, rtol=1e-4, atol=1e-5)
        assert torch.equal(network(image), fast)
    assert tokens == [1, 17, 1]


def test_recomputed_columns_are_trained_on():
    columns = {"representation": torch.full((3, 6), 0.5)}
    step, seen = TrainingStep(rdm(), batch(), CPU), []
    step.stage.codec.encode = lambda values: seen.append(values["representation"]) or values["representation"]
    variants = training_variants(step, 3, lambda: columns, list)
    variants.recomputing()
    assert seen == [columns["representation"]]
    assert variants.caching() == columns
