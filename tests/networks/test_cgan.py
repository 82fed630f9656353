import pytest
import torch
from torch.nn import functional as F

from rcg_lightning.config import construct, describe
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.errors import UserError
from rcg_lightning.networks.adversarial import NormalNoise, UniformNoise
from rcg_lightning.networks.cgan import ConditionalDiscriminator, ConditionalGenerator, Maxout, Rectified
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.types import Classes, Vector

IMAGE = (1, 28, 28)


def sizes(network):
    return {name: tuple(p.shape) for name, p in network.named_parameters() if name.endswith("weight")}


def test_the_published_sizes_for_images():
    generator, discriminator = ConditionalGenerator(), ConditionalDiscriminator()
    for network, width in ((generator, 1000), (discriminator, 250)):
        conditioner = Conditioner(drop=0.0)
        network.build(IMAGE, conditioner.build((Classes(10),), network.condition_width(IMAGE)))
        assert sizes(conditioner) == {"parts.0.table.weight": (10, width)}
    assert sizes(generator) == {
        "noise_linear.weight": (200, 100),
        "joint_linear.weight": (1200, 1200),
        "out_linear.weight": (784, 1200),
    }
    assert sizes(discriminator) == {
        "example_linear.weight": (1200, 784),
        "joint_linear.weight": (960, 290),
        "out_linear.weight": (1, 240),
    }


def test_the_published_sizes_for_word_vectors():
    generator = ConditionalGenerator(100, 500, 2000, None, squashed=False, noise_distribution=NormalNoise())
    discriminator = ConditionalDiscriminator(Rectified(500), Rectified(1200), Maxout(1000, 3), images=False)
    for network in (generator, discriminator):
        conditioner = Conditioner(drop=0.0)
        network.build((200,), conditioner.build((Vector(4096),), network.condition_width((200,))))
        assert sizes(conditioner)["parts.0.linear.weight"] == (network.condition_width((200,)), 4096)
    assert sizes(generator) == {"noise_linear.weight": (500, 100), "out_linear.weight": (200, 2500)}
    assert sizes(discriminator) == {
        "example_linear.weight": (500, 200),
        "joint_linear.weight": (3000, 1700),
        "out_linear.weight": (1, 1000),
    }
    generated = generator(generator.noise_distribution.random(3, generator.noise_dim), torch.randn(3, 2000))
    assert generated.shape == (3, 200)
    assert discriminator(generated, torch.randn(3, 1200)).shape == (3,)
    rebuilt = construct(describe(generator))
    assert isinstance(rebuilt.noise_distribution, NormalNoise)
    assert construct(describe(discriminator)).joint.width == 3000


def test_a_class_equals_its_one_hot_vector_of_the_paper():
    generator = ConditionalGenerator(dropout=0.0)
    conditioner = Conditioner(drop=0.0)
    generator.build(IMAGE, conditioner.build((Classes(10),), 1000))
    label, noise = torch.tensor([0, 3, 9]), torch.rand(3, 100)
    linear = torch.nn.Linear(10, 1000)
    with torch.no_grad():
        conditioner.parts[0].table.weight.copy_(linear.weight.T + linear.bias)
        y = F.relu(linear(F.one_hot(label, 10).float()))
        z = F.relu(generator.noise_linear(noise))
        h = F.relu(generator.joint_linear(torch.cat([z, y], dim=1)))
        expected = 2 * torch.sigmoid(generator.out_linear(h)) - 1
        torch.testing.assert_close(generator(noise, conditioner((label,), 3)).flatten(1), expected)


def test_maxout_is_the_largest_piece_of_each_unit():
    x = torch.tensor([[1.0, 5.0, 2.0, -1.0, -3.0, -2.0]])
    torch.testing.assert_close(Maxout(2, 3)(x), torch.tensor([[5.0, -1.0]]))
    torch.testing.assert_close(Rectified(6)(x), x.clamp(min=0))


