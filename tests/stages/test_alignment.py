"""The alignment loss of a diffusion transformer: its value, the parameters that it trains, and checkpoints."""

import pytest
import torch
import torch.nn.functional as F

from rcg_lightning.core.samplers import DDIM
from rcg_lightning.errors import UserError
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.rdm_mlp import ModulatedMLP
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder, encoder_settings
from rcg_lightning.stages.alignment import Alignment
from rcg_lightning.stages.base import Stage
from rcg_lightning.types import DataSpec

SPEC = DataSpec((1, 8, 8))


@pytest.fixture
def encoder_at(tmp_path):
    def write(name="encoder", widths=(8, 20), size=8):
        torch.manual_seed(sum(map(ord, name)))
        network = SmallConvNet(1, size, widths)
        save_network(tmp_path / name, network, encoder_settings(Preprocess([0.5], [0.5]), head=False))
        return TrainedEncoder(tmp_path / name)

    return write


def aligned(make_stage, encoder, **settings):
    given = {"depth": 2, "hidden": 12} | settings
    denoiser = Denoiser(DiT(2, 16, 3, 2))
    return make_stage(denoiser=denoiser, alignment=Alignment(encoder, **given), ema=None)


def test_the_loss_is_minus_the_cosine_at_each_position(make_stage, encoder_at, awake):
    stage = awake(aligned(make_stage, encoder_at()).build(SPEC))
    torch.manual_seed(0)
    tokens, image = torch.randn(5, 16, 16), torch.rand(5, 1, 8, 8)
    target = stage.alignment.encoder.feature_map(image)  # the grid of the tokens
    assert target.shape == (5, 20, 4, 4)
    projected = stage.alignment.projector(tokens)
    cosines = [
        F.cosine_similarity(projected[b, 4 * row + column], target[b, :, row, column], dim=0)
        for b in range(5)
        for row in range(4)
        for column in range(4)
    ]
    torch.testing.assert_close(stage.alignment(tokens, image), -torch.stack(cosines).mean())

    stage.alignment.projector = torch.nn.Identity()
    aligned_tokens = target.flatten(2).transpose(1, 2)
    assert float(stage.alignment(3 * aligned_tokens, image)) == pytest.approx(-1, abs=1e-5)
    assert float(stage.alignment(-aligned_tokens, image)) == pytest.approx(1, abs=1e-5)


def test_a_coarser_map_is_interpolated_and_a_vector_is_repeated(make_stage, encoder_at):
    coarse = encoder_at("coarse", (8, 8, 8, 8, 40))
    image = torch.rand(3, 1, 8, 8)
    assert coarse.feature_map(image).shape == (3, 40, 2, 2)
    stage = aligned(make_stage, coarse).build(SPEC)
    stage.alignment.projector = torch.nn.Identity()
    target = F.interpolate(coarse.feature_map(image), (4, 4), mode="bilinear", align_corners=False)
    loss = stage.alignment(target.flatten(2).transpose(1, 2), image)
    assert float(loss) == pytest.approx(-1, abs=1e-5)
    vector = coarse.feature_map(image).mean((2, 3))
    coarse.feature_map = lambda image: vector[:, :, None, None]  # as of an encoder without a feature map
    everywhere = vector[:, None].expand(-1, 16, -1)
    assert float(stage.alignment(everywhere, image)) == pytest.approx(-1, abs=1e-5)


def test_tokens_are_read_after_the_given_block(make_stage, encoder_at, awake):
    network = awake(aligned(make_stage, encoder_at()).build(SPEC)).denoiser.network
    outputs = []
    network.blocks[1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    x, t, c = torch.randn(2, 1, 8, 8), torch.tensor([3, 70]), torch.zeros(2, 0)
    output, tokens = network(x, t, c, 2)
    assert torch.equal(tokens, outputs[0])
    assert torch.equal(output, network(x, t, c))


def test_the_loss_sums_both_terms_and_trains_every_parameter(make_stage, encoder_at, awake):
    stage = awake(aligned(make_stage, encoder_at(), weight=0.25).build(SPEC)).train()
    assert "image" in stage.needs
    torch.manual_seed(0)
    batch = {"image": torch.rand(8, 1, 8, 8), "index": torch.arange(8)}
    losses = stage.losses(batch)
    torch.testing.assert_close(losses["loss"], losses["denoising"] + 0.25 * losses["alignment"])
    losses["loss"].backward()
    trained = [p for module in stage.trained_modules() for p in module.parameters()]
    assert all(p.grad is not None for p in trained)
    assert len(trained) == len(list(stage.parameters()))
    stage.zero_grad()
    stage.losses(batch)["alignment"].backward()  # reaches the first two blocks, and the projector
    blocks = stage.denoiser.network.blocks
    assert blocks[1].attn.qkv.weight.grad is not None
    assert blocks[2].attn.qkv.weight.grad is None
    without = make_stage(denoiser=Denoiser(DiT(2, 16, 3, 2)), ema=None).build(SPEC)
    assert set(without.eval().losses(batch)) == {"loss"}


def test_training_resumes_and_sampling_needs_no_encoder(make_stage, encoder_at, tmp_path, trainer, digits):
    stage = aligned(make_stage, encoder_at())
    trainer(tmp_path / "run", 3).fit(stage, digits())
    last = tmp_path / "run" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    names = [name for name in content["state_dict"] if name.startswith("alignment")]
    assert len(names) == 6
    assert all("projector" in name for name in names)
    assert not [name for name in content["state_dict"] if "layers" in name]  # those of the encoder
    assert str(tmp_path) not in str(content["stage"])

    again = Stage.load(last)  # without a path of the encoder
    seeds = {"seed": torch.arange(3)}
    assert torch.equal(again.sample(seeds, sampler=DDIM(3)), stage.eval().sample(seeds, sampler=DDIM(3)))

    other = aligned(make_stage, encoder_at())
    trainer(tmp_path / "run", 4).fit(other, digits(), ckpt_path=last)
    assert not torch.equal(other.alignment.projector[0].weight, stage.alignment.projector[0].weight)
    with pytest.raises(UserError, match="alignment"):
        trainer(tmp_path / "run", 5).fit(aligned(make_stage, encoder_at("another")), digits(), ckpt_path=last)
    with pytest.raises(UserError, match="folder"):
        trainer(tmp_path / "run", 5).fit(again, digits())


def test_unsuitable_settings_are_named(make_stage, encoder_at):
    encoder = encoder_at()
    with pytest.raises(UserError, match="block 4"):
        aligned(make_stage, encoder, depth=4).build(SPEC)
    with pytest.raises(UserError, match="ModulatedMLP"):
        make_stage(denoiser=Denoiser(ModulatedMLP(8, 1)), alignment=Alignment(encoder)).build(SPEC)
    with pytest.raises(UserError, match="weight should be above 0"):
        Alignment(encoder, weight=0.0)


def test_training_lowers_the_alignment_loss(make_stage, encoder_at, tmp_path, trainer, digits):
    stage = aligned(make_stage, encoder_at(), hidden=32)
    before = trainer(tmp_path, 1).validate(stage, digits(), verbose=False)[0]["val/alignment"]
    fit = trainer(tmp_path, 40)
    fit.fit(stage, digits(batch_size=64))
    assert float(fit.callback_metrics["val/alignment"]) < min(before, 0) - 0.3
