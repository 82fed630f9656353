"""RCG's LDM."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.diffusion import Noise
from rcg_lightning.core.samplers import DDIM, OffsetSpacing
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.unet import CrossAttentionUNet
from rcg_lightning.networks.vqgan import VQNetwork
from rcg_lightning.official.base import OfficialFile, Part
from rcg_lightning.official.building import Conditioning, Weights, built, conditioning, ema_decay, stage_part
from rcg_lightning.official.encoders import inner_encoder
from rcg_lightning.official.rdm import DECAY, TABLES, UPDATES
from rcg_lightning.official.tokenizers import autoencoder_part
from rcg_lightning.official.unet_sizes import unet_sizes
from rcg_lightning.pretrained.checkpoints import EMBEDDING, entry
from rcg_lightning.pretrained.codecs import VQLatents
from rcg_lightning.pretrained.ldm_layout import ldm_state
from rcg_lightning.pretrained.schedule_tables import schedule_of
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import Condition, DataSpec, Vector

CHANGED = {
    r"attn1\.?to_[qkv]\.?weight$": "query, key and value are one map here",
    r"attn1\.?to_out\.?0\.?bias$": "what attention to the only class gives is added to it",
    r"attn2\.?to_(v|out)": "its attention to the only class is a constant here",
}
CLASSES = 512  # width of the official class embedding


class LDMFile(OfficialFile):
    """LDM-8 with its first stage and encoder. Sampled by DDIM, 200 steps, η 1.

    Args:
        head_width: channels of an attention head.
        condition: RepresentationCondition, ClassCondition or NoCondition; by default what the file looks like.
        latent: side of the latents.
        encoder_heads: attention heads of the encoder of representations in the file, for unpublished widths.
    """

    called = "an LDM checkpoint"
    ignored: ClassVar[dict[str, str]] = {
        TABLES[0]: TABLES[1],
        rf"(model|state_dict)\.{DECAY}": "a setting of the average, kept as such",
        r".*(attn2\.?to_[qk]|\d\.?norm2\.?(weight|bias)$)": "over one token of context the softmax is 1",
        rf"(model|state_dict)\.{EMBEDDING}": "the class embedding, which nothing reads",
    }

    def __init__(
        self,
        head_width: int = 32,
        condition: Condition | None = None,
        latent: int = 32,
        encoder_heads: int | None = None,
    ) -> None:
        self.head_width, self.condition, self.latent, self.encoder_heads = head_width, condition, latent, encoder_heads

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, Part]:
        tensors = entry(content, "model", "state_dict")
        condition = self.conditioning(tensors)
        trained = ldm_state(content, condition.parts, ema=False)
        averaged = ldm_state(content, condition.parts) if DECAY in tensors else None
        network = CrossAttentionUNet(**unet_sizes(trained.network), head_width=self.head_width)
        channels = trained.network["down.0.0.weight"].shape[1]
        autoencoder = autoencoder_part(content, where)
        assert isinstance(autoencoder.module, VQNetwork)
        stage = DiffusionStage(
            codec=VQLatents(),
            condition=condition.condition,
            denoiser=Denoiser(network, schedule_of(trained.schedule, where), Noise()),
            conditioner=Conditioner(drop=0.0, project=False),
            optimizer=AdamW(lr=6.4e-5, weight_decay=0.01),
            sampler=DDIM(200, 1.0, OffsetSpacing()),
            ema=EMA(ema_decay(tensors.get(DECAY)), warmup=True),
            ema_conditioner=False,
        )
        side = self.latent * autoencoder.module.factor
        columns = {"latent": {"shape": [channels, self.latent, self.latent]}}
        built(stage, DataSpec((3, side, side), condition.classes, columns | condition.columns))
        generator = stage_part(
            stage,
            network,
            Weights(trained.network, trained.conditioner),
            averaged and Weights(averaged.network, trained.conditioner),
            where,
            tensors.get(UPDATES),
            changed=CHANGED if not condition.parts else dict([next(iter(CHANGED.items()))]),
        )
        numbers = next((part.dim for part in condition.parts if isinstance(part, Vector)), None)
        encoder = inner_encoder(trained.encoder, numbers, self.encoder_heads, where)
        return {"generator": generator, "autoencoder": autoencoder, **encoder}

    def conditioning(self, tensors: Mapping[str, Tensor]) -> Conditioning:
        """Return the condition: what was given, else what the tensors look like.

        Every file has a table of classes. It is read where it is as wide as the official one, 512, and has several
        rows; otherwise the context is a representation.
        """
        context = next((t.shape[1] for name, t in tensors.items() if name.endswith("attn2.to_v.weight")), None)
        rows = len(tensors[EMBEDDING]) if EMBEDDING in tensors else 1
        by_class = context == CLASSES and rows > 1
        by_nothing = context == CLASSES and rows == 1
        if self.condition is not None:
            by_class = isinstance(self.condition, ClassCondition)
            by_nothing = not by_class and not isinstance(self.condition, RepresentationCondition)
        if by_class:
            return conditioning(None, rows)
        return conditioning(None if by_nothing else context, None)
