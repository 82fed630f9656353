"""Official files converted and loaded from their folders, compared with the recorded results."""

import re

import pytest
import torch
from safetensors.torch import load_file

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.masking import ParallelDecoding
from rcg_lightning.core.samplers import DDIM, Ancestral, LeadingSpacing, LinspaceSpacing, OffsetSpacing
from rcg_lightning.official.base import OfficialFile
from rcg_lightning.official.conversion import read_official, to_native, to_official
from rcg_lightning.official.tensor_report import tensors
from rcg_lightning.pretrained.autoencoders import VQAutoencoder
from rcg_lightning.pretrained.encoders import DeiTEncoder, DINOEncoder, IBOTEncoder, MoCoV3Encoder
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder
from rcg_lightning.stages.generator import TRAINED, Generator
from rcg_lightning.stages.stage_folder import bundle_parts, stage_content
from rcg_lightning.stages.warm_start import resized

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
DIRECT = {"moco_v3": MoCoV3Encoder, "dino": DINOEncoder, "ibot": IBOTEncoder, "deit": DeiTEncoder}
KINDS = {"moco": "mocov3", "maskgit": "maskgitvqgan"}


def kind_of(golden):
    """The kind of a recorded file, with the settings that its shapes do not determine, from its config."""
    config, name = golden.config, golden.kind.partition("_")[0]
    kind = OfficialFile.kinds()[KINDS.get(name, name)]
    encoder = (config.get("encoder") or config.get("encoder_arch") or {}).get("num_heads")
    arch = config.get("arch", {})
    if name in ("moco", "dino", "ibot", "deit"):
        return kind(heads=arch["num_heads"])
    if name == "dit":
        classes = arch["num_classes"] if arch["num_classes"] > 1 else None
        return kind(arch["num_heads"], condition(golden, classes), classes)
    if name == "adm":
        return kind(head_width=arch["num_head_channels"], image=arch["image_size"])
    if name == "mage":
        return kind(arch["num_heads"], arch["decoder_num_heads"], encoder)
    if name == "ldm":
        params = config["model_params"]
        width = params["unet_config"]["params"]["num_head_channels"]
        classes = params["cond_stage_config"]["params"]["n_classes"]
        return kind(width, condition(golden, classes if classes > 1 else None), params["image_size"], encoder)
    return kind(encoder_heads=encoder) if name == "rdm" else kind()


def condition(golden, classes):
    if "in.rep" in golden.io:
        return RepresentationCondition()
    return ClassCondition() if classes else NoCondition()


@pytest.fixture
def converted(golden, tmp_path):
    """The native folder of a recorded file."""
    report = "\n".join(to_native(golden.checkpoint, tmp_path / "native", kind_of(golden)))
    assert "unknown" not in report
    assert re.search(r"missing +none", report)
    return tmp_path / "native"


def image_of(golden, size):
    name = next(name for name in golden.io if name.startswith(f"in.images_{size}" if size else "in.images"))
    image = golden.io[name]
    return image if image.is_floating_point() else image.float() / 255


@pytest.mark.golden("moco_v3", "dino", "ibot", "deit")
def test_encoders(golden, converted):
    direct = next(kind for name, kind in DIRECT.items() if golden.kind.startswith(name))
    recorded = [name for name in golden.io if name.startswith("out.") and name.rpartition(".")[2].startswith("rep_")]
    assert recorded
    for name in recorded:
        head = name.endswith("withproj")
        encoder, other = TrainedEncoder(converted, head), direct(golden.checkpoint, head, golden.arch["num_heads"])
        image = image_of(golden, name.split(".")[1] if name.count(".") > 1 else None)
        made = encoder(image)
        torch.testing.assert_close(made, golden.io[name], **CLOSE)
        assert torch.equal(made, other(image))
        assert encoder.identity == other.identity


def inner_encoder(golden, folder, stage):
    """The encoder in a generator's file makes the recorded representations, and the stage has its identity."""
    if "out.rep_from_images" in golden.io:
        image = golden.io["in.images"]
        encoder = TrainedEncoder(folder / "encoder")
        made = encoder((image + 1) / 2 if image.min() < 0 else image)
        torch.testing.assert_close(made, golden.io["out.rep_from_images"].flatten(1), **CLOSE)
        assert stage.spec.identities["representation"] == encoder.identity


def raw(stage, io, names):
    """The recorded condition of a stage."""
    keys = {"representation": "rep", "label": "label"}
    needed = [key for need, key in keys.items() if need in stage.condition.needs]
    return tuple(next(io[name] for name in names[key] if name in io) for key in needed)


