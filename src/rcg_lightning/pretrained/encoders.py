"""Encoders: image in [0, 1] -> representation. Each owns its preprocessing, its head and its normalisation."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from rcg_lightning.arguments import PositiveInt
from rcg_lightning.artifacts import fingerprint
from rcg_lightning.config import ConfigMixin, describe
from rcg_lightning.core.precision import FrozenPrecision, with_precision
from rcg_lightning.networks.heads import BottleneckHead, LinearHead, Projected, ProjectionHead
from rcg_lightning.networks.vit import VisionTransformer
from rcg_lightning.pretrained.checkpoints import read_checkpoint
from rcg_lightning.pretrained.encoder_layouts import EncoderState, build_backbone, build_head, deit, dino, ibot, moco_v3
from rcg_lightning.pretrained.feature_map import feature_map
from rcg_lightning.pretrained.frozen import Frozen
from rcg_lightning.pretrained.network_folder import state_fingerprint
from rcg_lightning.pretrained.normalisation import Normalisation, PerSample
from rcg_lightning.pretrained.preprocess import Preprocess


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder's network as read from its weights.

    Attributes:
        network: preprocessed image -> (B, dim).
        preprocess: image in [0, 1] -> input of the network.
        dim: size of its output.
        structure: description of the network in plain data.
        loaded: number of tensors by part of the network, those of the head under ``head``.
        skipped: names of the file's other tensors, by reason.
        notes: further lines of the report.
    """

    network: nn.Module
    preprocess: Preprocess
    dim: int
    structure: Any
    loaded: dict[str, int]
    skipped: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Encoder(ConfigMixin):
    """Image (B, C, H, W) float in [0, 1] -> representation (B, dim) float32, through a frozen network.

    ``setup`` or the first use reads the network. A gradient can pass to the image.

    Args:
        normalise: from the network's output to the representation, ``PerSample`` by default.
        precision: ``highest`` computes in float32; ``high`` (TF32 on NVIDIA GPUs) and ``bf16`` are faster on GPUs and
            part of the identity. Preprocessing and normalisation are float32 always.
    """

    def __init__(self, normalise: Normalisation | None = None, precision: FrozenPrecision = "highest") -> None:
        self.normalise = normalise or PerSample()
        self.precision: FrozenPrecision = precision
        self._frozen = Frozen(self._make, precision)
        self._properties: dict[str, Any] = {}

    @abstractmethod
    def load(self) -> LoadedEncoder:
        """Read the weights; raise UserError if the file is of another kind."""

    def _make(self) -> nn.Module:
        loaded = self.load()
        self._properties |= {
            "dim": loaded.dim,
            "preprocess": describe(loaded.preprocess),  # the module moves to a device, this goes to workers
            "structure": loaded.structure,
            "report": self._report(loaded),
        }
        return nn.Sequential(loaded.preprocess, loaded.network, self.normalise)

    def setup(self) -> None:
        """Read the network unless it has been read."""
        self._frozen.setup()

    def release(self) -> None:
        """Free the network's memory; its size, identity and report stay available."""
        self._frozen.release()

    def __call__(self, image: Tensor) -> Tensor:
        """Return the representations (B, dim) of images (B, C, H, W) in [0, 1]."""
        return self._frozen.apply(_represent, image)

    def feature_map(self, image: Tensor) -> Tensor:
        """Return the feature map (B, D, h, w) of images: before pooling, head and normalisation.

        A network without such a map gives its one vector as a map of one position.
        """
        return self._frozen.apply(lambda module, values: feature_map(module[1], module[0](values)), image)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Encoder":
        return self

    def _property(self, name: str) -> Any:
        """Return a property that is known once the network has been read."""
        if name not in self._properties:
            self.setup()
        return self._properties[name]

    @property
    def dim(self) -> int:
        """Size of a representation."""
        return self._property("dim")

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing in front of the network."""
        return self._frozen.module[0]  # type: ignore[index]

    @property
    def network(self) -> nn.Module:
        """The network between preprocessing and normalisation."""
        return self._frozen.module[1]  # type: ignore[index]

    @property
    def identity(self) -> str:
        """A short hash of everything that a representation depends on: weights, network, preprocessing, normalisation.

        The same weights in another container, or on another machine, have the same identity. Below full float32 the
        precision follows it.
        """
        if "identity" not in self._properties:
            module = self._frozen.module
            parts = {
                "network": self._property("structure"),
                "weights": state_fingerprint(module.state_dict()),
                "preprocess": self._property("preprocess"),
                "normalise": describe(self.normalise),
                "precision": "torch.float32",  # of the weights
            }
            self._properties["identity"] = with_precision(fingerprint(parts), self.precision)
        return self._properties["identity"]

    def report(self) -> str:
        """Describe which tensors were loaded, which were skipped and why, and whether the head comes from the file."""
        return self._property("report")

    def _report(self, loaded: LoadedEncoder) -> str:
        parts = ", ".join(f"{count} tensors of the {part}" for part, count in loaded.loaded.items())
        head = "head: from the file" if "head" in loaded.loaded else "head: none, the backbone's feature is used"
        skipped = [
            f"skipped: {len(names)} tensors, {reason} ({names[0]}, ...)"
            for reason, names in loaded.skipped.items()
            if names
        ]
        lines = [f"loaded: {parts}", "missing: none", head, *skipped, *loaded.notes]
        first = f"{type(self).__name__}: {loaded.dim} dimensions, normalised by {type(self.normalise).__name__}"
        return "\n  ".join([first, *lines])


def _represent(module: nn.Module, image: Tensor) -> Tensor:
    """Return the representations of images; the normalisation is float32 whatever the network's output is."""
    preprocess, network, normalise = module  # type: ignore[misc]
    return normalise(network(preprocess(image)).float())


