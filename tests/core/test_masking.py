import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.core.masking import (
    MaskRatio,
    ParallelDecoding,
    SeededDecodingNoise,
    masked_again,
    masked_cross_entropy,
    masked_positions,
    masks_left,
)
from rcg_lightning.errors import UserError

# -- what is masked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "low", "high"), [(0.55, 0.5, 1.0), (0.75, 0.5, 1.0), (0.2, 0.1, 0.4)])
def test_rates_follow_a_truncated_normal(mean, low, high):
    law = MaskRatio(mean, 0.25, low, high)
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    rates = law(u)
    assert rates.dtype == torch.float64
    assert (float(rates[0]), float(rates[-1])) == pytest.approx((low, high))
    normal = torch.distributions.Normal(torch.tensor(mean, dtype=torch.float64), 0.25)
    below, above = normal.cdf(torch.tensor([low, high], dtype=torch.float64))
    torch.testing.assert_close((normal.cdf(rates) - below) / (above - below), u, rtol=0, atol=1e-9)


def test_rates_can_be_fixed_and_are_shares():
    assert MaskRatio(low=0.5, high=0.5)(torch.rand(3)).tolist() == [0.5] * 3
    for low, high in ((0.0, 1.0), (0.6, 0.5), (0.5, 1.1)):
        with pytest.raises(UserError, match="mask rates lie in"):
            MaskRatio(low=low, high=high)


@pytest.mark.parametrize("n", [4, 7, 256])
@pytest.mark.parametrize("rate", [0.5, 0.503, 0.77, 1.0])
def test_the_smallest_noise_is_masked_and_the_smallest_of_it_not_seen(n, rate):
    torch.manual_seed(0)
    noise, dropped = torch.rand(5, n), MaskRatio().dropped(n)
    assert dropped == math.ceil(n / 2)
    masked, kept = masked_positions(noise, torch.tensor(rate), dropped)
    count = math.ceil(n * torch.tensor(rate))
    for row in range(5):
        order = noise[row].argsort()
        assert set(masked[row].nonzero()[:, 0].tolist()) == set(order[:count].tolist())
        assert kept[row].tolist() == sorted(order[dropped:].tolist())
    assert bool(masked.scatter(1, kept, True).all())  # what is not seen is masked


def test_equal_noise_masks_as_many_and_rows_may_differ_in_rate():
    masked, kept = masked_positions(torch.zeros(2, 8), torch.tensor([[0.5], [1.0]]), 4)
    assert masked.sum(1).tolist() == [4, 8]
    assert kept.shape == (2, 4)
    # 0.07 * 100 is a little more than 7 to Python and 7 to float32: what is dropped is masked all the same
    law = MaskRatio(0.07, 0.01, 0.07, 0.2)
    masked, _ = masked_positions(torch.rand(2, 100), law(torch.tensor(0.0)), law.dropped(100))
    assert masked.sum(1).tolist() == [law.dropped(100)] * 2


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_is_smoothed_and_of_masked_tokens_alone():
    torch.manual_seed(0)
    logits, tokens = torch.randn(3, 6, 5), torch.randint(5, (3, 6))
    masked = torch.rand(3, 6) < 0.5
    masked[:, 0] = True
    log_p = logits.log_softmax(-1)
    errors = 0.9 * F.nll_loss(log_p.transpose(1, 2), tokens, reduction="none") - 0.1 * log_p.mean(-1)
    expected = torch.stack([errors[row][masked[row]].mean() for row in range(3)])
    torch.testing.assert_close(masked_cross_entropy(logits, tokens, masked), expected)
    elsewhere = torch.where(masked[:, :, None], logits, 100 * torch.randn(3, 6, 5))
    torch.testing.assert_close(masked_cross_entropy(elsewhere, tokens, masked), expected)
    hard = masked_cross_entropy(logits.bfloat16(), tokens, masked, smoothing=0.0)
    assert hard.dtype == torch.float32


