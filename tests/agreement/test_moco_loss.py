"""The loss of the official MoCo v3 code, recorded for a tiny ViT, from its own training checkpoint."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rcg_lightning.data.augmentations import Augmentation
from rcg_lightning.networks.heads import Predictor, Projected, ProjectionHead
from rcg_lightning.networks.vit import VisionTransformer
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.stages.ssl import MoCoV3Stage
from rcg_lightning.types import DataSpec

GOLDEN = Path(os.environ.get("RCG_GOLDEN_DIR", Path(__file__).parents[3] / "shared" / "golden")) / "moco_v3_vit"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no recorded results")


class Unchanged(Augmentation):
    crops = True

    def draw(self, image):
        return ()

    def augment(self, image, drawn):
        return image


class Mirrored(Augmentation):
    crops = True

    def draw(self, image):
        return ()

    def augment(self, image, drawn):
        return 0.9 * image.flip(3)


def official_stage(temperature: float) -> MoCoV3Stage:
    arch = json.loads((GOLDEN / "config.json").read_text())["arch"]
    backbone = VisionTransformer(
        image_size=arch["img_size"],
        patch=arch["patch_size"],
        width=arch["embed_dim"],
        depth=arch["depth"],
        heads=arch["num_heads"],
        mlp_ratio=arch["mlp_ratio"],
    )
    stage = MoCoV3Stage(
        encoder=Projected(backbone, ProjectionHead(arch["embed_dim"], arch["head_mlp"], arch["proj_dim"])),
        predictor=Predictor(arch["proj_dim"], arch["head_mlp"], arch["proj_dim"]),
        view1=Unchanged(),
        view2=Mirrored(),
        optimizer=AdamW(),
        preprocess=Preprocess(size=arch["img_size"]),
        momentum=1.0,
        temperature=temperature,
    )
    stage.build(DataSpec(image=tuple(load_file(GOLDEN / "io.safetensors")["in.images_small"].shape[1:])))
    state = torch.load(GOLDEN / "checkpoint.pth", weights_only=True)["state_dict"]
    names = [("base_encoder", "encoder"), ("momentum_encoder", "momentum_encoder"), ("predictor", "predictor")]
    for theirs, ours in names:
        part = {k.removeprefix(f"module.{theirs}."): v for k, v in state.items() if k.startswith(f"module.{theirs}.")}
        if ours != "predictor":
            part = {k if k.startswith("head.") else f"backbone.{k}": v for k, v in part.items()}
        getattr(stage, ours).load_state_dict(part)
    return stage.train()


def test_loss_agrees_with_the_official_code():
    recorded = load_file(GOLDEN / "io.safetensors")
    tolerance = json.loads((GOLDEN / "config.json").read_text())["tolerance"]
    names = [re.fullmatch(r"out\.moco_loss_T([\d.]+)_m1", name) for name in recorded]
    checked = [match for match in names if match]
    assert checked
    for match in checked:
        stage = official_stage(temperature=float(match[1]))
        loss = stage.losses({"image": recorded["in.images_small"]})["loss"]
        torch.testing.assert_close(loss.detach(), recorded[match[0]], **tolerance)
        loss.backward()
        missing = [n for n, p in stage.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing
        assert all(p.grad is None for p in stage.momentum_encoder.parameters())
