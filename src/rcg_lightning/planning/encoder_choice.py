"""Which encoder makes the representations: a pretrained one where its weights are at hand, else one trained here."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants as hub

from rcg_lightning.errors import UserError
from rcg_lightning.planning.data_report import FEW, DataReport
from rcg_lightning.planning.machine import Machine
from rcg_lightning.pretrained import efficientnet_lite
from rcg_lightning.pretrained.downloads import is_offline, require_answer
from rcg_lightning.pretrained.network_folder import DESCRIPTION
from rcg_lightning.pretrained.timm_encoder import TimmEncoder, published_config

log = logging.getLogger(__name__)
DEFAULT = "vit_small_patch14_dinov2.lvd142m"  # self-supervised: it saw no labels
CPU_SIZE, GPU_SIZE = 112, 224  # of its input; the published 518 take twenty times as long as 112
LITE_SIZE = 96
MOCO, PRINCIPAL = "moco", "principal"
_LABELS_UNSEEN = ("dino", "mae", "clip", "beit", "eva02", "ijepa", "aim")  # in a timm name


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder.

    Attributes:
        kind: ``timm``, ``folder`` (a network folder), or trained here: ``moco``, ``principal``.
        reason: why, in one line.
        name: of a timm model.
        size: of its input in pixels.
        path: weights of a timm model, or the network folder.
        saw_labels: whether it was trained with labels of other images.
    """

    kind: str
    reason: str
    name: str | None = None
    size: int | None = None
    path: Path | None = None
    saw_labels: bool = False

    def configured(self, step_folder: str = "{encoder}") -> dict[str, Any]:
        """Return the encoder as a config names it; ``step_folder`` is that of the step that trains it."""
        if self.kind == "timm":
            given = {"name": self.name, "size": self.size, "weights": None if self.path is None else str(self.path)}
            return {"class_path": "TimmEncoder", "init_args": {k: v for k, v in given.items() if v is not None}}
        inner = f"{step_folder}/encoder" if self.kind == MOCO else step_folder
        folder = str(self.path) if self.kind == "folder" else inner
        return {"class_path": "TrainedEncoder", "init_args": {"folder": folder}}

    @property
    def trained_here(self) -> bool:
        return self.kind in (MOCO, PRINCIPAL)


def choose_encoder(wanted: str, report: DataReport, machine: Machine, size: int) -> EncoderChoice:
    """Return the encoder that ``--encoder`` names, or the best one that is at hand.

    Args:
        wanted: ``auto``, ``moco``, ``principal``, a timm name, NAME=WEIGHTS, or a network folder.
        size: of the images that are generated.

    Raises:
        UserError: timm has no such model, or there are no weights.
    """
    if wanted in (MOCO, PRINCIPAL):
        return EncoderChoice(wanted, "chosen by --encoder")
    if wanted != "auto":
        return _named(wanted, machine)
    width = CPU_SIZE if machine.on_cpu else GPU_SIZE
    if not report.is_grey and size >= 32 and is_at_hand(DEFAULT) and loads(DEFAULT, width):
        reason = f"its weights are at hand; self-supervised on many other images, at {width} pixels"
        return EncoderChoice("timm", reason, DEFAULT, width)
    if not report.is_grey and size >= 32 and efficientnet_lite.is_installed():
        reason = f"it is installed; trained with the labels of ImageNet, at {LITE_SIZE} pixels"
        path = efficientnet_lite.weights()
        return EncoderChoice("timm", reason, efficientnet_lite.NAME, LITE_SIZE, path, saw_labels=True)
    if report.images < FEW:
        return EncoderChoice(PRINCIPAL, f"{report.images} images are too few to train an encoder on")
    missing = "pretrained ones are for colour" if report.is_grey else f"the weights of {DEFAULT} are not at hand"
    return EncoderChoice(MOCO, f"trained on your images, because {missing}")


def _named(wanted: str, machine: Machine) -> EncoderChoice:
    if (Path(wanted) / DESCRIPTION).is_file():
        return EncoderChoice("folder", "chosen by --encoder", path=Path(wanted).resolve())
    name, _, weights = wanted.partition("=")
    if "/" in name:
        raise UserError(f"--encoder {wanted} is no network folder: it holds no {DESCRIPTION}")
    config = published_config(name)
    if weights and not Path(weights).is_file():
        raise UserError(f"--encoder {wanted}: no file {weights}")
    published = config.input_size[1]
    size = min(published, CPU_SIZE if machine.on_cpu else GPU_SIZE)
    path = Path(weights).resolve() if weights else None
    unlabelled = any(word in name for word in _LABELS_UNSEEN) and "in1k" not in name and "in22k" not in name
    reason = "chosen by --encoder" if unlabelled else "chosen by --encoder; it saw labels of other images"
    choice = EncoderChoice("timm", reason, name, size - size % 14 if "patch14" in name else size, path, not unlabelled)
    TimmEncoder(name, path, size=choice.size).setup()  # a name or weights that do not work are found now
    return choice


def loads(name: str, size: int) -> bool:
    """Whether a timm model's weights can be read, or fetched now."""
    try:
        TimmEncoder(name, size=size).setup()
    except UserError as error:
        log.warning("%s is not used: %s", name, error)
        return False
    return True


def is_at_hand(name: str) -> bool:
    """Whether a timm model's weights are in the hub's cache, or the hub answers within seconds."""
    config = published_config(name)
    if not config.hf_hub_id:
        return False
    repository = config.hf_hub_id.partition("@")[0]
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str) for file in files):
        return True
    if is_offline():
        return False
    try:
        require_answer(hub.ENDPOINT)
    except OSError:
        return False
    return True
