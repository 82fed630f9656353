"""The stages of a run by image size and machine: encoder, RDM and generator, as objects that a config describes."""

from typing import Any

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.diffusion import Clean
from rcg_lightning.core.samplers import DDIM, LinspaceSpacing
from rcg_lightning.core.schedule import CosineSchedule
from rcg_lightning.data.augmentations import SmallColourAugmentation, SmallGreyAugmentation
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.convnet import ResNet18, SmallConvNet
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.ema import PowerEMA
from rcg_lightning.networks.heads import Predictor, Projected, ProjectionHead
from rcg_lightning.networks.rdm_mlp import ModulatedMLP
from rcg_lightning.networks.unet import UNet
from rcg_lightning.pretrained.codecs import Pixels, Representations
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.optimization import AdamW, StableDecayLR
from rcg_lightning.stages.ssl import MoCoV3Stage
from rcg_lightning.types import Backbone, Condition

GENERATORS = ("unet", "dit", "mlp")
CPU_TILE, GPU_TILE = 16, 64
Shape = tuple[int, int, int]


def default_generator(shape: Shape, on_cpu: bool) -> str:
    """Return the generator that reaches most within a short budget: (C, H, W) of an image, and the machine."""
    if shape[1] <= 8:
        return "mlp"
    return "unet" if on_cpu or shape[1] <= 32 else "dit"


def batch_size(shape: Shape, on_cpu: bool) -> int:
    """Return the images of a step before memory limits them."""
    if shape[1] <= 8:
        return 128
    return 64 if on_cpu else 256 if shape[1] <= 64 else 128


def network_of(kind: str, shape: Shape, on_cpu: bool) -> Backbone:
    """Return a generator's network for images (C, H, W)."""
    side = shape[1]
    if kind == "mlp":
        if side > 16:
            raise UserError(f"--generator mlp is for images up to 16 pixels, not {side}: take unet or dit")
        return ModulatedMLP(width=192, depth=3, time_dim=128)
    if kind == "dit":
        return _dit(side, on_cpu)
    levels = 3 if side < 64 else 4 if side < 128 else 5
    if side % 2 ** (levels - 1):
        raise UserError(f"--generator unet needs a --size that {2 ** (levels - 1)} divides, not {side}")
    widths = {3: [1, 2, 4], 4: [1, 2, 2, 4], 5: [1, 1, 2, 2, 4]}[levels]
    settings: dict[str, Any] = {"multipliers": widths, "attention": [2 ** (levels - 1)], "residual_resizing": False}
    if on_cpu:
        return UNet(width=32, depth=1, head_width=32, groups=8, **settings)
    return UNet(width=128, depth=2, head_width=64, checkpointing=side >= 128, **settings)


def _dit(side: int, on_cpu: bool) -> DiT:
    """64 tokens on a CPU, 256 on a GPU."""
    patch = max(side // (8 if on_cpu else 16), 1)
    if side % patch:
        raise UserError(f"--generator dit needs a --size that {8 if on_cpu else 16} divides, not {side}")
    return DiT(patch=patch, width=192, depth=6, heads=3) if on_cpu else DiT(patch=patch, width=384, depth=12, heads=6)


def condition_of(name: str) -> Condition:
    """Return the condition that --condition names."""
    single: dict[str, Condition] = {
        "representation": RepresentationCondition(),
        "class": ClassCondition(),
        "none": NoCondition(),
    }
    return JointCondition([single["representation"], single["class"]]) if name == "joint" else single[name]


def generator_stage(kind: str, shape: Shape, condition: str, on_cpu: bool, few: bool) -> DiffusionStage:
    """Return the generator of images (C, H, W).

    Args:
        kind: one of GENERATORS.
        condition: representation, class, joint or none.
        on_cpu: made small enough for a CPU.
        few: noise on the condition is stronger, so that few images are not copied by their representation.
    """
    rate = {"mlp": 2e-3, "unet": 1e-3 if on_cpu else 3e-4, "dit": 6e-4 if on_cpu else 3e-4}[kind]
    return DiffusionStage(
        codec=Pixels(),
        condition=condition_of(condition),
        conditioner=Conditioner(drop=0.1, noise=0.2 if few or kind == "mlp" else 0.1),
        denoiser=Denoiser(network=network_of(kind, shape, on_cpu), schedule=CosineSchedule(), prediction=Clean()),
        sampler=DDIM(steps=25 if on_cpu else 50, eta=0.0, clip=1.0, spacing=LinspaceSpacing()),
        stratified=True,
        ema=PowerEMA(half_life=0.05),
        tile=CPU_TILE if on_cpu else GPU_TILE,
        optimizer=AdamW(lr=rate, weight_decay=0.0, lr_schedule=StableDecayLR(), clip=1.0),
    )


def rdm_stage(dim: int, condition: str, on_cpu: bool) -> DiffusionStage:
    """Return the RDM of representations of ``dim`` dimensions; class-conditional where the generator is joint."""
    width = (192 if dim <= 64 else 384) if on_cpu else 768
    return DiffusionStage(
        codec=Representations(),
        condition=ClassCondition() if condition == "joint" else NoCondition(),
        conditioner=Conditioner(drop=0.1 if condition == "joint" else 0.0),
        denoiser=Denoiser(
            network=ModulatedMLP(width=width, depth=3 if dim <= 64 else 6, time_dim=128 if dim <= 64 else None),
            schedule=CosineSchedule(),
            prediction=Clean(),
        ),
        sampler=DDIM(steps=50, eta=0.0, spacing=LinspaceSpacing()),
        stratified=True,
        ema=PowerEMA(half_life=0.1),
        optimizer=AdamW(lr=4e-3 if dim <= 64 else 1e-3, lr_schedule=StableDecayLR(), clip=1.0),
    )


def encoder_stage(shape: Shape, on_cpu: bool) -> MoCoV3Stage:
    """Return MoCo v3 for images (C, H, W): its network and augmentation fit their size and colour."""
    channels, side, _ = shape
    if on_cpu or side <= 8:
        widths = (16, 32, 32, 64, 64) if side <= 8 else (32, 64, 64, 128, 128, 256)
        backbone: Any = SmallConvNet(channels=channels, size=side, widths=widths)
        inner, dim = (64, 32) if side <= 8 else (256, 64)
    else:
        backbone, inner, dim = ResNet18(channels=channels), 512, 128
    hidden = 128 if side <= 8 else 512 if on_cpu else 2048
    view = SmallGreyAugmentation if channels == 1 else SmallColourAugmentation
    return MoCoV3Stage(
        encoder=Projected(backbone, ProjectionHead(in_dim=inner, hidden=hidden, dim=dim, layers=2)),
        predictor=Predictor(in_dim=dim, hidden=hidden, dim=dim),
        view1=view(),
        view2=view(),
        preprocess=Preprocess(mean=[0.5] * channels, std=[0.5 if side <= 8 else 0.25] * channels),
        momentum=0.98,
        optimizer=AdamW(lr=4e-3 if side <= 8 else 1e-3, weight_decay=1e-4, lr_schedule=StableDecayLR(warmup=0.1)),
    )
