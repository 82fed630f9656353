import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.networks.unet import CrossAttentionUNet, UNet
from rcg_lightning.networks.unet_blocks import GatedMLP, ResidualBlock, TransformerBlock, double, halve

SMALL = {"width": 16, "multipliers": (1, 2), "depth": 1, "attention": (2,), "head_width": 8, "groups": 4}
KINDS = {
    "adm": lambda **more: UNet(**SMALL, **more),
    "improved_ddpm": lambda **more: UNet(**SMALL, residual_resizing=False, **more),
    "added": lambda **more: UNet(**SMALL, modulated=False, **more),
    "ldm": lambda **more: CrossAttentionUNet(**SMALL, **more),
}


def build(kind, condition=0, shape=(3, 8, 12), out_factor=1, randomised=True, **more):
    torch.manual_seed(0)
    network = KINDS[kind](**more)
    network.build(shape, condition, out_factor)
    if randomised:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def width_of(kind):
    return 5 if kind == "ldm" else 64  # cross-attention reads vectors of any width


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("conditional", [False, True])
def test_shapes_and_zero_output_at_the_start(kind, conditional):
    condition = width_of(kind) if conditional else 0
    network = build(kind, condition, out_factor=2, randomised=False)
    out = network(torch.randn(4, 3, 8, 12), torch.randint(1000, (4,)), torch.randn(4, condition))
    assert out.shape == (4, 6, 8, 12)
    assert float(out.detach().abs().max()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_depends_on_timestep_condition_and_input_of_each_example(kind):
    network = build(kind, width_of(kind)).eval()
    x, t, c = torch.randn(4, 3, 8, 12), torch.tensor([0, 3, 500, 999]), torch.randn(4, width_of(kind))
    with torch.no_grad():
        out = network(x, t, c)
        for changed in ((x.flip(0), t, c), (x, t.flip(0), c), (x, t, c.flip(0))):
            assert float((network(*changed) - out).flatten(1).abs().amax(1).min()) > 1e-4
        torch.testing.assert_close(network(x[2:3], t[2:3], c[2:3]), out[2:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_gets_a_gradient(kind, conditional, checkpointing):
    condition = width_of(kind) if conditional else 0
    network = build(kind, condition, checkpointing=checkpointing)
    x, t, c = torch.randn(4, 3, 8, 12), torch.randint(1000, (4,)), torch.randn(4, condition)
    network(x, t, c).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0]


@pytest.mark.parametrize("kind", ["adm", "ldm"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing_changes_only_memory(kind, dropout):
    x, t, c = torch.randn(2, 3, 8, 12), torch.tensor([1, 9]), torch.randn(2, width_of(kind))
    gradients, saved = [], []
    for checkpointing in (False, True):
        network = build(kind, width_of(kind), checkpointing=checkpointing, dropout=dropout)
        torch.manual_seed(1)
        sizes = []

        def record(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            loss = network(x, t, c).square().sum()
        saved.append(sum(sizes))
        loss.backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert saved[1] < saved[0] / 3


def test_attention_to_one_context_token_is_its_value():
    """A softmax over one token is 1, so queries and keys have no effect."""
    torch.manual_seed(0)
    block, x, c = TransformerBlock(8, 2, context_dim=5), torch.randn(2, 3, 8), torch.randn(2, 5)
    query, key = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 1, 4)  # any (B, heads, N, d)
    value = block.context_value(c)[:, None].unflatten(2, (2, 4)).transpose(1, 2)
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attended, block.context_value(c)[:, None].expand(2, 3, 8))
    h = x + block.attn(block.norm1(x))
    h = h + block.context_out(attended)
    torch.testing.assert_close(block(x, c), h + block.mlp(block.norm3(h)))
    assert TransformerBlock(8, 2, 0).context_value is None


def test_a_gated_mlp_follows_its_formula():
    mlp, x = GatedMLP(4), torch.randn(2, 3, 4)
    value, gate = mlp.inner(x)[..., :16], mlp.inner(x)[..., 16:]
    gelu = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    torch.testing.assert_close(mlp(x), mlp.outer(value * gelu))


def test_halving_and_doubling():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert halve(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert double(x)[0, 0, :2, :4].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    torch.testing.assert_close(halve(double(x)), x)
    block = ResidualBlock(4, 4, 8, 2, 0.0, True, halve)  # its last convolution is zero: only the shortcut remains
    y = torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(block(y, torch.zeros(1, 8), torch.zeros(1, 0)), halve(y))


@pytest.mark.parametrize(
    ("kind", "shape", "condition", "message"),
    [
        ("adm", (3, 7, 8), 0, "7x8"),
        ("adm", (32,), 0, "images or latents"),
        ("adm", (3, 8, 8), 5, "must be 64"),
    ],
)
def test_impossible_shapes_and_conditions_are_rejected(kind, shape, condition, message):
    with pytest.raises(UserError, match=message):
        build(kind, condition, shape)


def test_impossible_widths_are_rejected():
    with pytest.raises(UserError, match="divisible by 2 and 32"):
        UNet(width=48)
    with pytest.raises(UserError, match="heads of 24"):
        UNet(**{**SMALL, "head_width": 24}).build((3, 8, 8), 0)


def test_a_unet_of_one_level_neither_halves_nor_doubles():
    network = UNet(**{**SMALL, "multipliers": (1,), "attention": ()})
    network.build((1, 5, 7), 0)
    assert network(torch.randn(2, 1, 5, 7), torch.tensor([1, 2]), torch.zeros(2, 0)).shape == (2, 1, 5, 7)
    assert (len(network.down), len(network.up)) == (2, 2)