# -- decoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "steps"), [(256, 20), (256, 1), (16, 8), (4, 20), (1, 3)])
def test_fewer_are_masked_after_each_step(tokens, steps):
    counts = masks_left(tokens, steps)
    assert len(counts) == steps
    assert counts[-1] == 1
    for before, after in zip([tokens, *counts], counts):
        assert after == 1 or after < before
    if tokens > steps:
        cosine = [math.floor(tokens * math.cos(math.pi / 2 * (s + 1) / steps)) for s in range(steps)]
        assert counts[:-1] == cosine[:-1]


def test_the_least_confident_are_masked_again():
    confidence = torch.tensor([[0.1, 0.9, 0.2, 0.4], [0.3, 0.3, 0.1, 0.8]])
    masked = torch.tensor([[True, True, True, False], [True, True, False, True]])
    assert masked_again(confidence, masked, 1).tolist() == [[True, False, False, False], [True, False, False, False]]
    assert masked_again(confidence, masked, 2).tolist() == [[True, False, True, False], [True, True, False, False]]
    assert torch.equal(masked_again(confidence, masked, 3), masked)


def decode(scores, seeds, steps=4, temperature=1.0):
    """Decode from scores (N, K) that do not depend on what is known."""
    rounds = []

    def predict(tokens, masked, progress):
        rounds.append((tokens, masked, progress))
        return scores.expand(len(tokens), -1, -1)

    draws = SeededDecodingNoise(SeededNoise(seeds))
    return ParallelDecoding(steps, temperature).run(predict, draws, scores.shape[0]), rounds


def test_tokens_are_drawn_from_the_networks_distribution():
    """In one step nothing is masked again, so every position is one draw."""
    scores = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, -1.0]])
    tokens, _ = decode(scores, torch.arange(20_000), steps=1)
    for position in range(2):
        shares = torch.bincount(tokens[:, position], minlength=3) / 20_000
        torch.testing.assert_close(shares, scores[position].softmax(0), rtol=0, atol=0.015)
    both = torch.bincount(3 * tokens[:, 0] + tokens[:, 1], minlength=9).view(3, 3) / 20_000
    independent = scores[0].softmax(0)[:, None] * scores[1].softmax(0)
    torch.testing.assert_close(both, independent, rtol=0, atol=0.015)


def test_a_row_depends_on_its_seed_alone():
    scores = torch.randn(9, 5)
    whole, _ = decode(scores, torch.arange(6))
    alone, _ = decode(scores, torch.tensor([4]))
    assert torch.equal(alone, whole[4:5])
    assert len(whole.unique(dim=0)) == 6


def test_known_tokens_stay_and_progress_ends_at_one():
    _, rounds = decode(torch.randn(16, 5), torch.arange(3))
    assert [progress for *_, progress in rounds] == [0.25, 0.5, 0.75, 1.0]
    assert [masked.sum(1).tolist() for _, masked, _ in rounds] == [[n] * 3 for n in (16, *masks_left(16, 4)[:-1])]
    for (tokens, masked, _), (later, _, _) in pairwise(rounds[1:]):
        assert torch.equal(tokens[~masked], later[~masked])


def test_without_temperature_the_surest_are_kept():
    """With it, any may be kept."""
    scores = torch.zeros(16, 4)
    scores[:8, 0] = 20.0  # as good as certain
    _, (_, (_, cold, _)) = decode(scores, torch.arange(64), steps=2, temperature=0.0)
    kept = ~cold
    assert kept.sum(1).tolist() == [16 - masks_left(16, 2)[0]] * 64
    assert not kept[:, 8:].any()
    _, (_, (_, hot, _)) = decode(scores, torch.arange(64), steps=2, temperature=50.0)
    assert bool((~hot)[:, 8:].any())


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="at least one step"):
        ParallelDecoding(0)
    with pytest.raises(UserError, match="temperature"):
        ParallelDecoding(4, -1.0)
