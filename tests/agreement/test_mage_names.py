"""RCG's MAGE files: every tensor is read or skipped for a reason, and goes back to where it came from."""

import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.mage import MAGE
from rcg_lightning.pretrained.checkpoints import load_strictly, read_checkpoint
from rcg_lightning.pretrained.mage_layout import COUNTED, FAKE, LABELS, LEFT_OVER, mage_state, official_mage
from rcg_lightning.types import Classes, Vector

REPRESENTATION = "latent_prior_proj.weight"


def parts_of(state):
    """The condition that a file of ours is known to have been trained with."""
    if REPRESENTATION in state:
        return (Vector(state[REPRESENTATION].shape[1]),)
    return (Classes(len(state[LABELS])),) if LABELS in state else ()


def skipped_of(state):
    return [name for names in state.skipped.values() for name in names]


def expected_skipped(official):
    return LEFT_OVER | {COUNTED} | (set() if REPRESENTATION in official else {FAKE})


@pytest.mark.golden("mage")
def test_every_tensor_is_accounted_for(golden):
    official = read_checkpoint(golden.checkpoint, "MAGE")["model"]
    parts = parts_of(official)
    state = mage_state({"model": official}, parts)
    skipped = skipped_of(state)
    assert len(skipped) == len(set(skipped))
    assert set(skipped) == expected_skipped(official)
    counted = (state.network, state.conditioner, state.tokenizer, state.encoder, skipped)
    assert sum(map(len, counted)) == len(official)
    for wrong in ((Vector(7),), (Classes(3),)):
        with pytest.raises(UserError, match="this MAGE is conditional on"):
            mage_state({"model": official}, wrong)
    with pytest.raises(UserError, match="one condition at most"):
        mage_state({"model": official}, (Classes(3), Vector(2)))
    with pytest.raises(UserError, match="no weights of a MAGE, it is a DiT checkpoint"):
        mage_state({"model": {"x_embedder.proj.weight": torch.zeros(1)}}, ())
    with pytest.raises(UserError, match="not known here: surprise"):
        mage_state({"model": {**official, "surprise": torch.zeros(1)}}, parts)


@pytest.mark.golden("mage")
def test_it_goes_back_to_the_official_layout(golden):
    """Equal but for what nothing reads, which is zero."""
    official, arch = read_checkpoint(golden.checkpoint, "MAGE")["model"], golden.arch
    parts = parts_of(official)
    state = mage_state({"model": official}, parts)
    classes = len(official[LABELS]) if LABELS in official else 7  # of the data, which the condition need not tell
    back = official_mage(state.network, state.conditioner, arch["rep_dim"], arch["patch_size"], classes)
    beside = ("vqgan.", "pretrained_encoder.")
    expected = {name: tensor for name, tensor in official.items() if not name.startswith(beside)}
    assert {n: (t.shape, t.dtype) for n, t in back.items()} == {n: (t.shape, t.dtype) for n, t in expected.items()}
    unread = set(skipped_of(state)) - {COUNTED}
    for name, tensor in expected.items():
        assert not back[name].any() if name in unread else torch.equal(back[name], tensor), name
    again = mage_state({"model": back}, parts)
    for read, own in ((again.network, state.network), (again.conditioner, state.conditioner)):
        assert read.keys() == own.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in own.items())
    with pytest.raises(UserError, match="one condition at most"):
        official_mage(state.network, {"parts.1.fake": official[FAKE]})
    with pytest.raises(UserError, match="no null class"):
        official_mage(state.network, {"parts.0.table.weight": torch.zeros(4, arch["embed_dim"])}, classes=3)


@pytest.mark.parametrize(
    ("name", "size"),
    [("base_uncond", "B"), ("base_classcond", "B"), ("base_repcond", "B"), ("large_repcond", "L")],
)
def test_full_size_files_are_read_completely(manifest, name, size):
    names = manifest(f"mage_{name}")
    parts = parts_of(names)
    state = mage_state({"model": names}, parts)
    with torch.device("meta"):
        network, conditioner = MAGE(size=size), Conditioner(drop=0.1 if REPRESENTATION in names else 0.0)
        network.build(256, 1024, conditioner.build(parts, network.width))
    load_strictly(network, state.network, "it")
    load_strictly(conditioner, state.conditioner, "it")
    assert set(skipped_of(state)) == expected_skipped(names)
    assert state.tokenizer
    assert state.encoder
    classes = len(names[LABELS]) if LABELS in names else None
    back = official_mage(network.state_dict(), conditioner.state_dict(), classes=classes)
    read = {n: t.shape for n, t in names.items() if not n.startswith(("vqgan.", "pretrained_encoder."))}
    assert {n: tensor.shape for n, tensor in back.items()} == read
