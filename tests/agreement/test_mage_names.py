"""RCG's MAGE files: every tensor is read or skipped for a reason, and written back to its name."""

import pytest
import torch

from helpers.recorded import unread
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.mage import MAGE
from rcg_lightning.official.mage import LABELS, NULL, POSITION_IDS, UNUSED, mage_weights, official_mage
from rcg_lightning.pretrained.checkpoints import load_strictly, read_checkpoint
from rcg_lightning.types import Classes, Vector

REPRESENTATION = "latent_prior_proj.weight"


def parts_of(state):
    """The condition that a recorded model was trained with."""
    if REPRESENTATION in state:
        return (Vector(state[REPRESENTATION].shape[1]),)
    return (Classes(len(state[LABELS])),) if LABELS in state else ()


INNER = ("vqgan.", "pretrained_encoder.")


def expected_skipped(official):
    return UNUSED | {POSITION_IDS} | (set() if REPRESENTATION in official else {NULL})


@pytest.mark.golden("mage")
def test_every_tensor_is_accounted_for(golden):
    official = read_checkpoint(golden.checkpoint, "MAGE")["model"]
    parts = parts_of(official)
    weights = mage_weights({"model": official}, parts)
    skipped = {name for name in unread(official, weights) if not name.startswith(INNER)}
    assert skipped == expected_skipped(official)
    for wrong in ((Vector(7),), (Classes(3),)):
        with pytest.raises(UserError, match="this MAGE is conditional on"):
            mage_weights({"model": official}, wrong)
    with pytest.raises(UserError, match="one condition at most"):
        mage_weights({"model": official}, (Classes(3), Vector(2)))
    with pytest.raises(UserError, match="no weights of a MAGE, it is a DiT checkpoint"):
        mage_weights({"model": {"x_embedder.proj.weight": torch.zeros(1)}}, ())
    with pytest.raises(UserError, match="unknown tensors: surprise"):
        mage_weights({"model": {**official, "surprise": torch.zeros(1)}}, parts)


@pytest.mark.golden("mage")
def test_it_is_written_back_to_the_official_layout(golden):
    """Equal, except unread tensors, which are zero."""
    official, arch = read_checkpoint(golden.checkpoint, "MAGE")["model"], golden.arch
    parts = parts_of(official)
    weights = mage_weights({"model": official}, parts)
    classes = len(official[LABELS]) if LABELS in official else 7  # of the data, independent of the condition
    back = official_mage(weights.network, weights.conditioner, arch["rep_dim"], arch["patch_size"], classes)
    expected = {name: tensor for name, tensor in official.items() if not name.startswith(INNER)}
    assert {n: (t.shape, t.dtype) for n, t in back.items()} == {n: (t.shape, t.dtype) for n, t in expected.items()}
    zero = expected_skipped(official) - {POSITION_IDS}
    for name, tensor in expected.items():
        assert not back[name].any() if name in zero else torch.equal(back[name], tensor), name
    again = mage_weights({"model": back}, parts)
    for read, own in ((again.network, weights.network), (again.conditioner, weights.conditioner)):
        assert read.keys() == own.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in own.items())
    with pytest.raises(UserError, match="one condition at most"):
        official_mage(weights.network, {"parts.1.fake": official[NULL]})
    with pytest.raises(UserError, match="no null class"):
        official_mage(weights.network, {"parts.0.table.weight": torch.zeros(4, arch["embed_dim"])}, classes=3)


@pytest.mark.parametrize(
    ("name", "size"),
    [("base_uncond", "B"), ("base_classcond", "B"), ("base_repcond", "B"), ("large_repcond", "L")],
)
def test_full_size_files_are_read_completely(manifest, name, size):
    names = manifest(f"mage_{name}")
    parts = parts_of(names)
    weights = mage_weights({"model": names}, parts)
    with torch.device("meta"):
        network, conditioner = MAGE(size=size), Conditioner(drop=0.1 if REPRESENTATION in names else 0.0)
        network.build(256, 1024, conditioner.build(parts, network.width))
    load_strictly(network, weights.network, "it")
    load_strictly(conditioner, weights.conditioner, "it")
    read = {n: t.shape for n, t in names.items() if not n.startswith(INNER)}
    assert len(weights.network) + len(weights.conditioner) + len(expected_skipped(names)) == len(read)
    assert all(any(name.startswith(prefix) for name in names) for prefix in INNER)
    classes = len(names[LABELS]) if LABELS in names else None
    back = official_mage(network.state_dict(), conditioner.state_dict(), classes=classes)
    assert {n: tensor.shape for n, tensor in back.items()} == read