class OfficialEncoder(Encoder):
    """A Vision Transformer from an official file, used as RCG uses it: resized to its size, class token, head, z-score.

    All sizes are read from the file.

    Args:
        weights: the official checkpoint, .pth or .safetensors.
        head: whether the representation is the head's output; otherwise it is the class token after the final norm.
        heads: number of attention heads, which no shape shows; needed for unpublished widths only.
        normalise: from the network's output to the representation, ``PerSample`` by default.
        precision: see ``Encoder``.
    """

    usual_heads: ClassVar[dict[int, int]] = {192: 3, 384: 6, 768: 12, 1024: 16}  # by width, as published

    def __init__(
        self,
        weights: Path | None = None,
        head: bool = True,
        heads: PositiveInt | None = None,
        normalise: Normalisation | None = None,
        precision: FrozenPrecision = "highest",
    ) -> None:
        super().__init__(normalise, precision)
        self.weights, self.head, self.heads = weights, head, heads

    @abstractmethod
    def layout(self, container: Mapping[str, Any]) -> EncoderState:
        """Translate the names of the official file."""

    @abstractmethod
    def make_head(self, sizes: list[int]) -> nn.Module:
        """Return an empty head with these sizes between its linear layers."""

    def load(self) -> LoadedEncoder:
        state = self.layout(read_checkpoint(self.weights, type(self).__name__))
        network, loaded = self.build(state, str(self.weights))
        vit = network.backbone if isinstance(network, Projected) else network
        assert isinstance(vit, VisionTransformer)
        skipped = state.skipped if self.head else {**state.skipped, "head is off": [f"head.{n}" for n in state.head]}
        return LoadedEncoder(
            network=network,
            preprocess=Preprocess(size=vit.patch_embed.img_size[0]),  # type: ignore[index]
            dim=network.dim,  # type: ignore[arg-type]
            structure=describe(network),
            loaded=loaded,
            skipped=skipped,
            notes=self.notes(vit),
        )

    def build(self, state: EncoderState, where: str) -> tuple[nn.Module, dict[str, int]]:
        """Return the network and the number of tensors in its parts."""
        backbone = build_backbone(state.backbone, self.heads, self.usual_heads, where)
        if not self.head:
            return backbone, {"backbone": len(state.backbone)}
        head = build_head(self.make_head, state.head, where)
        return Projected(backbone, head), {"backbone": len(state.backbone), "head": len(state.head)}

    def notes(self, vit: VisionTransformer) -> tuple[str, ...]:
        """Describe what was inferred from the file."""
        attention: Any = vit.blocks[0].attn
        size, patch = vit.patch_embed.img_size[0], vit.patch_embed.patch_size[0]  # type: ignore[index]
        return (
            f"Vision Transformer: width {vit.dim}, depth {len(vit.blocks)}, {attention.num_heads} heads, "
            f"patches of {patch} in {size} pixels",
        )


class MoCoV3Encoder(OfficialEncoder):
    """MoCo v3 ViT-S, B or L, the encoder of RCG: base encoder with its projection head.

    The damaged names in the released ViT-L file are repaired.
    """

    usual_heads: ClassVar[dict[int, int]] = {384: 12, 768: 12, 1024: 16}

    def layout(self, container: Mapping[str, Any]) -> EncoderState:
        return moco_v3(container)

    def make_head(self, sizes: list[int]) -> nn.Module:
        return ProjectionHead(sizes[0], sizes[1], sizes[-1], len(sizes) - 1)


class DINOEncoder(OfficialEncoder):
    """DINO's teacher with its head up to the bottleneck, not normalised there and without prototypes."""

    def layout(self, container: Mapping[str, Any]) -> EncoderState:
        return dino(container)

    def make_head(self, sizes: list[int]) -> nn.Module:
        return BottleneckHead(sizes[0], sizes[1], sizes[-1])


class IBOTEncoder(DINOEncoder):
    """iBOT's teacher, with the same head as DINO's."""

    def layout(self, container: Mapping[str, Any]) -> EncoderState:
        return ibot(container)


class DeiTEncoder(OfficialEncoder):
    """DeiT, trained with labels. With ``head`` the representation is its class logits, normalised."""

    def layout(self, container: Mapping[str, Any]) -> EncoderState:
        return deit(container)

    def make_head(self, sizes: list[int]) -> nn.Module:
        return LinearHead(sizes[0], sizes[-1])

    def notes(self, vit: VisionTransformer) -> tuple[str, ...]:
        note = ("the head's output is class logits",) if self.head else ()
        return (*super().notes(vit), *note)
