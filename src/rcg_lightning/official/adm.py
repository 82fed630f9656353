"""RCG's ADM."""

from collections.abc import Mapping
from typing import Any

from rcg_lightning.core.diffusion import Noise
from rcg_lightning.core.samplers import DDIM, LeadingSpacing
from rcg_lightning.core.schedule import LinearSchedule
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.unet import UNet
from rcg_lightning.official.base import OfficialFile, Part
from rcg_lightning.official.building import Weights, built, conditioning, has_ema, stage_part
from rcg_lightning.official.unet_sizes import unet_sizes
from rcg_lightning.pretrained.adm_layout import LABELS, adm_state
from rcg_lightning.pretrained.checkpoints import ema_or_last
from rcg_lightning.pretrained.codecs import Pixels
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import DataSpec

CHANGED = {r"\.(qkv|proj_out)\.": "heads lie side by side here"}


class ADMFile(OfficialFile):
    """ADM on pixels, by representation, class, both or neither. Sampled by 25 steps of DDIM, x̂₀ bounded.

    Args:
        head_width: channels of an attention head.
        image: side of the images in pixels.
    """

    called = "an ADM checkpoint"

    def __init__(self, head_width: int = 64, image: int = 256) -> None:
        self.head_width, self.image = head_width, image

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, Part]:
        tensors = ema_or_last(content, ema=False)
        numbers = tensors["rep_proj.weight"].shape[1] if "rep_proj.weight" in tensors else None
        condition = conditioning(numbers, len(tensors[LABELS]) if LABELS in tensors else None)
        trained = adm_state(content, condition.parts, ema=False, head_width=self.head_width)
        averaged = adm_state(content, condition.parts, head_width=self.head_width) if has_ema(content) else None
        out, channels = trained.network["out_conv.weight"].shape[0], trained.network["down.0.0.weight"].shape[1]
        network = UNet(**unet_sizes(trained.network), head_width=self.head_width)
        stage = DiffusionStage(
            codec=Pixels(),
            condition=condition.condition,
            denoiser=Denoiser(network, LinearSchedule(), Noise(), learned_variance=out == 2 * channels),
            conditioner=Conditioner(drop=0.0, zero_start=True),
            optimizer=AdamW(lr=1e-4, weight_decay=0.0),
            sampler=DDIM(25, 0.0, LeadingSpacing(), clip=1.0),
            ema=EMA(0.9999),
        )
        built(stage, DataSpec((channels, self.image, self.image), condition.classes, condition.columns))
        ema_weights = averaged and Weights(averaged.network, averaged.conditioner)
        weights = Weights(trained.network, trained.conditioner)
        return {"generator": stage_part(stage, network, weights, ema_weights, where, changed=CHANGED)}
