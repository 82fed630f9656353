"""The parts of a run that sampling needs, found by what its files hold: generator, RDM, encoder, autoencoder."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcg_lightning.artifacts import read_state
from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.cluster import ClusterCondition
from rcg_lightning.conditions.instance import InstanceCondition
from rcg_lightning.conditions.joint import JointCondition, has
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.config import construct, find_class, locations
from rcg_lightning.core.precision import without_precision
from rcg_lightning.data.store import MANIFEST, Store
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.autoencoder_codec import AutoencoderCodec
from rcg_lightning.pretrained.autoencoders import Autoencoder
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.pretrained.network_folder import DESCRIPTION as NETWORK
from rcg_lightning.pretrained.timm_encoder import TimmEncoder
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder
from rcg_lightning.run_folder import LAST, PLAN, files_of_steps, step_parents
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.stage_folder import DESCRIPTION as STAGE
from rcg_lightning.stages.stage_folder import bundle_parts, stage_content
from rcg_lightning.types import Codec

log = logging.getLogger(__name__)

RUNS = Path("runs")
# a run with several generators is sampled by the first kind that it has; others come before NoCondition
_PREFERRED = (RepresentationCondition, JointCondition, InstanceCondition, ClusterCondition, ClassCondition)


@dataclass(frozen=True)
class RunParts:
    """Paths of what sampling needs, as far as they were found.

    Attributes:
        generator: checkpoint, stage folder or bundle.
        prior: checkpoint or stage folder of the RDM.
        instances: store of instances.
        networks: network folders, among them those of encoder and autoencoder.
        plan: of the run, which describes an encoder that has no folder, such as one of timm.
        results: folder for further samples; None where only a checkpoint is known.
    """

    generator: Path
    prior: Path | None = None
    instances: Path | None = None
    networks: tuple[Path, ...] = ()
    plan: Path | None = None
    results: Path | None = None

    def encoder(self, identity: str | None) -> Encoder | None:
        """Return the encoder of this identity (None takes any); None where there is no such encoder."""
        encoders = (_planned_encoder(self.plan), *map(TrainedEncoder, self.networks))
        found = {own: one for one in encoders if one is not None and (own := _identity_of(one))}
        return next((one for own, one in found.items() if identity is None or same_network(own, identity)), None)

    def autoencoder(self, codec: Codec, identities: Mapping[str, Any]) -> Path | None:
        """Return the folder of the autoencoder whose encodings a generator models; None where the run holds none."""
        if isinstance(codec, AutoencoderCodec) and codec.column in identities:
            for folder in self.networks:
                if same_network(_identity_of(codec.open(folder)), identities[codec.column]):
                    return folder
        return None

    def lines(self) -> str:
        """Describe the chosen parts in one line."""
        named = {"generator": self.generator, "RDM": self.prior, "instances": self.instances}
        return ", ".join(f"{name} {path}" for name, path in named.items() if path is not None)


def find_parts(path: Path) -> RunParts:
    """Find the parts at ``path``: a run's folder, one of its steps' folders, a bundle, a stage folder or a checkpoint.

    Raises:
        UserError: a run has no generator, or several of which none is preferred.
    """
    path = named_run(Path(path))
    if is_run(path):
        return _parts_of_run(path)
    parts = bundle_parts(path)
    networks = (parts["encoder"],) if "encoder" in parts else ()  # a generator loads its bundle's autoencoder itself
    results = path.with_name(f"{path.name}-samples") if parts else None
    return RunParts(path, parts.get("prior"), parts.get("instances"), networks, None, results)


def named_run(path: Path) -> Path:
    """Return ``path``, or the run in ``runs`` that a word that is no path names."""
    found = RUNS / path
    return found if not path.exists() and len(path.parts) == 1 and found.is_dir() else path


def is_run(path: Path) -> bool:
    """Whether ``path`` is the folder of a run, or of one of its steps: checkpoints lie in it or in folders below."""
    return path.is_dir() and not (path / STAGE).is_file() and any(_checkpoints(step_parents(path)))


def _checkpoints(folders: Sequence[Path]) -> Iterator[Path]:
    return files_of_steps(folders, f"*/{LAST}")


def _parts_of_run(path: Path) -> RunParts:
    folders = step_parents(path)
    chosen = [path / LAST] if (path / LAST).is_file() else list(_checkpoints(folders))
    stages = {one: stage for one in chosen if (stage := _generator_at(one)) is not None}
    generator, (stage, identities) = _only(
        {one: found for one, found in stages.items() if found[0].codec.makes == "image"} or stages,
        lambda found: _rank(found[0]),
        "generator",
        f"{path} holds no generator that has saved a checkpoint: train one, or give another folder",
    )
    networks = tuple(found.parent for found in files_of_steps(folders, f"*/{NETWORK}"))
    networks += tuple(found.parent for found in files_of_steps(folders, f"*/*/{NETWORK}"))
    identity, prior, instances = identities.get("representation"), None, None
    if has(stage.condition, RepresentationCondition):
        prior = _prior(folders, identity)
        instances = _instances(folders, identity) if has(stage.condition, InstanceCondition) else None
    return RunParts(generator, prior, instances, networks, folders[-1] / PLAN, folders[0] / "sampled")


def _generator_at(path: Path) -> tuple[Generator, dict[str, Any]] | None:
    """Return the generator of a checkpoint, without its networks, and its data's identities; None for other stages."""
    try:
        content = stage_content(path)
        if not issubclass(find_class(content["stage"]["class_path"]), Generator):
            return None
        return construct(content["stage"]), (content["data_spec"] or {}).get("identities", {})
    except UserError as error:
        log.warning("%s is left out: %s", path, error)
        return None


