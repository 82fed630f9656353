"""The tables of a noise schedule that the official RDM and LDM files carry."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rcg_lightning.core.schedule import ScaledLinearSchedule
from rcg_lightning.pretrained.checkpoints import State
from rcg_lightning.types import require


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


def schedule_of(tables: Mapping[str, Tensor], where: str) -> ScaledLinearSchedule:
    """Return the schedule that a file's tables are of; the published one where they have no values (manifests).

    Raises:
        UserError: they follow another law.
    """
    betas = tables.get("betas")
    if betas is None or betas.is_meta:
        return ScaledLinearSchedule()
    published = ScaledLinearSchedule()
    if len(betas) == published.steps and torch.allclose(published.betas().float(), betas, rtol=1e-5, atol=0):
        return published
    found = ScaledLinearSchedule(len(betas), float(betas[0]), float(betas[-1]))
    fits = torch.allclose(found.betas().float(), betas, rtol=1e-4, atol=0)
    require(fits, f"the noise schedule in {where} is not the scaled-linear one of RDM and LDM: it cannot be used here")
    return found
