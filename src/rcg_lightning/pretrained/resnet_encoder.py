"""ResNet-50, which gives IC-GAN the features of its instances, from any of the files that its weights come in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from rcg_lightning.core.precision import FrozenPrecision
from rcg_lightning.pretrained.checkpoints import State, entry, load_strictly, read_checkpoint, strip
from rcg_lightning.pretrained.encoders import Encoder, LoadedEncoder
from rcg_lightning.pretrained.normalisation import Normalisation, UnitLength
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.types import require

NAME = "resnet50"  # timm's
SIZE = 224  # pixels a side
HEADS = {
    "fc.": "the classifier",
    "projection_head.": "the projection head, the feature in front of it is used",
    "prototypes.": "the prototypes",
}


class ResNet50Encoder(Encoder):
    """The pooled feature of a ResNet-50, 2048-d and of length one, as IC-GAN is conditioned on it.

    As in the official code, an image is stretched to 224 x 224 by a bicubic resize that does not smooth
    (``TimmEncoder`` does smooth). Files of SwAV (the unlabelled IC-GAN), torchvision and timm (supervised, the
    class-conditional one) have one set of names; those of a network trained on ImageNet-LT are in
    ``state_dict_best``.

    Args:
        weights: SwAV's ``swav_800ep_pretrain.pth.tar``, torchvision's ``resnet50-….pth``, or timm's file.
        normalise: from the network's output to the representation, ``UnitLength`` by default.
        precision: see ``Encoder``.
    """

    def __init__(
        self,
        weights: Path | None = None,
        normalise: Normalisation | None = None,
        precision: FrozenPrecision = "highest",
    ) -> None:
        super().__init__(normalise or UnitLength(), precision)
        self.weights = weights

    def load(self) -> LoadedEncoder:
        state = backbone_of(read_checkpoint(self.weights, type(self).__name__))
        heads = {why: [n for n in state if n.startswith(start)] for start, why in HEADS.items()}
        skipped = {why: names for why, names in heads.items() if names}
        skipped_names = {name for names in skipped.values() for name in names}
        network = timm.create_model(NAME, num_classes=0)
        backbone = {name: tensor for name, tensor in state.items() if name not in skipped_names}
        # counts of batches: nothing reads them in eval mode, and older files have none
        counts = {n: torch.tensor(0) for n in network.state_dict() if n.endswith(".num_batches_tracked")}
        load_strictly(network, {**counts, **backbone}, str(self.weights))
        return LoadedEncoder(
            network=network,
            preprocess=Preprocess(size=SIZE),
            dim=network.num_features,  # type: ignore[arg-type]
            structure={"timm": NAME},
            loaded={"backbone": len(backbone)},
            skipped=skipped,
        )


def backbone_of(container: Mapping[str, Any]) -> State:
    """Return the tensors of a ResNet under torchvision's names."""
    best = container.get("state_dict_best")
    state = entry(best if isinstance(best, Mapping) else container, "feat_model", "state_dict", "model")
    state = strip(state, "module.") or state
    require("layer1.0.conv1.weight" in state, f"this is no ResNet, its tensors are {', '.join([*state][:3]) or 'none'}")
    return state
