"""Encoders that were trained or fitted here, from their network folders."""

from pathlib import Path
from typing import Any

from torch import nn

from rcg_lightning.config import construct, describe
from rcg_lightning.core.precision import FrozenPrecision, without_precision
from rcg_lightning.networks.heads import Projected
from rcg_lightning.pretrained.encoders import Encoder, LoadedEncoder
from rcg_lightning.pretrained.network_folder import load_network, save_network
from rcg_lightning.pretrained.normalisation import Normalisation
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.timm_encoder import TimmEncoder, TimmNetwork
from rcg_lightning.types import require


def encoder_settings(preprocess: Preprocess, head: bool = True) -> dict[str, Any]:
    """Return the settings in an encoder's network folder, for ``save_network``.

    Args:
        preprocess: from an image in [0, 1] to the input of the network.
        head: whether the head's output is the representation, or the backbone's.
    """
    return {"preprocess": describe(preprocess), "head": head}


def save_encoder(folder: Path, encoder: Encoder) -> None:
    """Write any encoder as a network folder, from which ``TrainedEncoder`` makes the same representations.

    Raises:
        UserError: the folder could not hold all that the encoder does.
    """
    loaded = encoder.load()
    network = loaded.network
    if isinstance(encoder, TimmEncoder):
        network = TimmNetwork(encoder.name, encoder.pool, encoder.size)
        network.model.load_state_dict(loaded.network.state_dict())
    save_network(folder, network, encoder_settings(loaded.preprocess, isinstance(network, Projected)))
    same = without_precision(TrainedEncoder(folder).identity) == without_precision(encoder.identity)
    require(same, f"{type(encoder).__name__} with its own normalisation cannot be kept in a folder: leave that out")


class TrainedEncoder(Encoder):
    """An encoder from a network folder: one that MoCo v3 pre-training exported, or principal components.

    Args:
        folder: written by ``save_network`` with ``encoder_settings``.
        head: whether the representation is the head's output; by default as in the folder's settings.
        normalise: from the network's output to the representation, ``PerSample`` by default.
        precision: see ``Encoder``.
    """

    def __init__(
        self,
        folder: Path | None = None,
        head: bool | None = None,
        normalise: Normalisation | None = None,
        precision: FrozenPrecision = "highest",
    ) -> None:
        super().__init__(normalise, precision)
        self.folder, self.head = folder, head

    def load(self) -> LoadedEncoder:
        require(self.folder is not None, "TrainedEncoder needs the folder of its network: give it as folder")
        module, settings = load_network(self.folder)  # type: ignore[arg-type]
        absent = sorted(encoder_settings(Preprocess()).keys() - settings.keys())
        require(not absent, f"the network in {self.folder} is no encoder: its settings lack {', '.join(absent)}")
        network, parts = self.choose(module, settings["head"] if self.head is None else self.head)
        dim = getattr(module if isinstance(module, TimmNetwork) else network, "dim", None)
        require(isinstance(dim, int), f"the network in {self.folder} is no encoder: it has no dim")
        return LoadedEncoder(
            network=network,
            preprocess=construct(settings["preprocess"]),
            dim=dim,  # type: ignore[arg-type]
            structure=module.structure if isinstance(module, TimmNetwork) else describe(network),
            loaded={part: len(module.state_dict()) for part, module in parts.items()},
            notes=(f"from {self.folder}",),
        )

    def choose(self, module: nn.Module, head: bool) -> tuple[nn.Module, dict[str, nn.Module]]:
        """Return the network that makes the representation, and its parts."""
        if isinstance(module, TimmNetwork):
            return module.model, {"backbone": module.model}
        if not isinstance(module, Projected):
            require(not self.head, f"the network in {self.folder} has no head: set head to false")
            return module, {"backbone": module}
        if head:
            return module, {"backbone": module.backbone, "head": module.head}
        return module.backbone, {"backbone": module.backbone}
