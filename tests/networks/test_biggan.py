import pytest
import torch

from rcg_lightning.config import construct, describe
from rcg_lightning.errors import UserError
from rcg_lightning.networks.biggan import BigGANDiscriminator, BigGANGenerator, MapAttention


def build(shape, condition_dim=6, attention=(), **settings):
    """Generator and discriminator of images of ``shape``, both conditional or both not."""
    torch.manual_seed(0)
    generator = BigGANGenerator(2, attention=list(attention), **{"noise_dim": 20, **settings})
    discriminator = BigGANDiscriminator(2, attention=list(attention))
    generator.build(shape, condition_dim)
    discriminator.build(shape, discriminator.condition_width(shape) if condition_dim else 0)
    return generator, discriminator


def inputs(generator, discriminator, shape, condition_dim=6, count=3):
    """Noise, and the condition embeddings of generator and discriminator."""
    c = torch.randn(count, condition_dim)
    width = discriminator.condition_width(shape) if condition_dim else 0
    return torch.randn(count, generator.noise_dim), c, torch.randn(count, width)


@pytest.mark.parametrize(
    ("shape", "bottom"),
    [((1, 8, 8), 4), ((1, 28, 28), 7), ((3, 32, 32), 4), ((3, 48, 48), 6), ((3, 64, 64), 4), ((3, 128, 128), 4)],
    ids=str,
)
@pytest.mark.parametrize("condition_dim", [0, 6])
def test_shapes_for_any_image_size(shape, bottom, condition_dim):
    generator, discriminator = build(shape, condition_dim)
    assert generator.bottom == bottom
    noise, c, projected = inputs(generator, discriminator, shape, condition_dim)
    generated = generator(noise, c)
    assert generated.shape == (3, *shape)
    assert float(generated.detach().abs().max()) <= 1
    assert discriminator(generated, projected).shape == (3,)


@pytest.mark.parametrize("hierarchical", [True, False])
@pytest.mark.parametrize("condition_dim", [0, 6])
def test_every_parameter_gets_a_gradient(hierarchical, condition_dim):
    shape = (1, 28, 28)
    generator, discriminator = build(shape, condition_dim, [14], hierarchical=hierarchical)
    noise, c, projected = inputs(generator, discriminator, shape, condition_dim)
    discriminator(generator(noise, c), projected).sum().backward()
    for network in (generator, discriminator):
        assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_noise_is_split_evenly_and_rounded_down():
    for hierarchical, size, expected in ((True, 120, 119), (True, 121, 119), (False, 120, 120)):
        generator = BigGANGenerator(2, size, hierarchical)
        with torch.device("meta"):
            generator.build((3, 256, 256), 0)
        assert generator.noise_dim == expected
        rebuilt = construct(describe(generator))
        assert (rebuilt.noise_dim, rebuilt.hierarchical) == (size, hierarchical)  # before rounding
    with pytest.raises(UserError, match="noise into 7"):
        BigGANGenerator(2, 6).build((3, 256, 256), 0)


def test_every_block_reads_its_own_noise_and_all_read_the_condition():
    shape = (3, 32, 32)
    generator, discriminator = build(shape)
    noise, c, projected = inputs(generator, discriminator, shape)
    generator.eval()
    generated = generator(noise, c)
    for chunk in range(4):
        other = noise.clone()
        other[:, chunk * 5 : chunk * 5 + 5] += 1
        assert not torch.allclose(generator(other, c), generated, atol=1e-5)
    assert not torch.allclose(generator(noise, c + 1), generated, atol=1e-5)
    logits, unconditional = discriminator(generated, projected), discriminator(generated, torch.zeros_like(projected))
    assert not torch.allclose(logits, unconditional, atol=1e-5)


def test_statistics_are_updated_in_training_only():
    shape = (1, 8, 8)
    generator, discriminator = build(shape)
    noise, c, _ = inputs(generator, discriminator, shape, count=16)
    before = generator.out_norm.mean.clone(), generator.blocks[0].norm1.var.clone()
    generator.eval()(noise, c)
    assert torch.equal(generator.out_norm.mean, before[0])
    generator.train()(noise, c)
    assert not torch.equal(generator.out_norm.mean, before[0])
    assert not torch.equal(generator.blocks[0].norm1.var, before[1])


def test_attention_starts_as_the_identity_and_then_mixes_positions():
    torch.manual_seed(0)
    attention = MapAttention(16, 1e-6).eval()
    x = torch.randn(2, 16, 6, 6)
    torch.testing.assert_close(attention(x), x, rtol=0, atol=0)
    torch.nn.init.ones_(attention.gamma)
    other = x.clone()
    other[:, :, 0, 0] += 3
    assert float((attention(other) - attention(x)).detach()[:, :, 5, 5].abs().max()) > 1e-6


def test_in_evaluation_an_output_depends_on_its_own_input_only():
    shape = (1, 8, 8)
    generator, discriminator = build(shape)
    noise, c, projected = inputs(generator, discriminator, shape)
    generator.eval()
    discriminator.eval()
    generated = generator(noise, c)
    torch.testing.assert_close(generator(noise[1:2], c[1:2]), generated[1:2])
    torch.testing.assert_close(discriminator(generated[1:2], projected[1:2]), discriminator(generated, projected)[1:2])


def test_impossible_settings_are_rejected():
    with pytest.raises(UserError, match="square images"):
        BigGANGenerator().build((3, 32, 64), 0)
    with pytest.raises(UserError, match="100 pixels"):
        BigGANDiscriminator().build((3, 100, 100), 0)
    with pytest.raises(UserError, match="8 to 256 pixels"):
        BigGANGenerator().build((3, 512, 512), 0)
    with pytest.raises(UserError, match="must be 16"):
        BigGANDiscriminator(4).build((3, 32, 32), 5)
    with pytest.raises(UserError, match=r"side \[5\]"):
        BigGANGenerator(4, attention=[5]).build((3, 32, 32), 0)


def test_a_gradient_penalty_flows_through_attention():
    shape = (3, 32, 32)
    _, discriminator = build(shape, attention=[16])
    for block in discriminator.blocks:
        torch.nn.init.ones_(block.attention.gamma)
    x = torch.randn(2, *shape).requires_grad_()
    c = torch.randn(2, discriminator.condition_width(shape))
    (gradient,) = torch.autograd.grad(discriminator(x, c).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert float(discriminator.blocks[0].attention.query.weight.grad.abs().sum()) > 0


def test_images_are_nearly_the_same_under_autocast():
    shape = (1, 28, 28)
    generator, discriminator = build(shape, attention=[14])
    noise, c, projected = inputs(generator, discriminator, shape)
    generated = generator.eval()(noise, c)
    logits = discriminator.eval()(generated, projected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(generator(noise, c).float(), generated, rtol=0.1, atol=0.1)
        torch.testing.assert_close(discriminator(generated, projected).float(), logits, rtol=0.1, atol=0.1)
