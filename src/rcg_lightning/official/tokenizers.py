"""Vector-quantising autoencoders: MaskGIT's VQGAN, LDM's VQ-f8, and those inside the files of MAGE and LDM."""

from collections.abc import Mapping
from typing import Any, ClassVar

from rcg_lightning.official.base import NetworkPart, OfficialFile, Part
from rcg_lightning.pretrained.autoencoders import autoencoder_settings
from rcg_lightning.pretrained.checkpoints import load_strictly
from rcg_lightning.pretrained.vqgan_layout import vq_state

CHANGED = {r"\.attn\S*\.([qkv]|proj_out)\.": "1 x 1 convolutions are linear maps here, query, key and value one"}


class MaskGITVQGANFile(OfficialFile):
    """MaskGIT's VQGAN, MAGE's tokenizer. Its sizes are those of its shapes."""

    called = "a MaskGIT VQGAN"

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, Part]:
        return {"autoencoder": autoencoder_part(content, where)}


class LDMVQFile(MaskGITVQGANFile):
    """LDM's VQ-f8. Its sizes are those of its shapes."""

    called = "an autoencoder of LDM"
    ignored: ClassVar[dict[str, str]] = {r"(state_dict\.)?(\w+\.)?loss\.": "networks that only its training used"}


def autoencoder_part(content: Mapping[str, Any], where: str) -> NetworkPart:
    """Return the autoencoder that a file is or holds."""
    state = vq_state(content, where)
    load_strictly(state.structure, state.network, where)
    return NetworkPart(state.structure, autoencoder_settings(state.structure), state.network, CHANGED)
