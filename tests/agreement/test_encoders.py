"""Every recorded encoder: features, heads, representations and intermediate results."""

import re

import pytest
import torch

from rcg_lightning.networks.heads import Predictor
from rcg_lightning.networks.vit import position_table
from rcg_lightning.pretrained import encoder_layouts
from rcg_lightning.pretrained.checkpoints import load_strictly, read_checkpoint, strip
from rcg_lightning.pretrained.encoders import DeiTEncoder, DINOEncoder, IBOTEncoder, MoCoV3Encoder
from rcg_lightning.pretrained.normalisation import Identity, PerSample
from rcg_lightning.pretrained.preprocess import Preprocess

ENCODERS = {"moco_v3": MoCoV3Encoder, "dino": DINOEncoder, "ibot": IBOTEncoder, "deit": DeiTEncoder}
OUTPUTS = {
    "features": (False, Identity),
    "head": (True, Identity),
    "rep_noproj": (False, PerSample),
    "rep_withproj": (True, PerSample),
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # ten times tighter than recommended; measured 1e-6


def encoder(golden, head=True, normalise=PerSample):
    kind = next(kind for name, kind in ENCODERS.items() if golden.kind.startswith(name))
    return kind(golden.checkpoint, head, golden.arch["num_heads"], normalise())


def image_of(golden, size):
    """The input of ``out.<size>.*``, in [0, 1]; the only input if the outputs name no size."""
    start = f"in.images_{size}" if size else "in.images"
    image = next(tensor for name, tensor in golden.io.items() if name.startswith(start))
    return image if image.is_floating_point() else image.float() / 255


def outputs(golden, pattern):
    found = [(re.fullmatch(rf"out\.(?:(\w+)\.)?{pattern}", name), tensor) for name, tensor in golden.io.items()]
    return [(match, tensor) for match, tensor in found if match]


@pytest.mark.golden("moco_v3", "dino", "ibot", "deit")
def test_features_heads_and_representations(golden):
    recorded = outputs(golden, f"({'|'.join(OUTPUTS)})")
    assert recorded
    for match, expected in recorded:
        head, normalise = OUTPUTS[match[2]]
        ours = encoder(golden, head, normalise)
        torch.testing.assert_close(ours(image_of(golden, match[1])), expected, **CLOSE)
        assert ours.dim == expected.shape[1]


@pytest.mark.golden("moco_v3", "dino", "ibot", "deit")
def test_one_example_does_not_depend_on_the_others(golden):
    ours, image = encoder(golden), image_of(golden, "small" if "in.images_small" in golden.io else None)
    torch.testing.assert_close(ours(image[:1]), ours(image)[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.golden("moco_v3_vit")
def test_preprocessed_image(golden):
    for match, expected in outputs(golden, r"preprocessed_first_stride(\d+)"):
        stride = int(match[2])
        ours = encoder(golden).preprocess(image_of(golden, match[1]))
        torch.testing.assert_close(ours[:1, :, ::stride, ::stride], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.golden("moco_v3_vit")
def test_position_table(golden):
    for _, expected in outputs(golden, "pos_embed"):
        grid = golden.arch["img_size"] // golden.arch["patch_size"]
        ours = position_table(grid, grid, golden.arch["embed_dim"])
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.golden("schedules")
def test_position_table_of_the_schedules(golden):
    expected = golden.io["pos.moco_with_cls"]
    grid = round((len(expected) - 1) ** 0.5)
    torch.testing.assert_close(position_table(grid, grid, expected.shape[1])[0], expected, rtol=1e-5, atol=1e-6)


class MomentumEncoder(MoCoV3Encoder):
    def layout(self, container):
        return encoder_layouts.moco_v3(container, "momentum_encoder")


@pytest.mark.golden("moco_v3_vit")
def test_momentum_encoder(golden):
    for match, expected in outputs(golden, "features_of_momentum_encoder"):
        ours = MomentumEncoder(golden.checkpoint, False, golden.arch["num_heads"], Identity())
        torch.testing.assert_close(ours(image_of(golden, match[1])), expected, **CLOSE)


@pytest.mark.golden("moco_v3_vit")
def test_predictor(golden):
    state = encoder_layouts.moco_v3_predictor(read_checkpoint(golden.checkpoint, "MoCo v3"))
    hidden, size = state["0.weight"].shape
    predictor = Predictor(size, hidden, state["3.weight"].shape[0])
    load_strictly(predictor, state, "the predictor")
    for match, expected in outputs(golden, "predictor_of_head"):
        head = encoder(golden, True, Identity)(image_of(golden, match[1]))
        torch.testing.assert_close(predictor.eval()(head), expected, **CLOSE)


@pytest.mark.golden("moco_v3", "dino", "ibot", "deit")
def test_report_accounts_for_every_tensor(golden):
    ours = encoder(golden)
    state = ours.layout(read_checkpoint(golden.checkpoint, "it"))
    assert f"{len(state.backbone)} tensors of the backbone, {len(state.head)} tensors of the head" in ours.report()
    assert "head: from the file" in ours.report()
    assert "head: none" in encoder(golden, head=False).report()


@pytest.mark.golden("rdm")
def test_the_encoder_inside_an_rdm_file(golden):
    """RCG's RDM files hold their MoCo v3 encoder under the same names."""
    arch, with_head = golden.config["encoder_arch"], golden.config["encoder_withproj"]
    content = read_checkpoint(golden.checkpoint, "RDM")["model"]
    official = encoder_layouts.split_head(strip(content, "pretrained_encoder."), "head.", {})
    ours = MoCoV3Encoder(head=with_head, heads=arch["num_heads"])
    network, _ = ours.build(official, "it")
    preprocess = Preprocess(size=arch["img_size"])
    with torch.no_grad():
        representation = PerSample()(network.eval()(preprocess(golden.io["in.images"])))
    torch.testing.assert_close(representation, golden.io["out.rep_from_images"].flatten(1), **CLOSE)
