"""What the kinds of official files share: the parts that one holds, and how a stage takes its tensors."""

import importlib
import pkgutil
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import rcg_lightning.commands.official as package
from rcg_lightning.conditions import ClassCondition, JointCondition, NoCondition, RepresentationCondition
from rcg_lightning.described import Described, describe
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.checkpoints import State, recognise, require_fit
from rcg_lightning.pretrained.network_folder import DESCRIPTION as NETWORK
from rcg_lightning.pretrained.network_folder import load_network, read_description, save_network
from rcg_lightning.stages.folder import bundle_parts, save_stage, stage_content
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Classes, Condition, Facts, Vector, require


@dataclass(frozen=True)
class NetworkPart:
    """A network of an official file, to be written as a network folder.

    Attributes:
        module: the network.
        settings: what its folder says besides.
        used: the file's tensors that are in it.
    """

    module: nn.Module
    settings: dict[str, Any]
    used: State

    def save(self, folder: Path, identities: Mapping[str, str]) -> None:
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

    def save(self, folder: Path, identities: Mapping[str, str]) -> None:
        """Write the folder; ``identities`` are those of the networks beside it."""
        assert self.stage.facts is not None
        facts = replace(self.stage.facts, identities={**self.stage.facts.identities, **identities})
        save_stage(folder, {"stage": describe(self.stage), "facts": facts.plain(), "state_dict": self.used})

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


class OfficialFile(Described):
    """A kind of official file: what it holds, and how it is written.

    The constructor takes what the shapes in a file do not tell. A class is named after its kind, with ``File`` at the
    end.
    """

    called: ClassVar[str]  # what ``checkpoints.recognise`` says of such a file
    marks: ClassVar[tuple[type, ...]] = ()  # classes by which what is native is known to be of this kind
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
        raise UserError(f"{self.called} is read here but not written: encoders, RDM, MAGE and DiT go back")

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
        found = [kind for kind in known.values() if kind.called == says]
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
        require(bool(found), f"{native.path} is nothing that has an official layout: encoders, RDM, MAGE and DiT have")
        require(len(found) == 1, f"{native.path} may go back as {' or '.join(found)}: say which with --kind")
        return next(iter(found.values()))()


# -- what several kinds do ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Weights of a generator in its own names: of the backbone and of the conditioner."""

    backbone: Mapping[str, Tensor]
    conditioner: Mapping[str, Tensor]


def built(stage: Generator, facts: Facts) -> Generator:
    """Create the networks of ``stage`` without memory for them."""
    with torch.device("meta"):
        return stage.build(facts)


def stage_part(
    stage: Generator,
    backbone: nn.Module,
    trained: Weights,
    averaged: Weights | None,
    where: str,
    updates: Tensor | None = None,
    missing: Sequence[str] = (),
    changed: Mapping[str, str] | None = None,
) -> StagePart:
    """Return a built ``stage`` with the tensors of a file.

    Args:
        stage: built; with averages where its recipe has them.
        backbone: the module of ``stage`` that the official network corresponds to.
        trained: weights of the last step.
        averaged: averages; None takes ``trained`` in their place.
        where: the file, for messages.
        updates: how often the averages were updated, () integer.
        missing: what the file lacks, for the report.
        changed: see ``StagePart``.

    Raises:
        UserError: tensors are missing, left over, or of another size.
    """
    names = {id(module): f"{name}." for name, module in stage.named_modules() if name}
    inside = names[id(backbone)].removeprefix(names[id(stage.network)])
    state = _prefixed(names[id(backbone)], trained.backbone)
    state |= _prefixed(names[id(stage.conditioner)], trained.conditioner)
    if stage.ema is not None:
        source = averaged or trained
        for copies in map(stage.ema.averaged, stage.ema.decays):
            state |= _prefixed(names[id(copies["network"])] + inside, source.backbone)
            if stage.average_conditioner:
                state |= _prefixed(names[id(copies["conditioner"])], source.conditioner)
        state["ema._extra_state"] = torch.zeros((), dtype=torch.int64) if updates is None else updates
        if averaged is None:
            missing = [*missing, "averaged weights: those of the last step stand in for them"]
    require_fit(stage.state_dict(), state, where, type(backbone).__name__)
    return StagePart(stage, state, tuple(missing), changed or {})


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def heads_of(width: int, given: int | None, usual: Mapping[int, int], where: str) -> int:
    """Return how many attention heads a network has, which no shape tells: as given, else as published."""
    heads = given or usual.get(width)
    if heads is None:
        known = ", ".join(f"{count} for {size}" for size, count in usual.items())
        raise UserError(f"{where}: the number of attention heads at width {width} cannot be seen (published: {known}): "
                        "give it with --kind.heads")  # fmt: skip
    return heads


def has_average(content: Mapping[str, Any]) -> bool:
    """Whether a file of DiT or ADM holds averaged weights beside those of the last step."""
    return isinstance(content.get("model_ema"), Mapping)


def kept_decay(decay: Tensor | None) -> float:
    """Return the decay of an average that a file tells, as it was typed before it became float32; else 0.9999."""
    return 0.9999 if decay is None or decay.is_meta else round(float(decay), 7)


@dataclass(frozen=True)
class Told:
    """A condition as the facts of a stage have it.

    Attributes:
        condition: where it comes from.
        parts: what it consists of.
        classes: number of classes, where it has any.
        columns: what it reads of a store.
    """

    condition: Condition
    parts: tuple[Classes | Vector, ...]
    classes: int | None
    columns: dict[str, dict[str, Any]]


def told(numbers: int | None, classes: int | None) -> Told:
    """Return the condition on a representation of so many numbers, on so many classes, on both or on nothing."""
    found: list[tuple[Condition, Classes | Vector]] = []
    if numbers is not None:
        found.append((RepresentationCondition(), Vector(numbers)))
    if classes is not None:
        found.append((ClassCondition(), Classes(classes)))
    conditions = [condition for condition, _ in found]
    condition = JointCondition(conditions) if len(found) > 1 else (*conditions, NoCondition())[0]
    columns = {} if numbers is None else {"representation": {"shape": [numbers]}}
    return Told(condition, tuple(part for _, part in found), classes, columns)