@pytest.mark.parametrize("conditional", [True, False])
def test_every_parameter_gets_a_gradient(conditional):
    generator, discriminator = ConditionalGenerator(), ConditionalDiscriminator(init_range=0.05)
    generator.build(IMAGE, 1000 if conditional else 0)
    discriminator.build(IMAGE, 250 if conditional else 0)
    c = [torch.randn(4, width if conditional else 0) for width in (1000, 250)]
    generated = generator(generator.noise_distribution.random(4, 100), c[0])
    assert generated.shape == (4, *IMAGE)
    assert float(generated.detach().abs().max()) <= 1
    discriminator(generated, c[1]).sum().backward()
    for network in (generator, discriminator):
        assert all(p.grad is not None for p in network.parameters())
        assert all(float(p.detach().abs().max()) <= network.init_range * 1.001 for p in network.parameters())


def test_dropout_acts_in_training_only():
    generator = ConditionalGenerator()
    generator.build(IMAGE, 0)
    noise, no_condition = torch.rand(2, 100), torch.zeros(2, 0)
    torch.testing.assert_close(generator.eval()(noise, no_condition), generator(noise, no_condition), rtol=0, atol=0)
    assert not torch.equal(generator.train()(noise, no_condition), generator(noise, no_condition))


def test_images_are_scaled_as_in_the_paper():
    discriminator = ConditionalDiscriminator(dropout=0.0)
    unscaled = ConditionalDiscriminator(images=False, dropout=0.0)
    discriminator.build(IMAGE, 0)
    unscaled.build(IMAGE, 0)
    unscaled.load_state_dict(discriminator.state_dict())
    x, no_condition = torch.rand(2, *IMAGE), torch.zeros(2, 0)
    torch.testing.assert_close(discriminator(2 * x - 1, no_condition), unscaled(x, no_condition))


@pytest.mark.parametrize(("distribution", "mean", "std"), [(UniformNoise(), 0.5, 12**-0.5), (NormalNoise(), 0.0, 1.0)])
def test_noise_distributions(distribution, mean, std):
    seeded = distribution.seeded(SeededNoise(torch.arange(2000)), 0, 20)
    for noise in (distribution.random(2000, 20), seeded):
        assert noise.shape == (2000, 20)
        assert float(noise.mean()) == pytest.approx(mean, abs=0.03)
        assert float(noise.std()) == pytest.approx(std, abs=0.02)
    torch.testing.assert_close(distribution.seeded(SeededNoise(torch.tensor([7])), 0, 20), seeded[7:8])
    torch.manual_seed(5)
    first = distribution.random(2, 3)
    torch.manual_seed(5)
    torch.testing.assert_close(distribution.random(2, 3), first, rtol=0, atol=0)


def test_a_condition_of_another_width_is_rejected():
    with pytest.raises(UserError, match=r"generator.* must be 1000"):
        ConditionalGenerator().build(IMAGE, 128)
    with pytest.raises(UserError, match=r"discriminator.* must be 250"):
        ConditionalDiscriminator().build(IMAGE, 50)


@pytest.mark.parametrize("conditional", [True, False])
def test_dropout_in_sampling_is_part_of_the_noise(conditional):
    generator = ConditionalGenerator(10, 6, 8, 12, dropout_in_sampling=True)
    width = 8 if conditional else 0
    generator.build((1, 4, 4), width)
    assert generator.noise_dim == 10 + 6 + width + 12
    generator.eval()
    noise = generator.noise_distribution.seeded(SeededNoise(torch.arange(64)), 0, generator.noise_dim)
    c = torch.randn(1, width).expand(64, width)
    generated = generator(noise, c)
    assert torch.equal(generated, generator.train()(noise, c))
    drops_nothing = noise.clone()
    drops_nothing[:, 10:] = 1.0  # all units are present, and twice as large
    usual = ConditionalGenerator(10, 6, 8, 12).eval()
    usual.build((1, 4, 4), width)
    usual.load_state_dict(generator.state_dict())
    usual.joint_linear.weight.data *= 2
    usual.out_linear.weight.data *= 2
    torch.testing.assert_close(generator(drops_nothing, c), usual(noise[:, :10], c))
    assert not torch.allclose(generated, generator(drops_nothing, c))
    with pytest.raises(UserError, match="uniform"):
        ConditionalGenerator(noise_distribution=NormalNoise(), dropout_in_sampling=True)
