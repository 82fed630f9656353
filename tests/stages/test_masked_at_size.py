"""MAGE-B at the size of ImageNet, on the meta device: tensors have shapes without values, so nothing can wait."""

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.mage import MAGE
from rcg_lightning.pretrained.codecs import VQTokens
from rcg_lightning.pretrained.frozen import Frozen
from rcg_lightning.stages.masked import MaskedStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import DataSpec

BATCH = 64
UNFUSED = {torch.softmax, F.softmax, torch.matmul, torch.bmm, torch.Tensor.__matmul__, torch.Tensor.softmax}


class Attention(TorchFunctionMode):
    """Records the shapes and the dropout of fused attention, and counts operations of unfused attention."""

    def __init__(self):
        super().__init__()
        self.fused, self.unfused = [], 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.fused.append((tuple(args[0].shape), (kwargs or {}).get("dropout_p")))
        self.unfused += func in UNFUSED
        return func(*args, **kwargs or {})


@pytest.fixture
def stage(monkeypatch):
    def used(self):
        raise AssertionError("a frozen network was used")

    monkeypatch.setattr(Frozen, "module", property(used))
    columns = {"tokens": {"shape": [256], "count": 1024}, "representation": {"shape": [256]}}
    with torch.device("meta"):
        network = MAGE(size="B")
        stage = MaskedStage(VQTokens(), RepresentationCondition(), network, Conditioner(drop=0.1), AdamW())
        return stage.build(DataSpec((3, 256, 256), 1000, columns))


def test_a_training_step_uses_fused_attention_and_no_frozen_network(stage):
    assert stage.needs == {"tokens", "representation"}
    tokens = torch.empty(BATCH, 256, dtype=torch.int64, device="meta")
    batch = {"tokens": tokens, "representation": torch.empty(BATCH, 256, device="meta")}
    with Attention() as attention, HostSyncs() as syncs:
        stage.train().losses(batch)["loss"].backward()
    # half of the tokens and the condition's token, then all of them
    assert attention.fused == [((BATCH, 12, 129, 64), 0.1)] * 12 + [((BATCH, 16, 257, 48), 0.1)] * 8
    assert not attention.unfused
    assert not syncs.found
    assert not [name for name, p in stage.named_parameters() if p.grad is None]


def test_guided_decoding_has_static_shapes_and_one_forward_pass_for_a_step(stage):
    raw = (torch.empty(BATCH, 256, device="meta"),)
    with Attention() as attention, HostSyncs() as syncs, torch.no_grad():
        tokens = stage.eval().sample_z(torch.empty(BATCH, dtype=torch.int64, device="meta"), raw, Guidance(2.0), None)
    assert tokens.shape == (BATCH, 256)
    assert tokens.dtype == torch.int64
    assert len(attention.fused) == 20 * stage.sampler.steps
    assert {shape for shape, _ in attention.fused} == {(2 * BATCH, 12, 257, 64), (2 * BATCH, 16, 257, 48)}
    assert {dropout for _, dropout in attention.fused} == {0.0}
    assert not attention.unfused
    assert not syncs.found
