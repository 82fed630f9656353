import pytest
import torch

from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.errors import UserError
from rcg_lightning.networks.layers import SelfAttention
from rcg_lightning.networks.mage import MAGE

N, CODES = 9, 12


def network(condition=0, dropout=0.0, seed=0, **settings):
    torch.manual_seed(seed)
    sizes = {"width": 16, "depth": 2, "heads": 2, "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 3}
    built = MAGE(**sizes | settings, dropout=dropout)
    built.build(N, CODES, condition)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return built.eval()


def example(count=4):
    torch.manual_seed(1)
    tokens, masked = torch.randint(CODES, (count, N)), torch.rand(count, N) < 0.6
    masked[:, 0] = True
    return tokens, masked, torch.randn(count, 16)


@pytest.mark.parametrize("condition", [0, 16])
def test_masked_tokens_are_not_read(condition):
    mage = network(condition)
    tokens, masked, c = example()
    c = c[:, :condition]
    logits = mage(tokens, masked, c)
    assert logits.shape == (4, N, CODES)
    other_masked = torch.where(masked, (tokens + 1) % CODES, tokens)
    torch.testing.assert_close(mage(other_masked, masked, c), logits)
    other_known = torch.where(masked, tokens, (tokens + 1) % CODES)
    assert not torch.allclose(mage(other_known, masked, c), logits)


def test_the_encoder_sees_visible_positions_only():
    """Visible masked positions affect the encoder, although the decoder fills all masked positions alike."""
    mage = network(16)
    tokens, masked, c = example()
    visible = masked.int().argsort(dim=1, stable=True)[:, : N - 1].sort(1).values  # all but one masked position
    logits = mage(tokens, masked, c, visible)
    encoded = mage.encode(mage.embed(tokens, masked, c), visible)
    assert encoded.shape == (4, N, 16)
    assert not torch.allclose(logits, mage(tokens, masked, c))
    all_visible = mage(tokens, masked, c, torch.arange(N).expand(4, N))
    torch.testing.assert_close(all_visible, mage(tokens, masked, c))


def test_the_condition_enters_its_slot_unchanged():
    mage = network(16)
    tokens, masked, c = example()
    x = mage.embed(tokens, masked, c)
    assert torch.equal(x[:, 0], c)
    assert torch.equal(network(0).embed(tokens, masked, c[:, :0])[:, 1:], x[:, 1:])
    torch.testing.assert_close(mage.train().embed(tokens, masked, c)[:, 0], c)


def test_token_embeddings_get_no_gradient_from_the_logits():
    mage = network(16)
    tokens, masked, c = example()
    mage(tokens, torch.ones_like(masked), c).square().sum().backward()
    trained = mage.words.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert trained == [mage.mask]  # the only token that was read (the condition replaces the fake label)


@pytest.mark.parametrize("condition", [0, 16])
def test_every_parameter_gets_a_gradient(condition):
    mage = network(condition).train()
    tokens, masked, c = example()
    mage(tokens, masked, c[:, :condition]).sum().backward()
    assert not [name for name, parameter in mage.named_parameters() if parameter.grad is None]


def test_dropout_acts_in_training_only():
    mage = network(16, dropout=0.3)
    tokens, masked, c = example()
    assert torch.equal(mage(tokens, masked, c), network(16)(tokens, masked, c))
    mage.train()
    assert not torch.equal(mage(tokens, masked, c), mage(tokens, masked, c))


def test_attention_drops_its_weights_and_its_result():
    torch.manual_seed(0)
    attention, x = SelfAttention(8, 2, dropout=0.4), torch.randn(2000, 3, 8)
    expected = attention.eval()(x)
    dropped = attention.train()(x)
    zeros = (dropped == 0).float().mean()
    assert float(zeros) == pytest.approx(0.4, abs=0.02)
    torch.testing.assert_close(dropped.mean(0), expected.mean(0), rtol=0, atol=0.1)


def test_impossible_sizes_are_rejected():
    with pytest.raises(UserError, match=r"\bwidth 10"):
        MAGE(width=10, heads=3)
    with pytest.raises(UserError, match="decoder_width 10"):
        MAGE(decoder_width=10, decoder_heads=3)
    with pytest.raises(UserError, match="must be 16"):
        network(12)


def test_published_sizes():
    large = MAGE(size="L", decoder_depth=1)
    assert (large.width, large.depth, large.heads) == (1024, 24, 16)
    assert (large.decoder_width, large.decoder_depth, large.decoder_heads) == (1024, 1, 16)
    with pytest.raises(UserError, match="no size S: those known are B, L, H"):
        MAGE(size="S")


def test_attention_dropout_is_a_separate_setting():
    """Without it attention can be fused on a CPU, and dropout acts everywhere else as before."""
    torch.manual_seed(0)
    net = MAGE(16, 1, 2, decoder_width=16, decoder_depth=1, decoder_heads=2, dropout=0.5, attention_dropout=0.0)
    net.build(4, 6, 0)
    tokens, masked, c = torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 0)
    with HostSyncs() as counter:
        first, second = net(tokens, masked, c), net(tokens, masked, c)
    assert counter.calls["_scaled_dot_product_flash_attention_for_cpu"] == 4
    assert not torch.equal(first, second)
    default = MAGE(16, 1, 2, dropout=0.5)
    default.build(4, 6, 0)
    assert default.blocks[0].attn.weights_dropout == 0.5
