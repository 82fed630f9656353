"""RCG's MAGE."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from rcg_lightning.core.masking import ParallelDecoding
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.mage import MAGE, MASK, SIZES
from rcg_lightning.networks.vqgan import MaskGITVQGAN, VQNetwork
from rcg_lightning.official.base import Native, OfficialFile, Part
from rcg_lightning.official.building import Weights, built, conditioning, heads_of, stage_part
from rcg_lightning.official.encoders import encoder_tensors, inner_encoder
from rcg_lightning.official.tokenizers import autoencoder_part
from rcg_lightning.pretrained.checkpoints import entry
from rcg_lightning.pretrained.codecs import VQTokens
from rcg_lightning.pretrained.mage_layout import (
    COUNTED,
    ENCODER,
    FAKE,
    LABELS,
    LEFT_OVER,
    TOKENIZER,
    mage_state,
    official_mage,
)
from rcg_lightning.pretrained.vqgan_layout import official_vq
from rcg_lightning.stages.masked import MaskedStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import DataSpec, require

HEADS = {width: heads for width, _, heads in SIZES.values()}
LARGE = 1024  # width from which on tokens are chosen at the higher temperature


class MAGEFile(OfficialFile):
    """MAGE with its tokenizer and encoder. Sampled in 20 steps at temperature 6, from the large one on 11.

    Args:
        heads: attention heads, for unpublished widths.
        decoder_heads: attention heads of the decoder.
        encoder_heads: attention heads of the encoder of representations in the file, for unpublished widths.
    """

    called = "a MAGE checkpoint"
    marks = (MAGE,)
    ignored: ClassVar[dict[str, str]] = {
        rf"model\.({'|'.join(LEFT_OVER)})": "what the official network has and never uses",
        rf"model\.{COUNTED}": "the positions' numbers, which are counted",
        rf"model\.{FAKE}": "the null of a condition that this model has not",
    }

    def __init__(self, heads: int | None = None, decoder_heads: int = 16, encoder_heads: int | None = None) -> None:
        self.heads, self.decoder_heads, self.encoder_heads = heads, decoder_heads, encoder_heads

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, Part]:
        tensors = entry(content, "model")
        numbers = tensors["latent_prior_proj.weight"].shape[1] if "latent_prior_proj.weight" in tensors else None
        condition = conditioning(numbers, len(tensors[LABELS]) if LABELS in tensors else None)
        state = mage_state(content, condition.parts)
        network = self.network(state.network, where)
        codes = len(state.network["words.weight"]) - MASK - 1
        tokens = len(state.network["positions.weight"]) - 1
        inner: dict[str, Part] = {"autoencoder": autoencoder_part(content, where)} if state.tokenizer else {}
        inner |= inner_encoder(state.encoder, numbers, self.encoder_heads, where)
        side = round(tokens**0.5) * self.factor(inner)
        stage = MaskedStage(
            codec=VQTokens(),
            condition=condition.condition,
            transformer=network,
            conditioner=Conditioner(drop=0.1 if numbers is not None else 0.0),
            optimizer=AdamW(lr=2.4e-3, betas=(0.9, 0.95), weight_decay=0.05, decay_vectors=False, clip=3.0),
            sampler=ParallelDecoding(20, 6.0 if network.width < LARGE else 11.0),
        )
        columns = {"tokens": {"shape": [tokens], "count": codes}}
        built(stage, DataSpec((3, side, side), condition.classes, columns | condition.columns))
        weights = Weights(state.network, state.conditioner)
        return {"generator": stage_part(stage, network, weights, None, where), **inner}

    def network(self, state: Mapping[str, Tensor], where: str) -> MAGE:
        """Return the network that has the shapes of ``state``, not built."""
        width, decoder_width = state["words.weight"].shape[1], state["decoder_norm.weight"].shape[0]
        return MAGE(
            width=width,
            depth=sum(name.startswith("blocks.") and name.endswith(".attn.qkv.weight") for name in state),
            heads=heads_of(width, self.heads, HEADS, where),
            decoder_width=decoder_width,
            decoder_depth=sum(
                name.startswith("decoder_blocks.") and name.endswith(".attn.qkv.weight") for name in state
            ),
            decoder_heads=self.decoder_heads,
            mlp_ratio=state["blocks.0.mlp.0.weight"].shape[0] / width,
        )

    def factor(self, parts: Mapping[str, Part]) -> int:
        """Return the side of a image over that of its tokens, the official one where there is no tokenizer."""
        if "autoencoder" not in parts:
            return 16
        network = parts["autoencoder"].module  # type: ignore[union-attr]
        assert isinstance(network, VQNetwork)
        return network.factor

    def official(self, native: Native) -> dict[str, Any]:
        stage = native.generator()
        assert isinstance(stage, MaskedStage)
        assert stage.spec is not None
        numbers = stage.spec.columns.get("representation", {}).get("shape", [256])[0]
        tokenizer, encoder = native.network("autoencoder"), native.network("encoder")
        network, conditioner = stage.for_sampling()
        state = official_mage(network.state_dict(), conditioner.state_dict(), numbers, classes=stage.spec.classes)
        if tokenizer is not None:
            require(isinstance(tokenizer, MaskGITVQGAN), f"{native.path}: official files of MAGE hold MaskGIT's VQGAN")
            inner = official_vq(tokenizer, tokenizer.state_dict())  # type: ignore[arg-type]
            state |= {f"{TOKENIZER}{name}": tensor for name, tensor in inner.items()}
        if encoder is not None:
            state |= {f"{ENCODER}{name}": tensor for name, tensor in encoder_tensors(encoder).items()}
        return {"model": state, "model_ema": None, "epoch": 0}
