"""Base of all official files: the parts that a file holds, and how its kind is recognised."""

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
        settings: the other entries of its description.
        used: the file's tensors that are in it.
        changed: pattern of names in the file whose tensors are changed here, to how.
    """

    module: nn.Module
    settings: dict[str, Any]
    used: State
    changed: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: Path, others: Mapping[str, Path]) -> None:
        """Write the folder."""
        save_network(folder, self.module, self.settings)

    @property
    def description(self) -> str:
        """The class and size of the network."""
        count = sum(tensor.numel() for tensor in self.module.state_dict().values())
        return f"{type(self.module).__name__}, {count / 1e6:.1f} M parameters and buffers"


@dataclass(frozen=True)
class StagePart:
    """A generator of an official file, to be written as a stage's folder.

    Attributes:
        stage: built without memory; it determines the names and shapes of its tensors.
        used: its tensors, under its names.
        missing: tensors that the file lacks, and their replacement.
        changed: pattern of names in the file whose tensors are changed here, to how.
    """

    stage: Generator
    used: State
    missing: tuple[str, ...] = ()
    changed: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: Path, others: Mapping[str, Path]) -> None:
        """Write the folder; the stage is tied to the networks in ``others``, folders by the names of parts."""
        spec, codec = self.stage.spec, self.stage.codec
        assert spec is not None
        identities = dict(spec.identities)
        if "encoder" in others:
            identities["representation"] = TrainedEncoder(others["encoder"]).identity
        if "autoencoder" in others and isinstance(codec, AutoencoderCodec):
            identities[codec.column] = codec.open(others["autoencoder"]).identity
        data_spec = replace(spec, identities=identities).to_dict()
        save_stage(folder, {"stage": describe(self.stage), "data_spec": data_spec, "state_dict": self.used})

    @property
    def description(self) -> str:
        """The class, condition and size of the generator."""
        condition = type(self.stage.condition).__name__
        count = sum(parameter.numel() for module in self.stage.trained_modules() for parameter in module.parameters())
        return f"{type(self.stage).__name__}, {condition}, {count / 1e6:.1f} M parameters"


FilePart = NetworkPart | StagePart


@dataclass(frozen=True)
class NativeModel:
    """A model in this project's formats, to be written as an official file.

    Attributes:
        path: of its checkpoint or folder.
        stage: content of the generator's checkpoint or folder; None for a bare network.
        networks: network folders under ``encoder`` and ``autoencoder``, as far as the model has them.
    """

    path: Path
    stage: dict[str, Any] | None
    networks: dict[str, Path]

    @classmethod
    def read(cls, path: Path) -> "NativeModel":
        """Read a checkpoint, a stage's folder, a bundle, or the folder of one network (taken for an encoder)."""
        if (path / NETWORK).is_file():
            return cls(path, None, {"encoder": path})
        parts = bundle_parts(path)
        networks = {name: folder for name, folder in parts.items() if name in ("encoder", "autoencoder")}
        return cls(path, stage_content(path), networks)

    def class_paths(self) -> set[str]:
        """Return the paths of all classes in the description of the generator, or of the bare network."""
        description = self.stage["stage"] if self.stage else read_description(self.path)["network"]
        return set(re.findall(r"'class_path': '([\w.]+)'", str(description)))

    def generator(self) -> Generator:
        """Load the generator."""
        return Generator.load(self.path)

    def network(self, name: str) -> nn.Module | None:
        """Load the network of a part; None if it is missing."""
        return load_network(self.networks[name])[0] if name in self.networks else None


class OfficialFile(ConfigMixin):
    """A kind of official file, which is read and, for some kinds, written.

    The constructor takes the settings that the shapes in a file do not determine. A class is named after its kind, with
    ``File`` at the end.
    """

    description: ClassVar[str]  # as ``checkpoints.recognise`` describes such a file
    incomplete: ClassVar[tuple[str, ...]] = ()  # the same for files that lack a part; ``parts`` names it
    native_classes: ClassVar[tuple[type, ...]] = ()  # a native model that names one of them can become this kind
    files: ClassVar[tuple[str, ...]] = ()  # where a model is a folder of files: their names, without .pth
    pickled: ClassVar[dict[bytes, str]] = {}  # content of a file of whole objects, to the advice for its user
    ignored: ClassVar[dict[str, str]] = {}  # pattern of names in the file that become no tensor here, to the reason

    @abstractmethod
    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, FilePart]:
        """Return the parts that a file has, of ``generator``, ``autoencoder`` and ``encoder``.

        Args:
            content: of the file, as ``read_checkpoint`` returns it; the tensors may be without memory.
            where: the file, for messages.

        Raises:
            UserError: it is another kind of file, incomplete, or of a size that needs settings.
        """

    def official(self, native: NativeModel) -> dict[str, Any]:
        """Return the content of an official file; raise UserError if this kind is only read."""
        written = "encoders, RDM, MAGE, DiT and IC-GAN's BigGAN are read and written"
        raise UserError(f"{self.description} is only read here: {written}")

    @classmethod
    def kinds(cls) -> dict[str, type["OfficialFile"]]:
        """Return every kind by its name in lower letters, such as ``mocov3``."""
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        found: list[type[OfficialFile]] = [cls]
        for kind in found:
            found += kind.__subclasses__()
        return {kind.__name__.removesuffix("File").lower(): kind for kind in found if hasattr(kind, "description")}

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str) -> "OfficialFile":
        """Return the kind of a file, by its content."""
        known, description = cls.kinds(), recognise(content)
        found = [kind for kind in known.values() if description in (kind.description, *kind.incomplete)]
        unknown = f"{where} is {description}, which is none of {', '.join(known)}: give --kind if it is one"
        require(len(found) == 1, unknown)
        return found[0]()

    @classmethod
    def for_native(cls, native: NativeModel) -> "OfficialFile":
        """Return the kind that a native model can become."""
        named = native.class_paths()
        found = {
            name: kind
            for name, kind in cls.kinds().items()
            if any(f"{each.__module__}.{each.__qualname__}" in named for each in kind.native_classes)
        }
        known = "encoders, RDM, MAGE, DiT and BigGAN have one"
        require(bool(found), f"{native.path} has no official layout: {known}")
        require(len(found) == 1, f"{native.path} fits {' and '.join(found)}: choose one with --kind")
        return next(iter(found.values()))()
