"""Load a generator with all that sampling needs, checked before anything is computed or written."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.instance import UNLABELLED, InstanceCondition
from rcg_lightning.conditions.joint import has
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.counter_rng import fitting_tile
from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.precision import FrozenPrecision, without_precision
from rcg_lightning.data.store import Store, representation_store
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.sample_readers import samples_folder
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.sampling.run_parts import RunParts, find_parts
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.stage_folder import bundle_parts
from rcg_lightning.types import require

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A generator with the source of its representations: a prior (RDM), a store of instances, or none."""

    generator: Generator
    prior: Generator | None
    instances: Store | None = None
    parts: RunParts | None = None

    @property
    def encoder(self) -> Encoder | None:
        """The encoder of the generator's training, where it lies with the generator."""
        trained_with = self.generator.spec.identities.get("representation") if self.generator.spec else None
        return None if self.parts is None else self.parts.encoder(trained_with)

    @property
    def labels(self) -> int | None:
        """Number of classes of generator and prior; None where neither is conditioned on classes."""
        models = [model for model in (self.generator, self.prior) if model is not None]
        class_conditional = [model for model in models if has(model.condition, ClassCondition)]
        counts = [model.spec.classes for model in class_conditional if model.spec and model.spec.classes]
        return min(counts) if counts else None


def load(
    checkpoint: Path,
    prior: Path | None,
    given: bool = False,
    autoencoder: Path | None = None,
    instances: Path | None = None,
    autoencoder_precision: FrozenPrecision | None = None,
) -> Loaded:
    """Load a generator from its checkpoint; it samples its representations from ``prior`` or ``instances``.

    A bundle and the folder of a run hold prior, instances and autoencoder; given ones replace them.

    Args:
        checkpoint: or another path that ``find_parts`` takes.
        given: representations will be given, so no prior is needed.
        autoencoder: folder of the network that decodes latents or tokens, or a bundle that holds it.
        autoencoder_precision: in what it decodes; None is that of the training.

    Raises:
        UserError: prior or instances are missing, unused, not of representations, or of another encoder; or the
            autoencoder is missing, unused, or another one.
    """
    parts = find_parts(checkpoint)
    generator = Generator.load(parts.generator)
    if autoencoder_precision is not None:
        generator.codec.set_precision(autoencoder_precision)
    use_autoencoder(generator, autoencoder, parts)
    if not has(generator.condition, RepresentationCondition):
        unused = "representations are" if given else "--prior is"
        require(prior is None and not given, f"{checkpoint} is not conditioned on representations: {unused} of no use")
        check_instances(generator, instances)
        return Loaded(generator, None, None, parts)
    if instances is None and prior is None and not given:
        instances = parts.instances
    if instances is not None:
        require(
            prior is None and not given, "--instances excludes --prior and given representations: give only one of them"
        )
        check_instances(generator, instances)
        return Loaded(generator, None, Store.open(instances), parts)
    prior = prior or parts.prior
    if given or prior is None:
        key = condition_key(generator)
        stored = ", or a store of them with --instances" if key == "instance" else ""
        missing = f"{checkpoint} is conditioned on {key}s: give an RDM's checkpoint with --prior{stored}"
        require(given, missing)
        return Loaded(generator, None, None, parts)
    return Loaded(generator, load_prior(generator, prior), None, parts)


def use_autoencoder(generator: Generator, autoencoder: Path | None, parts: RunParts) -> None:
    """Decode by the autoencoder at a path, else by the one among the parts; UserError where one is needed but none."""
    identities = generator.spec.identities if generator.spec else {}
    found = None if autoencoder is None else bundle_parts(autoencoder).get("autoencoder", autoencoder)
    found = found or parts.autoencoder(generator.codec, identities)
    if found is not None:
        generator.codec.use_autoencoder(found)
    generator.codec.check_decoding()


def load_prior(generator: Generator, path: Path) -> Generator:
    """Load the RDM at a path, and let ``generator`` sample its representations from it."""
    generator.condition.use_prior(path)
    source = generator.condition.prior
    assert isinstance(source, Generator)
    require(
        source.codec.makes == "representation",
        f"{path} makes {source.codec.makes}s, not representations: give an RDM's checkpoint with --prior",
    )
    same_encoder(generator, source.spec.identities.get("representation") if source.spec else None, str(path))
    return source


