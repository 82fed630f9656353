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


def example(rows=4):
    torch.manual_seed(1)
    tokens, masked = torch.randint(CODES, (rows, N)), torch.rand(rows, N) < 0.6
    masked[:, 0] = True
    return tokens, masked, torch.randn(rows, 16)


@pytest.mark.parametrize("condition", [0, 16])
def test_masked_tokens_are_not_read(condition):
    mage = network(condition)
    tokens, masked, c = example()
    c = c[:, :condition]
    others = torch.where(masked, (tokens + 1) % CODES, tokens)
    logits = mage(tokens, masked, c)
    assert logits.shape == (4, N, CODES)
    torch.testing.assert_close(mage(others, masked, c), logits)
    known = torch.where(masked, tokens, (tokens + 1) % CODES)
    assert not torch.allclose(mage(known, masked, c), logits)


def test_what_is_kept_is_all_that_the_encoder_sees():
    """Masked positions that it sees differ from those that it does not, though both are filled alike afterwards."""
    mage = network(16)
    tokens, masked, c = example()
    kept = masked.int().argsort(dim=1, stable=True)[:, : N - 1].sort(1).values  # all but one that is masked
    some = mage(tokens, masked, c, kept)
    encoded = mage.encode(mage.embed(tokens, masked, c), kept)
    assert encoded.shape == (4, N, 16)
    assert not torch.allclose(some, mage(tokens, masked, c))
    whole = mage(tokens, masked, c, torch.arange(N).expand(4, N))
    torch.testing.assert_close(whole, mage(tokens, masked, c))


def test_the_condition_takes_its_slot_as_it_is():
    mage = network(16)
    tokens, masked, c = example()
    x = mage.embed(tokens, masked, c)
    assert torch.equal(x[:, 0], c)
    assert torch.equal(network(0).embed(tokens, masked, c[:, :0])[:, 1:], x[:, 1:])
    torch.testing.assert_close(mage.train().embed(tokens, masked, c)[:, 0], c)


def test_scores_teach_the_word_embeddings_nothing():
    mage = network(16)
    tokens, masked, c = example()
    everything = torch.ones_like(masked)
    mage(tokens, everything, c).square().sum().backward()
    moved = mage.words.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert moved == [mage.mask]  # the one word that was read (the fake label's place is the condition's)


@pytest.mark.parametrize("condition", [0, 16])
def test_every_parameter_gets_a_gradient(condition):
    mage = network(condition).train()
    tokens, masked, c = example()
    mage(tokens, masked, c[:, :condition]).sum().backward()
    assert not [name for name, parameter in mage.named_parameters() if parameter.grad is None]


def test_dropout_is_of_training_alone():
    mage = network(16, dropout=0.3)
    tokens, masked, c = example()
    assert torch.equal(mage(tokens, masked, c), network(16)(tokens, masked, c))
    mage.train()
    assert not torch.equal(mage(tokens, masked, c), mage(tokens, masked, c))


def test_dropout_of_attention_is_of_its_weights_and_its_result():
    torch.manual_seed(0)
    attention, x = SelfAttention(8, 2, dropout=0.4), torch.randn(2000, 3, 8)
    plain = attention.eval()(x)
    dropped = attention.train()(x)
    zeros = (dropped == 0).float().mean()
    assert float(zeros) == pytest.approx(0.4, abs=0.02)
    torch.testing.assert_close(dropped.mean(0), plain.mean(0), rtol=0, atol=0.1)


def test_sizes_that_do_not_fit():
    with pytest.raises(UserError, match="width 10 is not divisible by 3"):
        MAGE(width=10, heads=3)
    with pytest.raises(UserError, match="decoder_width 10 is not"):
        MAGE(decoder_width=10, decoder_heads=3)
    with pytest.raises(UserError, match=r"conditioner\.dim must be 16"):
        network(12)


def test_published_sizes():
    large = MAGE(size="L", decoder_depth=1)
    assert (large.width, large.depth, large.heads) == (1024, 24, 16)
    assert (large.decoder_width, large.decoder_depth, large.decoder_heads) == (1024, 1, 16)
    with pytest.raises(UserError, match="no size S: those known are B, L, H"):
        MAGE(size="S")


def test_dropout_of_the_attention_is_a_setting_of_its_own():
    """Without it attention can be fused on a CPU, and everything else drops as before."""
    torch.manual_seed(0)
    net = MAGE(16, 1, 2, decoder_width=16, decoder_depth=1, decoder_heads=2, dropout=0.5, attention_dropout=0.0)
    net.build(4, 6, 0)
    tokens, masked, c = torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 0)
    with HostSyncs() as counter:
        first, second = net(tokens, masked, c), net(tokens, masked, c)
    assert counter.calls["_scaled_dot_product_flash_attention_for_cpu"] == 4
    assert not torch.equal(first, second)
    same = MAGE(16, 1, 2, dropout=0.5)
    same.build(4, 6, 0)
    assert same.blocks[0].attn.weights_dropout == 0.5
