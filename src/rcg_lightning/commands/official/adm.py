"""RCG's ADM."""

from collections.abc import Mapping
from typing import Any

from rcg_lightning.commands.official.base import OfficialFile, Part
from rcg_lightning.commands.official.building import Weights, built, has_average, stage_part, told
from rcg_lightning.commands.official.unet_sizes import unet_sizes
from rcg_lightning.core.diffusion import Noise
from rcg_lightning.core.samplers import DDIM, StrideGrid
from rcg_lightning.core.schedule import LinearSchedule
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.unet import UNet
from rcg_lightning.pretrained.adm_layout import LABELS, adm_state
from rcg_lightning.pretrained.checkpoints import averaged_or_last
from rcg_lightning.pretrained.codecs import Pixels
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import Facts

CHANGED = {r"\.(qkv|proj_out)\.": "heads lie side by side here"}


class ADMFile(OfficialFile):
    """ADM on pixels, by representation, class, both or neither. Sampled by 25 steps of DDIM, x̂₀ bounded.

    Args:
        head_width: channels of an attention head.
        image: side of the pictures in pixels.
    """

    called = "an ADM checkpoint"

    def __init__(self, head_width: int = 64, image: int = 256) -> None:
        self.head_width, self.image = head_width, image

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, Part]:
        tensors = averaged_or_last(content, ema=False)
        numbers = tensors["rep_proj.weight"].shape[1] if "rep_proj.weight" in tensors else None
        condition = told(numbers, len(tensors[LABELS]) if LABELS in tensors else None)
        trained = adm_state(content, condition.parts, ema=False, head_width=self.head_width)
        averaged = adm_state(content, condition.parts, head_width=self.head_width) if has_average(content) else None
        out, channels = trained.network["out_conv.weight"].shape[0], trained.network["down.0.0.weight"].shape[1]
        network = UNet(**unet_sizes(trained.network), head_width=self.head_width)
        stage = DiffusionStage(
            codec=Pixels(),
            condition=condition.condition,
            denoiser=Denoiser(network, LinearSchedule(), Noise(), learned_variance=out == 2 * channels),
            conditioner=Conditioner(drop=0.0, zero_start=True),
            optimizer=AdamW(lr=1e-4, weight_decay=0.0),
            sampler=DDIM(25, 0.0, StrideGrid(), clip=1.0),
            ema=EMA(0.9999),
        )
        built(stage, Facts((channels, self.image, self.image), condition.classes, condition.columns))
        averages = averaged and Weights(averaged.network, averaged.conditioner)
        weights = Weights(trained.network, trained.conditioner)
        return {"generator": stage_part(stage, network, weights, averages, where, changed=CHANGED)}