def check_instances(generator: Generator, instances: Path | None) -> None:
    """Raise a UserError where ``instances`` are given and cannot be those of ``generator``."""
    if instances is not None:
        conditional = has(generator.condition, InstanceCondition)
        require(conditional, f"--instances {instances} is of no use: this generator is not conditioned on instances")
        generator.condition.use_instances(instances)


def condition_key(generator: Generator) -> str:
    """Return the key in a batch of the representations on which a generator is conditioned."""
    return "instance" if has(generator.condition, InstanceCondition) else "representation"


def same_encoder(generator: Generator, identity: object, what: str) -> None:
    """Raise a UserError where representations come from another encoder than in the generator's training."""
    trained_with = generator.spec.identities.get("representation") if generator.spec else None
    if None in (trained_with, identity) or trained_with == identity:
        return
    if without_precision(str(trained_with)) == without_precision(str(identity)):
        log.warning("%s: representations of %s, the generator was trained with %s", what, identity, trained_with)
    else:
        raise UserError(
            f"{what}: representations of encoder {identity}, but the generator was trained with {trained_with}"
        )


def stored_representations(generator: Generator, folder: Path, number: int) -> Tensor:
    """Return representations (number, R) of a store as conditions, its rows in order and repeated as needed."""
    store = representation_store(samples_folder(folder))
    same_encoder(generator, store.identity.get("representation"), str(folder))
    return torch.from_numpy(store.read("representation", np.arange(number) % store.size)).float()


def chosen_guidance(
    generator: Generator,
    scale: float | None = None,
    ramp: bool | None = None,
    interval: list[float] | None = None,
    channels: int | None = None,
) -> Guidance:
    """Build the requested guidance; None takes the generator's own setting.

    Args:
        interval: first and last progress of sampling, in [0, 1], between which guidance acts.
        channels: number of guided channels, from the first.

    Raises:
        UserError: the generator cannot be guided.
    """
    own = generator.guidance
    require(
        interval is None or len(interval) == 2, f"a guidance interval is two numbers, such as 0.2,0.8, not {interval}"
    )
    guidance = Guidance(
        own.scale if scale is None else scale,
        own.ramp if ramp is None else ramp,
        own.interval if interval is None else (interval[0], interval[1]),
        own.channels if channels is None else channels,
    )
    generator.check_guidance(guidance)
    return guidance


def check_labels_of_instances(loaded: Loaded) -> None:
    """Raise a UserError where a generator is conditioned on class and instance, and the instances have no labels."""
    store = loaded.instances
    joint = store is not None and has(loaded.generator.condition, ClassCondition)
    labelled = store is None or not joint or "labels" in store.columns
    require(labelled, f"{store.path if store else ''}: these {UNLABELLED}")


def set_tiles(loaded: Loaded, first: int, number: int, tile: int | None, prior_tile: int | None) -> None:
    """Set how many samples generator and prior compute together; None fits the request, up to the model's own number.

    Args:
        first, number: the request's first position and its number of positions.
    """
    unused = "--prior_tile is of no use: there is no --prior to sample representations from"
    require(prior_tile is None or loaded.prior is not None, unused)
    for model, given in ((loaded.generator, tile), (loaded.prior, prior_tile)):
        if model is not None:
            model.tile = given or fitting_tile(model.tile, first, number)


def set_weak_model(generator: Generator, weak: Path | None, ema_name: str | None) -> None:
    """Guide away from the weaker model at ``weak``, or from other EMA weights of the generator; None: no change."""
    if weak is not None or ema_name is not None:
        generator.use_weak(None if weak is None else Generator.load(weak), ema_name)


def chosen_labels(loaded: Loaded, classes: list[int] | None, balanced: bool, number: int) -> dict[str, Tensor]:
    """Return labels (number,) under their batch key: the given classes or all classes in turn, or no labels."""
    if classes is None and not balanced:
        check_labels_of_instances(loaded)
        return {}
    count = loaded.labels
    if count is None:
        raise UserError("classes were requested, but neither generator nor --prior is conditioned on classes")
    classes = list(range(count)) if classes is None else classes
    wrong = [label for label in classes if not 0 <= label < count]
    require(bool(classes) and not wrong, f"class {wrong[0] if wrong else '?'} is out of range: 0 to {count - 1} exist")
    return {"label": torch.tensor(classes)[torch.arange(number) % len(classes)]}
