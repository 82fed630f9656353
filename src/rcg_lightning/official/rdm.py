"""RCG's representation diffusion model (RDM), and the names and schedule tables that its files share with LDM's."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.core.diffusion import Clean
from rcg_lightning.core.samplers import DDIM, OffsetSpacing
from rcg_lightning.core.schedule import ScaledLinearSchedule
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.rdm_mlp import ResidualMLP
from rcg_lightning.official.base import FilePart, NativeModel, OfficialFile
from rcg_lightning.official.building import Weights, built, ema_decay, stage_part
from rcg_lightning.official.encoders import inner_encoder, official_inner_encoder
from rcg_lightning.official.key_map import inverted, renamed
from rcg_lightning.pretrained.checkpoints import State, entry, recognise
from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import DataSpec, require

NETWORK = "model.diffusion_model."
EMBEDDING = "cond_stage_model.embedding.weight"  # the class table
TABLE = "parts.0.table.weight"  # its name in a Conditioner
DECAY, UPDATES = "model_ema.decay", "model_ema.num_updates"
BLOCK = {
    "in_layers.0": "in_norm",
    "in_layers.2": "in_linear",
    "emb_layers.1": "time",
    "context_layers.1": "condition",
    "out_layers.0": "out_norm",
    "out_layers.3": "out_linear",
}
OUTSIDE = {"out.0": "out_norm", "out.2": "out_linear"}
SHARED_IGNORED = {
    r"(model|state_dict)\.(betas|[a-z0-9_]*alphas_cumprod(_prev)?|posterior_\w+)$": "tables of the noise schedule",
    rf"(model|state_dict)\.{DECAY}": "a setting of the EMA, stored as such",
}


class RDMFile(OfficialFile):
    """The RDM, unconditional or by class, with its EMA weights and the encoder in its file. Sampled by DDIM 250, η 1.

    Args:
        encoder_heads: attention heads of the encoder in the file, for unpublished widths.
        image: side of the training images in pixels.
    """

    description = "an RDM checkpoint"
    native_classes = (ResidualMLP,)
    ignored: ClassVar[dict[str, str]] = {
        **SHARED_IGNORED,
        rf"(model|state_dict)\.{EMBEDDING}": "the one row of an unconditional model, which nothing reads",
    }

    def __init__(self, encoder_heads: int | None = None, image: int = 256) -> None:
        self.encoder_heads, self.image = encoder_heads, image

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, FilePart]:
        tensors = entry(content, "model", "state_dict")
        last = rdm_weights(content, ema=False)
        ema = rdm_weights(content) if DECAY in tensors else None
        network = last.network
        conditional = TABLE in last.conditioner
        classes, width = tensors[EMBEDDING].shape
        dim = network["input_proj.weight"].shape[1]
        stage = DiffusionStage(
            codec=Representations(),
            condition=ClassCondition() if conditional else NoCondition(),
            denoiser=Denoiser(
                ResidualMLP(
                    width=network["input_proj.weight"].shape[0],
                    depth=sum(name.endswith(".in_linear.weight") for name in network),
                    bottleneck=network["blocks.0.in_linear.weight"].shape[0],
                    time_dim=network["time_embed.0.weight"].shape[0],
                ),
                schedule_of(tensors, where),
                Clean(),
            ),
            conditioner=Conditioner(dim=width if conditional else None, drop=0.0),
            optimizer=AdamW(lr=5.12e-4, weight_decay=0.01),
            sampler=DDIM(250, 1.0, OffsetSpacing()),
            ema=EMA(ema_decay(tensors.get(DECAY)), warmup=True),
            ema_conditioner=False,
        )
        spec = DataSpec(
            image=(3, self.image, self.image),
            classes=classes if conditional else None,
            columns={"representation": {"shape": [dim]}},
        )
        built(stage, spec)
        generator = stage_part(stage, stage.denoiser.network, last, ema, where, tensors.get(UPDATES))
        return {"generator": generator, **inner_encoder(tensors, dim, self.encoder_heads, where)}

    def official(self, native: NativeModel) -> dict[str, Any]:
        stage = native.generator()
        assert isinstance(stage, DiffusionStage)
        schedule, conditioner = stage.denoiser.schedule, stage.conditioner.state_dict()
        fits = isinstance(schedule, ScaledLinearSchedule) and isinstance(stage.denoiser.prediction, Clean)
        require(fits, f"{native.path} is no RDM as published: its schedule or its prediction differs")
        require(
            conditioner.keys() <= {TABLE} and stage.conditioner.drop == 0,
            f"{native.path}: the official RDM is unconditional or has classes that are never dropped, nothing else",
        )
        state = official_tables(schedule)  # type: ignore[arg-type]
        state |= official_rdm(stage.denoiser.network.state_dict())
        if stage.ema is not None:
            copies: Any = stage.ema.averaged()
            ema = official_rdm(copies["network"].network.state_dict())
            state |= {ema_name(name): tensor for name, tensor in ema.items()}
            state[DECAY] = torch.tensor(next(iter(stage.ema.decays.values())))
            state[UPDATES] = torch.tensor(stage.ema.updates, dtype=torch.int32)
        state |= official_inner_encoder(native)
        state[EMBEDDING] = conditioner.get(TABLE, torch.zeros(1, 512))
        return {"model": state, "model_ema": None, "epoch": 0}


def rdm_weights(official: Mapping[str, Any], ema: bool = True) -> Weights:
    """Translate the content of an official RDM file, for ``networks.rdm_mlp`` and a ``Conditioner`` without drop.

    Args:
        official: as ``read_checkpoint`` returns it.
        ema: the EMA weights, which the official code samples with, or those of the last step. The class embedding
            has no EMA.
    """
    state = entry(official, "model", "state_dict")
    names = latent_diffusion_names(state, ema)
    require(f"{NETWORK}input_proj.weight" in state, f"this is no RDM checkpoint but {recognise(official)}")
    require(EMBEDDING in state, f"this RDM checkpoint has no {EMBEDDING}")
    network = {rdm_name(name): state[key] for name, key in names.items()}
    return Weights(network, {TABLE: state[EMBEDDING]} if "blocks.0.condition.weight" in network else {})


def official_rdm(network: Mapping[str, Tensor]) -> State:
    """Invert the key map of ``rdm_weights`` for the network's weights of the last step."""
    back = (inverted(BLOCK), inverted(OUTSIDE))
    return {NETWORK + renamed(name, "blocks.", *back, into="res_blocks."): tensor for name, tensor in network.items()}


