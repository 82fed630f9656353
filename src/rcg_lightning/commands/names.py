"""Importing a module lets a config name its classes without their path; this one imports all that have any to name."""

from rcg_lightning import conditions
from rcg_lightning.callbacks import fidelity, grids, reconstruction, representation
from rcg_lightning.core import adversarial, diffaugment, diffusion, guidance, masking, samplers, schedule
from rcg_lightning.data import augment, geometry, images, sources
from rcg_lightning.evaluation import extractors
from rcg_lightning.networks import (
    biggan,
    cgan,
    conditioner,
    convnet,
    denoiser,
    discriminators,
    dit,
    ema,
    heads,
    mage,
    maps,
    rdm_mlp,
    spectral,
    stylegan2,
    stylegan2_blocks,
    unet,
    vit,
    vqgan,
)
from rcg_lightning.pretrained import codecs, encoders, normalisation, perceptual, timm_encoder, trained
from rcg_lightning.stages import adversarial as adversarial_stage
from rcg_lightning.stages import classifier, codebook, masked, optimization, ssl, tokenizer
from rcg_lightning.stages import diffusion as diffusion_stage

__all__ = [
    "adversarial",
    "adversarial_stage",
    "augment",
    "biggan",
    "cgan",
    "classifier",
    "codebook",
    "codecs",
    "conditioner",
    "conditions",
    "convnet",
    "denoiser",
    "diffaugment",
    "diffusion",
    "diffusion_stage",
    "discriminators",
    "dit",
    "ema",
    "encoders",
    "extractors",
    "fidelity",
    "geometry",
    "grids",
    "guidance",
    "heads",
    "images",
    "mage",
    "maps",
    "masked",
    "masking",
    "normalisation",
    "optimization",
    "perceptual",
    "rdm_mlp",
    "reconstruction",
    "representation",
    "samplers",
    "schedule",
    "sources",
    "spectral",
    "ssl",
    "stylegan2",
    "stylegan2_blocks",
    "timm_encoder",
    "tokenizer",
    "trained",
    "unet",
    "vit",
    "vqgan",
]
