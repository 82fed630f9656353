import math

import pytest
import torch
import torch.nn.functional as F

from rcg_lightning.config import construct, describe
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from rcg_lightning.networks.stylegan2_blocks import (
    EqualisedLinear,
    EqualisedMaps,
    ModulatedConv,
    doubled,
    halved,
    minibatch_stddev,
    normalise_second_moment,
)
from rcg_lightning.types import Classes, Vector

SMALL = {"layers": 2, "channel_base": 64, "channel_max": 8}


def build(shape=(1, 8, 8), condition_dim=6, **settings):
    """Both networks, conditional or not, with noise in every layer."""
    torch.manual_seed(0)
    generator = StyleGAN2Generator(noise_dim=5, width=6, **SMALL, **settings)
    discriminator = StyleGAN2Discriminator(**SMALL)
    generator.build(shape, condition_dim)
    discriminator.build(shape, condition_dim)
    for module in generator.modules():
        if hasattr(module, "strength"):
            torch.nn.init.constant_(module.strength, 0.1)
    return generator, discriminator


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 48, 48)], ids=str)
@pytest.mark.parametrize("condition_dim", [0, 6])
def test_shapes_and_gradients_for_any_image_size(shape, condition_dim):
    generator, discriminator = build(shape, condition_dim)
    noise, c = torch.randn(3, 5), torch.randn(3, condition_dim)
    generated = generator(noise, c)
    assert generated.shape == (3, *shape)
    logits = discriminator(generated, c)
    assert logits.shape == (3,)
    logits.sum().backward()
    for network in (generator, discriminator):
        assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_resampling_is_zero_insertion_and_a_filter():
    x = torch.randn(2, 3, 6, 6)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = (taps[:, None] * taps / 64).expand(3, 1, 4, 4)
    inserted = torch.zeros(2, 3, 12, 12)
    inserted[:, :, ::2, ::2] = x
    torch.testing.assert_close(doubled(x), F.conv2d(F.pad(inserted, (2, 1, 2, 1)), 4 * kernel, groups=3))
    torch.testing.assert_close(halved(x), F.conv2d(F.pad(x, (1, 1, 1, 1)), kernel, groups=3)[:, :, ::2, ::2])
    constant = torch.ones(1, 2, 8, 8)  # stays constant inside the border
    torch.testing.assert_close(doubled(constant)[:, :, 1:-1, 1:-1], torch.ones(1, 2, 14, 14))
    torch.testing.assert_close(halved(constant)[:, :, 1:-1, 1:-1], torch.ones(1, 2, 2, 2))


@pytest.mark.parametrize("doubles", [False, True])
def test_modulating_maps_equals_modulating_weights(doubles):
    """Scaling inputs and outputs is the published scaling of each image's weights."""
    torch.manual_seed(0)
    conv = ModulatedConv(6, 4, 5, doubles=doubles)
    x, w = torch.randn(3, 4, 8, 8), torch.randn(3, 6)
    weight = conv.weight * conv.affine(w)[:, None, :, None, None]  # (B, out, C, 3, 3)
    weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    for i in range(3):
        unmodulated = ModulatedConv(6, 4, 5, doubles=doubles, demodulates=False)
        unmodulated.affine = torch.nn.Linear(6, 4)
        with torch.no_grad():
            unmodulated.affine.weight.zero_()
            unmodulated.affine.bias.fill_(1 / unmodulated.scale)
            unmodulated.weight.copy_(weight[i])
        torch.testing.assert_close(conv(x, w)[i : i + 1], unmodulated(x[i : i + 1], w[i : i + 1]))


def test_layers_preserve_variance():
    torch.manual_seed(0)
    assert float(EqualisedLinear(200, 300)(torch.randn(400, 200)).detach().std()) == pytest.approx(1, abs=0.05)
    slow = EqualisedLinear(200, 300, lr_multiplier=0.01)
    assert float(slow.weight.detach().std()) == pytest.approx(100, rel=0.05)
    assert float(slow(torch.randn(400, 200)).detach().std()) == pytest.approx(1, abs=0.05)
    out = ModulatedConv(6, 40, 50)(torch.randn(8, 40, 16, 16), torch.randn(8, 6)).detach()
    assert float(out[:, :, 1:-1, 1:-1].std()) == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(normalise_second_moment(torch.randn(5, 7) * 9).square().mean(1), torch.ones(5))