def rdm_name(official: str) -> str:
    """Translate one parameter's name: ``res_blocks.3.in_layers.0.weight`` -> ``blocks.3.in_norm.weight``."""
    return renamed(official, "res_blocks.", BLOCK, OUTSIDE)


def latent_diffusion_names(state: Mapping[str, Tensor], ema: bool) -> dict[str, str]:
    """Map names in the official network to keys in ``state``, for the files of RDM and LDM.

    Raises:
        UserError: ``ema`` is set, and the file has no EMA weights.
    """
    names = {key.removeprefix(NETWORK): ema_name(key) if ema else key for key in state if key.startswith(NETWORK)}
    absent = [key for key in names.values() if key not in state]
    require(not absent, f"this checkpoint has no EMA weights ({absent[:1]} is missing): read it with ema off")
    return names


def ema_name(key: str) -> str:
    """Return the key of a parameter's EMA, in the same state dict: its own without dots."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def official_tables(schedule: ScaledLinearSchedule) -> State:
    """Return the twelve tables of ``schedule`` under their official names, (T,) float32 each."""
    bars, before = schedule.alphas_bar[1:], schedule.alphas_bar[:-1]
    betas = schedule.betas()
    variance = betas * (1 - before) / (1 - bars)
    tables = {
        "betas": betas,
        "alphas_cumprod": bars,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": bars.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bars).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - bars).log(),
        "sqrt_recip_alphas_cumprod": (1 / bars).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / bars - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - bars),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - bars),
    }
    return {name: table.float() for name, table in tables.items()}


def schedule_of(tensors: Mapping[str, Tensor], where: str) -> ScaledLinearSchedule:
    """Return the schedule of a file's tables; the published one if they have no values (manifests).

    Raises:
        UserError: the schedule is not scaled-linear.
    """
    betas = tensors.get("betas")
    published = ScaledLinearSchedule()
    if betas is None or betas.is_meta:
        return published
    if len(betas) == published.steps and torch.allclose(published.betas().float(), betas, rtol=1e-5, atol=0):
        return published
    found = ScaledLinearSchedule(len(betas), float(betas[0]), float(betas[-1]))
    fits = torch.allclose(found.betas().float(), betas, rtol=1e-4, atol=0)
    require(fits, f"the noise schedule in {where} is not the scaled-linear one of RDM and LDM: it cannot be used here")
    return found