CONDITIONS = {"rep": ["in.rep"], "label": ["in.y", "in.class_label"]}


@pytest.mark.golden("rdm", "dit", "adm", "ldm")
@torch.no_grad()
def test_diffusion_models(golden, converted):
    stage, io = Generator.load(converted), golden.io
    rdm = golden.kind.startswith("rdm")
    x, t, condition = io["in.x"], io["in.t"], raw(stage, io, CONDITIONS)
    for ema_name, name in ((TRAINED, "out.model" if rdm else "out.forward"), ("ema", None)):
        expected = io[name or ("out.model_ema" if rdm else "out.forward_ema")]
        denoiser, conditioner = stage.for_sampling(ema_name)
        made = denoiser.network(x.flatten(1) if rdm else x, t, conditioner(condition, len(x)))
        close = {"rtol": 1e-6, "atol": 2e-6} if rdm else CLOSE
        torch.testing.assert_close(made, expected.flatten(1) if rdm else expected, **close)
    inner_encoder(golden, converted, stage)


@pytest.mark.golden("rdm", "dit", "adm", "ldm")
def test_published_sampling(golden, converted):
    sampler = Generator.load(converted).sampler
    found = (type(sampler), sampler.steps, getattr(sampler, "eta", None), type(sampler.spacing), sampler.clip)
    published = {
        "rdm": (DDIM, 250, 1.0, OffsetSpacing, None),
        "dit": (Ancestral, 250, None, LinspaceSpacing, None),
        "adm": (DDIM, 25, 0.0, LeadingSpacing, 1.0),
        "ldm": (DDIM, 200, 1.0, OffsetSpacing, None),
    }
    assert found == published[golden.kind.partition("_")[0]]


