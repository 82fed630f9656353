"""What the kinds of official files share: the parts that one holds, and how a kind is found."""

import importlib
import pkgutil
import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

import rcg_lightning.official as package
from rcg_lightning.config import ConfigMixin, describe
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.checkpoints import State, recognise
from rcg_lightning.pretrained.codecs import AutoencoderCodec
from rcg_lightning.pretrained.network_folder import DESCRIPTION as NETWORK
from rcg_lightning.pretrained.network_folder import load_network, read_description, save_network
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.stage_folder import bundle_parts, save_stage, stage_content
from rcg_lightning.types import require


@dataclass(frozen=True)
class NetworkPart:
    """A network of an official file, to be written as a network folder.

    Attributes:
        module: the network.
        settings: what its folder says besides.
        used: the file's tensors that are in it.
        changed: pattern of names in the file whose tensors become others here, to how.
    """

    module: nn.Module
    settings: dict[str, Any]
    used: State
    changed: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: Path, beside: Mapping[str, Path]) -> None:
        """Write the folder."""
        save_network(folder, self.module, self.settings)

    @property
    def says(self) -> str:
        """What it is, in a few words."""
        count = sum(tensor.numel() for tensor in self.module.state_dict().values())
        return f"{type(self.module).__name__} of {count / 1e6:.1f} M numbers"


@dataclass(frozen=True)
class StagePart:
    """A generator of an official file, to be written as a stage's folder.

    Attributes:
        stage: built without memory: it says what the tensors are called and how large they are.
        used: its tensors, under its names.
        missing: what the file lacks, and what is used instead.
        changed: pattern of names in the file whose tensors become others here, to how.
    """

    stage: Generator
    used: State
    missing: tuple[str, ...] = ()
    changed: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: Path, beside: Mapping[str, Path]) -> None:
        """Write the folder; the stage belongs to the networks ``next to`` it, by the names of parts."""
        spec, codec = self.stage.spec, self.stage.codec
        assert spec is not None
        identities = dict(spec.identities)
        if "encoder" in beside:
            identities["representation"] = TrainedEncoder(beside["encoder"]).identity
        if "autoencoder" in beside and isinstance(codec, AutoencoderCodec):
            identities[codec.column] = codec.open(beside["autoencoder"]).identity
        plain = replace(spec, identities=identities).plain()
        save_stage(folder, {"stage": describe(self.stage), "data_spec": plain, "state_dict": self.used})

    @property
    def says(self) -> str:
        """What it is, in a few words."""
        condition = type(self.stage.condition).__name__
        count = sum(parameter.numel() for module in self.stage.trained() for parameter in module.parameters())
        return f"{type(self.stage).__name__}, {condition}, {count / 1e6:.1f} M parameters"


Part = NetworkPart | StagePart


@dataclass(frozen=True)
class Native:
    """What is to be written as an official file.

    Attributes:
        path: where it lies.
        stage: content of the generator's checkpoint or folder; None for a bare network.
        networks: folders of networks: ``encoder`` and ``autoencoder``, those that are there.
    """

    path: Path
    stage: dict[str, Any] | None
    networks: dict[str, Path]

    @classmethod
    def read(cls, path: Path) -> "Native":
        """Read a checkpoint, a stage's folder, a bundle, or the folder of one network (taken for an encoder)."""
        if (path / NETWORK).is_file():
            return cls(path, None, {"encoder": path})
        parts = bundle_parts(path)
        networks = {name: folder for name, folder in parts.items() if name in ("encoder", "autoencoder")}
        return cls(path, stage_content(path), networks)

    def class_paths(self) -> set[str]:
        """Every class that the description of the generator, or of the one network, names."""
        plain = self.stage["stage"] if self.stage else read_description(self.path)["network"]
        return set(re.findall(r"'class_path': '([\w.]+)'", str(plain)))

    def generator(self) -> Generator:
        """Return the generator itself."""
        return Generator.load(self.path)

    def network(self, name: str) -> nn.Module | None:
        """Return the network of a part, None where it is not there."""
        return load_network(self.networks[name])[0] if name in self.networks else None


class OfficialFile(ConfigMixin):
    """A kind of official file: what it holds, and how it is written.

    The constructor takes what the shapes in a file do not tell. A class is named after its kind, with ``File`` at the
    end.
    """

    called: ClassVar[str]  # what ``checkpoints.recognise`` says of such a file
    marks: ClassVar[tuple[type, ...]] = ()  # classes by which what is native is known to be of this kind
    also: ClassVar[tuple[str, ...]] = ()  # what it says of a part of such a file, of which ``parts`` says what it lacks
    files: ClassVar[tuple[str, ...]] = ()  # where a model is a folder of files: their names, without .pth
    pickled: ClassVar[dict[bytes, str]] = {}  # what is in a file of whole objects, to what to do with it instead
    ignored: ClassVar[dict[str, str]] = {}  # pattern of names in the file that become no tensor here, to the reason

    @abstractmethod
    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, Part]:
        """Return the parts of a file: ``generator``, ``autoencoder``, ``encoder``, those that it has.

        Args:
            content: of the file, as ``read_checkpoint`` returns it; the tensors may be without memory.
            where: the file, for messages.

        Raises:
            UserError: it is another kind of file, incomplete, or of a size that needs telling.
        """

    def official(self, native: Native) -> dict[str, Any]:
        """Return the content of an official file; UserError where this kind has no way back."""
        raise UserError(
            f"{self.called} is read here but not written: encoders, RDM, MAGE, DiT and IC-GAN's BigGAN go back"
        )

    @classmethod
    def kinds(cls) -> dict[str, type["OfficialFile"]]:
        """Return every kind by its name in lower letters, such as ``mocov3``."""
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        found: list[type[OfficialFile]] = [cls]
        for kind in found:
            found += kind.__subclasses__()
        return {kind.__name__.removesuffix("File").lower(): kind for kind in found if hasattr(kind, "called")}

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str) -> "OfficialFile":
        """Return the kind of a file, by its content."""
        known = cls.kinds()
        says = recognise(content)
        found = [kind for kind in known.values() if says in (kind.called, *kind.also)]
        require(len(found) == 1, f"{where} is {says}, which is none of {', '.join(known)}: give --kind if it is one")
        return found[0]()

    @classmethod
    def for_native(cls, native: Native) -> "OfficialFile":
        """Return the kind that something native goes back to."""
        named = native.class_paths()
        found = {
            name: kind
            for name, kind in cls.kinds().items()
            if any(f"{mark.__module__}.{mark.__qualname__}" in named for mark in kind.marks)
        }
        have = "encoders, RDM, MAGE, DiT and BigGAN have"
        require(bool(found), f"{native.path} is nothing that has an official layout: {have}")
        require(len(found) == 1, f"{native.path} may go back as {' or '.join(found)}: say which with --kind")
        return next(iter(found.values()))()
