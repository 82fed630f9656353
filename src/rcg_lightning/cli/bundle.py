"""`rcg bundle`: everything that sampling needs, in one folder."""

import shutil
from pathlib import Path

from rcg_lightning.artifacts import replacing_folder
from rcg_lightning.cli.parsing import call, echo
from rcg_lightning.pretrained.kl_checkpoints import load_kl
from rcg_lightning.pretrained.network_folder import DESCRIPTION as NETWORK
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder
from rcg_lightning.sampling.loading import check_instances, same_encoder
from rcg_lightning.stages.generator import Generator
from rcg_lightning.stages.stage_folder import DESCRIPTION as STAGE
from rcg_lightning.stages.stage_folder import bundle_parts, prior_at, save_stage, stage_content
from rcg_lightning.types import require


def bundle(
    out: Path,
    generator: Path,
    prior: Path | None = None,
    instances: Path | None = None,
    autoencoder: Path | None = None,
    encoder: Path | None = None,
) -> None:
    """Put a generator and what it samples with into one folder, which `rcg sample --checkpoint` takes by itself.

    What the given bundles hold besides comes along: the autoencoder and encoder of a converted generator, the encoder
    of a converted RDM.

    Args:
        out: folder to write, complete or not at all; a bundle that is there is replaced.
        generator: checkpoint, stage's folder or bundle of the generator.
        prior: the same of the RDM, for a generator conditioned on representations.
        instances: a store of them, for a generator conditioned on instances.
        autoencoder: folder of the network that decodes latents or tokens, or a bundle that holds it; for KL latents,
            a folder in diffusers' layout, or a file in the original one.
        encoder: folder of the encoder's network, or a bundle that holds it.
    """
    own = bundle_parts(generator)
    prior = prior_at(prior) if prior else own.get("prior")
    instances = instances or own.get("instances")
    given = {"autoencoder": autoencoder, "encoder": encoder}
    networks = {name: network_at(path, name) for name, path in given.items() if path is not None}
    for source in (own, bundle_parts(prior) if prior else {}):
        networks = {name: source[name] for name in given if name in source} | networks
    check(generator, prior, instances, networks)
    with replacing_folder(out, f"generator/{STAGE}", "a bundle") as draft:
        save_stage(draft / "generator", stage_content(generator))
        if prior is not None:
            save_stage(draft / "prior", stage_content(prior))
        if instances is not None:
            shutil.copytree(instances, draft / "instances")
        for name, place in networks.items():
            if place.is_dir():
                shutil.copytree(place, draft / name)
            else:
                load_kl(place).save_pretrained(draft / name)  # type: ignore[operator]
    echo(f"{out}: a bundle of {', '.join(bundle_parts(out))}")


def network_at(path: Path, name: str) -> Path:
    """Return the network at ``path``, its folder or the file of a KL autoencoder, or the part ``name`` of a bundle."""
    found = bundle_parts(path).get(name, path)
    foreign = name == "autoencoder" and (found.is_file() or (found / "config.json").is_file())
    require(
        foreign or (found / NETWORK).is_file(),
        f"{path} holds no {name}: give the folder of its network, or a bundle with it",
    )
    return found


def check(generator: Path, prior: Path | None, instances: Path | None, networks: dict[str, Path]) -> None:
    """Raise a UserError where the parts do not belong together."""
    made = Generator.load(generator)
    if instances is not None:
        check_instances(made, instances)
    if prior is not None:
        source = Generator.load(prior)
        wrong = f"{prior} makes {source.codec.makes}s, not representations: give an RDM as prior"
        require(source.codec.makes == "representation", wrong)
        same_encoder(made, source.spec.identities.get("representation") if source.spec else None, str(prior))
    if "encoder" in networks:
        same_encoder(made, TrainedEncoder(networks["encoder"]).identity, str(networks["encoder"]))
    if "autoencoder" in networks:
        made.codec.use_autoencoder(networks["autoencoder"])


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg bundle --generator runs/generator/last.ckpt --prior runs/rdm/last.ckpt --out runs/rcg",
        "rcg bundle --generator runs/mage_b --prior runs/rdm --out runs/rcg_mage_b          of converted files",
        "rcg sample --checkpoint runs/rcg_mage_b --config rcg_mage_b_guided --out samples",
    ]
    call(bundle, name, argv, examples)
