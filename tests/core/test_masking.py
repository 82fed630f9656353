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
    mask_schedule,
    masked_cross_entropy,
    masked_positions,
    remask,
)
from rcg_lightning.errors import UserError

# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "low", "high"), [(0.55, 0.5, 1.0), (0.75, 0.5, 1.0), (0.2, 0.1, 0.4)])
def test_mask_ratios_follow_a_truncated_normal(mean, low, high):
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    ratios = MaskRatio(mean, 0.25, low, high)(u)
    assert ratios.dtype == torch.float64
    assert (float(ratios[0]), float(ratios[-1])) == pytest.approx((low, high))
    normal = torch.distributions.Normal(torch.tensor(mean, dtype=torch.float64), 0.25)
    below, above = normal.cdf(torch.tensor([low, high], dtype=torch.float64))
    torch.testing.assert_close((normal.cdf(ratios) - below) / (above - below), u, rtol=0, atol=1e-9)


def test_a_mask_ratio_can_be_fixed_and_is_checked():
    assert MaskRatio(low=0.5, high=0.5)(torch.rand(3)).tolist() == [0.5] * 3
    for low, high in ((0.0, 1.0), (0.6, 0.5), (0.5, 1.1)):
        with pytest.raises(UserError, match=r"MaskRatio: (low|high) should be"):
            MaskRatio(low=low, high=high)


@pytest.mark.parametrize("n", [4, 7, 256])
@pytest.mark.parametrize("ratio", [0.5, 0.503, 0.77, 1.0])
def test_positions_of_the_smallest_noise_are_masked_and_not_visible(n, ratio):
    torch.manual_seed(0)
    noise, dropped = torch.rand(5, n), MaskRatio().dropped(n)
    assert dropped == math.ceil(n / 2)
    masked, visible = masked_positions(noise, torch.tensor(ratio), dropped)
    count = math.ceil(n * torch.tensor(ratio))
    for i in range(5):
        order = noise[i].argsort()
        assert set(masked[i].nonzero()[:, 0].tolist()) == set(order[:count].tolist())
        assert visible[i].tolist() == sorted(order[dropped:].tolist())
    assert bool(masked.scatter(1, visible, True).all())  # positions that are not visible are masked


def test_equal_noise_gives_the_same_counts_and_each_example_has_its_ratio():
    masked, visible = masked_positions(torch.zeros(2, 8), torch.tensor([[0.5], [1.0]]), 4)
    assert masked.sum(1).tolist() == [4, 8]
    assert visible.shape == (2, 4)
    # 0.07 * 100 is slightly more than 7 in Python and 7 in float32: all dropped tokens are masked nevertheless
    ratio = MaskRatio(0.07, 0.01, 0.07, 0.2)
    masked, _ = masked_positions(torch.rand(2, 100), ratio(torch.tensor(0.0)), ratio.dropped(100))
    assert masked.sum(1).tolist() == [ratio.dropped(100)] * 2


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_is_smoothed_and_uses_masked_tokens_only():
    torch.manual_seed(0)
    logits, tokens = torch.randn(3, 6, 5), torch.randint(5, (3, 6))
    masked = torch.rand(3, 6) < 0.5
    masked[:, 0] = True
    log_p = logits.log_softmax(-1)
    errors = 0.9 * F.nll_loss(log_p.transpose(1, 2), tokens, reduction="none") - 0.1 * log_p.mean(-1)
    expected = torch.stack([errors[i][masked[i]].mean() for i in range(3)])
    torch.testing.assert_close(masked_cross_entropy(logits, tokens, masked), expected)
    changed = torch.where(masked[:, :, None], logits, 100 * torch.randn(3, 6, 5))  # at positions that are not masked
    torch.testing.assert_close(masked_cross_entropy(changed, tokens, masked), expected)
    unsmoothed = masked_cross_entropy(logits.bfloat16(), tokens, masked, smoothing=0.0)
    assert unsmoothed.dtype == torch.float32


# -- decoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "steps"), [(256, 20), (256, 1), (16, 8), (4, 20), (1, 3)])
def test_fewer_are_masked_after_each_step(tokens, steps):
    counts = mask_schedule(tokens, steps)
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
    assert remask(confidence, masked, 1).tolist() == [[True, False, False, False], [True, False, False, False]]
    assert remask(confidence, masked, 2).tolist() == [[True, False, True, False], [True, True, False, False]]
    assert torch.equal(remask(confidence, masked, 3), masked)


def decode(logits, seeds, steps=4, temperature=1.0):
    """Decode from logits (N, K) that do not depend on the known tokens."""
    rounds = []

    def predict(tokens, masked, progress):
        rounds.append((tokens, masked, progress))
        return logits.expand(len(tokens), -1, -1)

    noise = SeededDecodingNoise(SeededNoise(seeds))
    return ParallelDecoding(steps, temperature).run(predict, noise, logits.shape[0]), rounds


def test_tokens_follow_the_networks_distribution():
    """In one step nothing is masked again, so every position is sampled once."""
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, -1.0]])
    tokens, _ = decode(logits, torch.arange(20_000), steps=1)
    for position in range(2):
        shares = torch.bincount(tokens[:, position], minlength=3) / 20_000
        torch.testing.assert_close(shares, logits[position].softmax(0), rtol=0, atol=0.015)
    joint = torch.bincount(3 * tokens[:, 0] + tokens[:, 1], minlength=9).view(3, 3) / 20_000
    independent = logits[0].softmax(0)[:, None] * logits[1].softmax(0)
    torch.testing.assert_close(joint, independent, rtol=0, atol=0.015)


def test_a_sample_depends_on_its_seed_only():
    logits = torch.randn(9, 5)
    batch, _ = decode(logits, torch.arange(6))
    alone, _ = decode(logits, torch.tensor([4]))
    assert torch.equal(alone, batch[4:5])
    assert len(batch.unique(dim=0)) == 6


def test_known_tokens_stay_and_progress_ends_at_one():
    _, rounds = decode(torch.randn(16, 5), torch.arange(3))
    assert [progress for *_, progress in rounds] == [0.25, 0.5, 0.75, 1.0]
    assert [masked.sum(1).tolist() for _, masked, _ in rounds] == [[n] * 3 for n in (16, *mask_schedule(16, 4)[:-1])]
    for (tokens, masked, _), (later, _, _) in pairwise(rounds[1:]):
        assert torch.equal(tokens[~masked], later[~masked])


def test_at_temperature_0_the_most_confident_tokens_stay():
    """At a high temperature any token may stay."""
    logits = torch.zeros(16, 4)
    logits[:8, 0] = 20.0  # almost certain
    _, (_, (_, masked, _)) = decode(logits, torch.arange(64), steps=2, temperature=0.0)
    known = ~masked
    assert known.sum(1).tolist() == [16 - mask_schedule(16, 2)[0]] * 64
    assert not known[:, 8:].any()
    _, (_, (_, masked, _)) = decode(logits, torch.arange(64), steps=2, temperature=50.0)
    assert bool((~masked)[:, 8:].any())


def test_impossible_settings_are_rejected():
    with pytest.raises(UserError, match="steps should be"):
        ParallelDecoding(0)
    with pytest.raises(UserError, match="temperature"):
        ParallelDecoding(4, -1.0)