def test_the_standard_deviation_of_a_group_is_a_feature():
    x = torch.randn(8, 2, 4, 4)
    out = minibatch_stddev(x, 4)
    assert out.shape == (8, 3, 4, 4)
    group = x[[1, 3, 5, 7]]
    torch.testing.assert_close(out[1, 2], (group.var(0, correction=0) + 1e-8).sqrt().mean().expand(4, 4))
    assert float(minibatch_stddev(x[:1].expand(8, -1, -1, -1), 4)[:, 2].max()) < 1e-3
    assert minibatch_stddev(x[:6], 4).shape == (6, 3, 4, 4)  # groups of three
    assert minibatch_stddev(x[:1], 4).shape == (1, 3, 4, 4)


def test_the_noise_determines_the_image_in_evaluation_only():
    generator, _ = build()
    noise, c = torch.randn(4, 5), torch.randn(4, 6)
    mean = generator.mean.clone()
    assert not torch.equal(generator(noise, c), generator(noise, c))
    assert not torch.equal(generator.mean, mean)
    generator.eval()
    mean = generator.mean.clone()
    generated = generator(noise, c)
    torch.testing.assert_close(generator(noise, c), generated, rtol=0, atol=0)
    torch.testing.assert_close(generator(noise[2:3], c[2:3]), generated[2:3])
    assert torch.equal(generator.mean, mean)
    assert not torch.allclose(generator(noise, c + 1), generated, atol=1e-4)


def test_truncation_moves_styles_towards_their_mean():
    generator, _ = build(momentum=0.9)
    c = torch.randn(64, 6)
    for _ in range(40):
        generator.styles(torch.randn(64, 5), c)
    generator.eval()
    styles = generator.styles(torch.randn(64, 5), c)
    torch.testing.assert_close(generator.mean, styles.mean((0, 1)), rtol=0.3, atol=0.3)
    generator.truncation = 0.0
    torch.testing.assert_close(generator.styles(torch.randn(2, 5), c[:2]), generator.mean.expand(2, 4, -1))


def test_mixing_changes_later_layers_only():
    torch.manual_seed(0)
    generator, _ = build(mixing=1.0)
    noise, c = torch.randn(3, 5), torch.randn(3, 6)
    unmixed = generator.eval().styles(noise, c)
    generator.train()
    first_mixed = set()
    for _ in range(40):
        unchanged = (generator.styles(noise, c) == unmixed).all((0, 2)).tolist()
        assert unchanged == sorted(unchanged, reverse=True)
        first_mixed.add(sum(unchanged))
    assert first_mixed == {1, 2, 3}
    generator.mixing = 0.0
    torch.testing.assert_close(generator.styles(noise, c), unmixed)


def test_penalties_reach_every_weight():
    """Second derivatives: R1 through the discriminator, path length through the synthesis."""
    generator, discriminator = build()
    noise, c = torch.randn(4, 5), torch.randn(4, 6)
    x = torch.randn(4, 1, 8, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x, c).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert float(discriminator.blocks[0].conv0.weight.grad.abs().sum()) > 0
    w = generator.styles(noise, c)
    images = generator.synthesise(w)
    projection = (images * torch.randn_like(images)).sum() / math.sqrt(64)
    (gradient,) = torch.autograd.grad(projection, w, create_graph=True)
    gradient.square().sum(2).mean(1).sqrt().sum().backward()
    assert float(generator.mapping.layers[0].weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("parts", "dim"), [((Classes(4),), None), ((Vector(3),), None), ((Classes(4), Vector(3)), [6, 6])]
)
def test_class_and_vector_conditions(parts, dim):
    generator, discriminator = StyleGAN2Generator(5, 6, **SMALL), StyleGAN2Discriminator(**SMALL)
    raw = tuple(torch.tensor([0, 3]) if isinstance(part, Classes) else torch.randn(2, 3) for part in parts)
    embeddings = []
    for network in (generator, discriminator):
        conditioner = Conditioner(dim=dim, drop=0.0, maps=EqualisedMaps())
        network.build((1, 8, 8), conditioner.build(parts, network.condition_width((1, 8, 8))))
        embeddings.append(conditioner(raw, 2))
    assert discriminator(generator(torch.randn(2, 5), embeddings[0]), embeddings[1]).shape == (2,)
    assert not discriminator.together
    assert construct(describe(generator)).width == 6


def test_impossible_settings_are_rejected():
    with pytest.raises(UserError, match="square images"):
        StyleGAN2Generator().build((3, 32, 64), 0)
    with pytest.raises(UserError, match="group"):
        StyleGAN2Discriminator(group=0)


@pytest.mark.parametrize("training", [True, False])
def test_styles_are_float32_under_autocast(training):
    generator, discriminator = build(truncation=0.7)
    noise, c = torch.randn(3, 5), torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        w = generator.train(training).styles(noise, c)
        logits = discriminator(generator.synthesise(w), c)
        logits.sum().backward()
    assert w.dtype == generator.mean.dtype == torch.float32
    assert logits.isfinite().all()