@pytest.mark.golden("mage")
@torch.no_grad()
def test_mage(golden, converted):
    stage, io = Generator.load(converted), golden.io
    tokens, masked = io["in.fixed.token_ids"], io["in.fixed.masked"]
    condition = raw(stage, io, {"rep": ["in.fixed.rep"], "label": ["in.class_label"]})
    network, conditioner = stage.for_sampling()
    logits = network(tokens, masked, conditioner(condition, len(tokens)))
    expected = io["out.fixed.logits_stride4"]
    torch.testing.assert_close(logits[:, :: -(-logits.shape[1] // expected.shape[1])], expected, **CLOSE)
    assert torch.equal(stage.codec.autoencoder.tokens(io["in.images"]), io["out.gt_indices"])
    assert stage.spec.identities["tokens"] == VQAutoencoder(converted / "autoencoder").identity
    assert stage.spec.image[1:] == io["in.images"].shape[2:]
    assert isinstance(stage.sampler, ParallelDecoding)
    assert (stage.sampler.steps, stage.sampler.temperature) == (20, 6.0)
    inner_encoder(golden, converted, stage)


@pytest.mark.golden("mage", "ldm")
def test_a_generator_with_its_autoencoder_makes_images(golden, converted):
    stage = Generator.load(converted)
    stage.tile = 4
    sampler = ParallelDecoding(2) if golden.kind.startswith("mage") else DDIM(2)
    batch = {"seed": torch.arange(3)}
    if "representation" in stage.condition.needs:
        batch["representation"] = torch.randn(3, stage.spec.columns["representation"]["shape"][0])
    image = stage.sample(batch, sampler=sampler)
    assert image.shape == (3, *stage.spec.image)
    assert 0 <= image.min() < image.max() <= 1


@pytest.mark.golden("maskgit", "ldm")
def test_autoencoders(golden, converted):
    io, ldm = golden.io, golden.kind.startswith("ldm")
    autoencoder = VQAutoencoder(converted / "autoencoder" if ldm else converted)
    image = (io["in.images"] + 1) / 2 if ldm else io["in.images"]
    indices = io["out.first_stage.indices" if ldm else "out.indices_flat"]
    assert torch.equal(autoencoder.tokens(image).flatten(), indices)
    z = io["out.first_stage.encode_prequant" if ldm else "out.z_before_quantise"]
    torch.testing.assert_close(autoencoder.encode(image), z, **CLOSE)
    made = io["out.first_stage.decode_with_quantise" if ldm else "out.reconstruction"]
    torch.testing.assert_close(autoencoder.decode(z), ((made + 1) / 2 if ldm else made).clamp(0, 1), **CLOSE)


UNWRITTEN = (
    r"momentum_encoder|module\.predictor|^student|^optimizer|^scaler|last_layer|masked_embed"  # not written back
)
WRITTEN = r"last_layer|\.(betas|\w*alphas_cumprod\w*|posterior_\w+)$"  # written again, in addition or with rounding
# unread tensors of the official layout; a DiT's only label, and the bias that it is added to
EMPTY = re.compile(
    r"(model|model_ema)\.(cls_token|mask_token|pos_embed|decoder_pos_embed|patch_embed|decoder_pred|fake_latent"
    r"|rep_embedder|y_embedder|t_embedder\.mlp\.2\.bias|cond_stage_model)"
)


@pytest.mark.golden("moco_v3", "dino", "ibot", "deit", "rdm", "dit", "mage")
def test_official_files_are_written_back_and_converted_again(golden, converted, tmp_path):
    kind = kind_of(golden)
    to_official(converted, tmp_path / "back.pth", kind)
    first, back = (dict(tensors(read_official(path)[0])) for path in (golden.checkpoint, tmp_path / "back.pth"))
    first = {re.sub(r"(13|14)\.(norm|mlp\.fc)(\1)", lambda m: f"{m[1]}.{m[2]}{REPAIRED[m[1], m[2]]}", name): tensor
             for name, tensor in first.items()}  # fmt: skip
    assert {name for name in first.keys() - back.keys() if not re.search(UNWRITTEN, name)} == set()
    assert {name for name in back.keys() - first.keys() if not re.search(WRITTEN, name)} == set()
    for name in first.keys() & back.keys():
        if re.search(r"last_layer", name):
            continue
        assert first[name].shape == back[name].shape or EMPTY.match(name), name
        if re.search(WRITTEN, name):
            torch.testing.assert_close(back[name], first[name], rtol=1e-5, atol=1e-7)
        elif not torch.equal(first[name], back[name]):
            assert EMPTY.match(name), name
    to_native(tmp_path / "back.pth", tmp_path / "again", kind)
    check_same_folders(converted, tmp_path / "again")


REPAIRED = {("13", "norm"): 1, ("13", "mlp.fc"): 1, ("14", "norm"): 2, ("14", "mlp.fc"): 2}  # of the damaged ViT-L


def check_same_folders(one, other):
    """Both hold the same descriptions and equal weights."""
    for name, folder in (bundle_parts(one) or {"": one}).items():
        theirs = other / name
        for file in folder.glob("*.json"):
            assert file.read_text() == (theirs / file.name).read_text()
        mine, again = (load_file(path / "weights.safetensors") for path in (folder, theirs))
        assert mine.keys() == again.keys()
        assert all(torch.equal(mine[key], again[key]) for key in mine)


@pytest.mark.golden("mage")
def test_fine_tuning_on_a_larger_grid_resizes_the_learned_positions(golden, converted):
    """The same condition, images of twice the side, another number of classes."""
    from dataclasses import replace

    from rcg_lightning.config import construct
    from rcg_lightning.types import DataSpec

    content = stage_content(converted)
    stage, old = construct(content["stage"]), DataSpec.from_dict(content["data_spec"])
    tokens = old.columns["tokens"]["shape"][0]
    columns = {**old.columns, "tokens": {**old.columns["tokens"], "shape": [4 * tokens]}}
    classes = old.classes and old.classes + 3
    stage.build(replace(old, columns=columns, classes=classes, image=(3, 2 * old.image[1], 2 * old.image[2])))
    fresh = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    lines = stage.start_from(converted)
    loaded, now = content["state_dict"], stage.state_dict()
    for name in ("transformer.positions.weight", "transformer.decoder_positions"):
        assert torch.equal(now[name], resized(loaded[name], now[name]))
        assert any(line.startswith(f"changed: {name}") for line in lines)
    table = "conditioner.parts.0.table.weight"
    assert (table in now) == bool(classes)
    if classes:
        assert torch.equal(now[table], fresh[table])
        assert f"{classes} classes, the file has {old.classes}" in "\n".join(lines)
    assert torch.equal(now["transformer.words.weight"], loaded["transformer.words.weight"])


@pytest.mark.golden("dit")
def test_the_condition_follows_from_the_file(golden):
    arch = golden.arch
    if "in.rep" in golden.io and not arch["rep_dropout_prob"]:
        pytest.skip("without a null representation it looks unconditional")
    kind = OfficialFile.kinds()["dit"](heads=arch["num_heads"])
    stage = kind.parts(read_official(golden.checkpoint)[0], "it")["generator"].stage
    assert type(stage.condition) is type(kind_of(golden).condition)
    assert stage.spec.classes == kind_of(golden).classes
