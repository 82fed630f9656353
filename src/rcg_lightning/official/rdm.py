"""RCG's representation diffusion model."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.core.diffusion import Clean
from rcg_lightning.core.samplers import DDIM, OffsetSpacing
from rcg_lightning.core.schedule import ScaledLinearSchedule
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.rdm_mlp import ResidualMLP
from rcg_lightning.official.base import Native, OfficialFile, Part
from rcg_lightning.official.building import Weights, built, ema_decay, stage_part
from rcg_lightning.official.encoders import encoder_tensors, inner_encoder
from rcg_lightning.pretrained.checkpoints import EMBEDDING, RDM_NETWORK, entry, official_rdm, rdm_state
from rcg_lightning.pretrained.codecs import Representations
from rcg_lightning.pretrained.schedule_tables import official_tables, schedule_of
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import DataSpec, require

DECAY, UPDATES = "model_ema.decay", "model_ema.num_updates"
TABLES = (
    r"(model|state_dict)\.(betas|[a-z0-9_]*alphas_cumprod(_prev)?|posterior_\w+)$",
    "tables of the noise schedule",
)


class RDMFile(OfficialFile):
    """The RDM, unconditional or by class, with its average and the encoder in its file. Sampled by DDIM 250, η 1.

    Args:
        encoder_heads: attention heads of the encoder in the file, for unpublished widths.
        image: side in pixels of the images that it was trained on.
    """

    called = "an RDM checkpoint"
    marks = (ResidualMLP,)
    ignored: ClassVar[dict[str, str]] = {
        TABLES[0]: TABLES[1],
        rf"(model|state_dict)\.{DECAY}": "a setting of the average, kept as such",
        rf"(model|state_dict)\.{EMBEDDING}": "the one row of an unconditional model, which nothing reads",
    }

    def __init__(self, encoder_heads: int | None = None, image: int = 256) -> None:
        self.encoder_heads, self.image = encoder_heads, image

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, Part]:
        state = entry(content, "model", "state_dict")
        trained = rdm_state(content, ema=False)
        averaged = rdm_state(content) if DECAY in state else None
        network = trained.network
        rows, width = trained.class_embedding.shape
        numbers = network["input_proj.weight"].shape[1]
        conditional = "blocks.0.condition.weight" in network
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
                schedule_of(trained.schedule, where),
                Clean(),
            ),
            conditioner=Conditioner(dim=width if conditional else None, drop=0.0),
            optimizer=AdamW(lr=5.12e-4, weight_decay=0.01),
            sampler=DDIM(250, 1.0, OffsetSpacing()),
            ema=EMA(ema_decay(state.get(DECAY)), warmup=True),
            ema_conditioner=False,
        )
        spec = DataSpec(
            image=(3, self.image, self.image),
            classes=rows if conditional else None,
            columns={"representation": {"shape": [numbers]}},
        )
        conditioner = {"parts.0.table.weight": trained.class_embedding} if conditional else {}
        built(stage, spec)
        generator = stage_part(
            stage,
            stage.denoiser.network,
            Weights(network, conditioner),
            averaged and Weights(averaged.network, conditioner),
            where,
            state.get(UPDATES),
        )
        return {"generator": generator, **inner_encoder(trained.encoder, numbers, self.encoder_heads, where)}

    def official(self, native: Native) -> dict[str, Any]:
        stage = native.generator()
        assert isinstance(stage, DiffusionStage)
        schedule, parts = stage.denoiser.schedule, stage.conditioner.state_dict()
        fits = isinstance(schedule, ScaledLinearSchedule) and isinstance(stage.denoiser.prediction, Clean)
        require(fits, f"{native.path} is no RDM as published: its schedule or what it predicts is another")
        require(
            parts.keys() <= {"parts.0.table.weight"} and stage.conditioner.drop == 0,
            f"{native.path}: the official RDM is unconditional or knows classes that are never dropped, nothing else",
        )
        trained = official_rdm(stage.denoiser.network.state_dict())
        state = official_tables(schedule)  # type: ignore[arg-type]
        state |= {RDM_NETWORK + name: tensor for name, tensor in trained.items()}
        if stage.ema is not None:
            copies: Any = stage.ema.averaged()
            for name, tensor in official_rdm(copies["network"].network.state_dict()).items():
                state["model_ema." + f"diffusion_model.{name}".replace(".", "")] = tensor
            state[DECAY] = torch.tensor(next(iter(stage.ema.decays.values())))
            state[UPDATES] = torch.tensor(stage.ema.updates, dtype=torch.int32)
        encoder = native.network("encoder")
        if encoder is not None:
            state |= {f"pretrained_encoder.{name}": tensor for name, tensor in encoder_tensors(encoder).items()}
        state[EMBEDDING] = parts.get("parts.0.table.weight", torch.zeros(1, 512))
        return {"model": state, "model_ema": None, "epoch": 0}
