"""Bundles: a generator and all that sampling from it needs, in one folder."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from rcg_lightning.artifacts import replacing_folder
from rcg_lightning.conditions.joint import has
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.data.store import Store
from rcg_lightning.integrity import write_sums
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.pretrained.kl_checkpoints import WEIGHTS as KL_WEIGHTS
from rcg_lightning.pretrained.kl_checkpoints import load_kl
from rcg_lightning.pretrained.network_folder import DESCRIPTION as NETWORK
from rcg_lightning.pretrained.network_folder import WEIGHTS as NETWORK_WEIGHTS
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder, save_encoder
from rcg_lightning.sampling.loading import check_instances, same_encoder
from rcg_lightning.sampling.run_parts import RunParts, find_parts
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.stage_folder import DESCRIPTION as STAGE
from rcg_lightning.stages.stage_folder import bundle_parts, prior_at, save_stage, stage_content
from rcg_lightning.types import require


def write_bundle(
    out: Path,
    generator: Path,
    prior: Path | None = None,
    instances: Path | None = None,
    autoencoder: Path | None = None,
    encoder: Path | None = None,
) -> list[str]:
    """Write a bundle and return the names of its parts.

    Missing parts are taken from ``generator`` and ``prior``, where these are bundles or runs.

    Args:
        out: folder to write, complete or not at all; an existing bundle is replaced.
        generator: of it, a path that ``find_parts`` takes.
        prior: the same for the RDM.
        instances: a store of instances.
        autoencoder: folder of a network, or a bundle; for KL latents, a folder in diffusers' layout, or a file in the
            original layout.
        encoder: folder of the encoder's network, or a bundle that holds it.

    Raises:
        UserError: a part is missing or belongs to another generator.
    """
    own = find_parts(generator)
    generator, model = own.generator, Generator.load(own.generator)
    prior = prior_at(prior) if prior else own.prior
    instances = instances or own.instances
    given = {"autoencoder": autoencoder, "encoder": encoder}
    networks: dict[str, Path | Encoder] = {
        name: network_at(path, name) for name, path in given.items() if path is not None
    }
    for source in (networks_of(own, model), bundle_parts(generator), bundle_parts(prior) if prior else {}):
        networks = {name: source[name] for name in given if name in source} | networks
    check_parts(model, prior, instances, networks)
    with replacing_folder(out, f"generator/{STAGE}", "a bundle") as draft:
        save_stage(draft / "generator", stage_content(generator))
        if prior is not None:
            save_stage(draft / "prior", stage_content(prior))
        if instances is not None:
            _copy(Store.described(instances).files(), draft / "instances")
        for name, path in networks.items():
            if isinstance(path, Encoder):
                save_encoder(draft / name, path)
            elif path.is_dir():
                names = (NETWORK, NETWORK_WEIGHTS, "config.json", *KL_WEIGHTS)
                _copy([path / name for name in names if (path / name).is_file()], draft / name)
            else:
                load_kl(path).save_pretrained(draft / name)  # type: ignore[operator]
            if not (draft / name / NETWORK).is_file():
                write_sums(draft / name)  # files of diffusers have no checksums
    return list(bundle_parts(out))


def _copy(files: Iterable[Path], folder: Path) -> None:
    """Copy files into a new folder: those of links, and nothing else that may lie next to them."""
    folder.mkdir()
    for path in files:
        shutil.copyfile(path, folder / path.name)


def network_at(path: Path, name: str) -> Path:
    """Return the path of a network: a network folder, a KL autoencoder's file, or the part ``name`` of a bundle."""
    found = bundle_parts(path).get(name, path)
    foreign = name == "autoencoder" and (found.is_file() or (found / "config.json").is_file())
    require(
        foreign or (found / NETWORK).is_file(),
        f"{path} holds no {name}: give the folder of its network, or a bundle with it",
    )
    return found


def networks_of(parts: RunParts, model: Generator) -> dict[str, Path | Encoder]:
    """Return the networks that a generator needs and that belong to its run: their folders, or an encoder without."""
    identities = model.spec.identities if model.spec else {}
    encoder = None
    if has(model.condition, RepresentationCondition):
        encoder = parts.encoder(identities.get("representation"))
    path = encoder.folder if isinstance(encoder, TrainedEncoder) else None
    found = {"autoencoder": parts.autoencoder(model.codec, identities), "encoder": path or encoder}
    return {name: one for name, one in found.items() if one is not None}


def check_parts(
    model: Generator, prior: Path | None, instances: Path | None, networks: dict[str, Path | Encoder]
) -> None:
    """Raise a UserError where the parts do not fit together."""
    if instances is not None:
        check_instances(model, instances)
    if prior is not None:
        source = Generator.load(prior)
        wrong = f"{prior} makes {source.codec.makes}s, not representations: give an RDM as prior"
        require(source.codec.makes == "representation", wrong)
        same_encoder(model, source.spec.identities.get("representation") if source.spec else None, str(prior))
    encoder, autoencoder = networks.get("encoder"), networks.get("autoencoder")
    if isinstance(encoder, Path):
        same_encoder(model, TrainedEncoder(encoder).identity, str(encoder))
    if isinstance(autoencoder, Path):
        model.codec.use_autoencoder(autoencoder)
