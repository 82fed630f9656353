import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.networks.dit import DiT, published_size
from rcg_lightning.networks.layers import SelfAttention, sincos_table, sinusoidal_embedding


def build(shape=(3, 8, 12), condition=0, out_factor=1, randomised=True):
    torch.manual_seed(0)
    network = DiT(patch=2, width=16, depth=2, heads=4)
    network.build(shape, condition, out_factor)
    if randomised:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("condition", [0, 16])
@pytest.mark.parametrize("out_factor", [1, 2])
def test_shapes_and_zero_output_at_the_start(condition, out_factor):
    network = build(condition=condition, out_factor=out_factor, randomised=False)
    out = network(torch.randn(4, 3, 8, 12), torch.randint(1000, (4,)), torch.randn(4, condition))
    assert out.shape == (4, 3 * out_factor, 8, 12)
    assert float(out.detach().abs().max()) == 0


def test_patches_return_to_their_positions():
    """Without attention, a pixel in one patch changes only that patch."""
    network = build()
    with torch.no_grad():
        for block in network.blocks:
            block.modulation[1].weight.zero_()
            block.modulation[1].bias.zero_()
        x, t, c = torch.zeros(1, 3, 8, 12), torch.zeros(1, dtype=torch.long), torch.zeros(1, 0)
        other = x.clone()
        other[0, 1, 5, 2] = 1  # row 2, column 1 of the grid
        changed = (network(other, t, c) - network(x, t, c)).abs().amax((0, 1)) > 1e-7
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[4:6, 2:4] = True
    assert torch.equal(changed, expected)


def test_the_output_depends_on_timestep_condition_and_input_of_each_example():
    network = build(condition=16).eval()
    x, t, c = torch.randn(4, 3, 8, 12), torch.tensor([0, 3, 500, 999]), torch.randn(4, 16)
    with torch.no_grad():
        out = network(x, t, c)
        for changed in ((x.flip(0), t, c), (x, t.flip(0), c), (x, t, c.flip(0))):
            assert float((network(*changed) - out).flatten(1).abs().amax(1).min()) > 1e-4
        torch.testing.assert_close(network(x[2:3], t[2:3], c[2:3]), out[2:3], rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    network = build(condition=16)
    out = network(torch.randn(4, 3, 8, 12), torch.randint(1000, (4,)), torch.randn(4, 16))
    out.square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0]
    assert not [name for name in network.state_dict() if "positions" in name]


@pytest.mark.parametrize(
    ("shape", "condition", "message"),
    [((3, 7, 8), 0, "does not divide"), ((32,), 0, "images or latents"), ((3, 8, 8), 5, "must be 16")],
)
def test_impossible_shapes_and_conditions_are_rejected(shape, condition, message):
    with pytest.raises(UserError, match=message):
        build(shape, condition)


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="3 heads"):
        DiT(width=16, heads=3)


def test_published_sizes():
    assert published_size("XL/2") == (2, 1152, 28, 16)
    small = DiT(size="S/8", depth=3)
    assert (small.patch, small.width, small.depth, small.heads) == (8, 384, 3, 6)
    for unknown in ("XXL/2", "B/3", "B", ""):
        with pytest.raises(UserError, match="the published ones are S/2, S/4, S/8, B/2"):
            DiT(size=unknown)


def test_attention_follows_its_formula():
    torch.manual_seed(0)
    attention, x = SelfAttention(8, 2), torch.randn(2, 5, 8)
    q, k, v = attention.qkv(x).chunk(3, dim=2)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2
        heads.append(scores.softmax(2) @ v[..., part])
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, 2)))


def test_sinusoidal_embeddings():
    t = torch.tensor([0, 1, 999])
    table = sinusoidal_embedding(t, 6)
    assert table[0].tolist() == [1, 1, 1, 0, 0, 0]
    torch.testing.assert_close(table[:, 0], t.float().cos())
    torch.testing.assert_close(table[:, 3], t.float().sin())
    torch.testing.assert_close(table[:, 5], (t / 10_000 ** (2 / 3)).sin(), rtol=1e-5, atol=1e-6)
    positions = sincos_table(2, 3, 8)
    assert positions.shape == (6, 8)
    torch.testing.assert_close(positions[4, 0], torch.tensor(1.0).sin())  # row 1, column 1: columns first
    torch.testing.assert_close(positions[5, 0], torch.tensor(2.0).sin())
    torch.testing.assert_close(positions[5, 4], torch.tensor(1.0).sin())