def _only(found: dict[Path, Any], rank: Callable[[Any], int], kind: str, missing: str) -> tuple[Path, Any]:
    """Return the only one of the lowest rank, or the one whose folder is named ``kind``."""
    if not found:
        raise UserError(missing)
    best = min(map(rank, found.values()))
    paths = [path for path, one in found.items() if rank(one) == best]
    named = [path for path in paths if path.parent.name == kind]
    if len(paths) > 1 and len(named) != 1:
        names = ", ".join(str(path.parent) for path in paths)
        raise UserError(f"there are {len(paths)} of this kind, {names}: name one of them")
    path = named[0] if named else paths[0]
    return path, found[path]


def _rank(stage: Generator) -> int:
    kinds = (*_PREFERRED, object, NoCondition)
    return kinds.index(type(stage.condition)) if type(stage.condition) in kinds else len(_PREFERRED)


def _prior(folders: Sequence[Path], identity: str | None) -> Path | None:
    """Return the RDM of the representations ``identity``: an unconditional one, where there is one."""
    found = {path: stage for path in _checkpoints(folders) if (stage := _generator_at(path)) is not None}
    fits = {
        path: (stage, identities)
        for path, (stage, identities) in found.items()
        if stage.codec.makes == "representation" and same_network(identities.get("representation"), identity)
    }
    return _only(fits, lambda one: not isinstance(one[0].condition, NoCondition), "rdm", "")[0] if fits else None


def _instances(folders: Sequence[Path], identity: str | None) -> Path | None:
    """Return the store that `rcg instances` wrote, else the representations of the training images."""
    found: dict[Any, Path] = {}
    for path in files_of_steps(folders, f"*/{MANIFEST}"):
        store = Store.described(path.parent)
        if "representation" in store.columns and same_network(store.identity.get("representation"), identity):
            found.setdefault(store.identity.get("split"), path.parent)
    return found.get("instances", found.get("train"))


def _planned_encoder(plan: Path | None) -> Encoder | None:
    """Return the encoder that the plan of a run describes; unlike a checkpoint's, this description names locations."""
    parts = read_state(plan).get("parts") if plan is not None else None
    description = parts.get("encoder") if isinstance(parts, dict) else None
    if plan is None or not isinstance(description, dict):
        return None
    short: dict[str, Any] = {known.__name__: known for known in (TimmEncoder, TrainedEncoder)}
    kind = short.get(description["class_path"]) or find_class(description["class_path"])
    arguments = dict(description.get("init_args", {}))
    if not issubclass(kind, Encoder):
        return None
    named = {name: Path(arguments.pop(name)) for name in locations(kind) if arguments.get(name) is not None}
    found: dict[str, Any] = {name: path if path.exists() else plan.parent / path for name, path in named.items()}
    return kind(**construct(arguments), **found)


def same_network(one: str | None, other: str | None) -> bool:
    """Whether two identities are those of one network, in any precision; identities that are unknown differ."""
    return None not in (one, other) and without_precision(str(one)) == without_precision(str(other))


def _identity_of(network: Encoder | Autoencoder) -> str | None:
    """Return the identity of a network; None where its folder holds one of another kind."""
    try:
        return network.identity
    except UserError:
        return None
