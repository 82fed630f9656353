"""Representation-conditioned image generation, stage by stage, on PyTorch Lightning."""

__version__ = "0.1.0"
