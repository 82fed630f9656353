"""Losses of a codebook, its moving averages, and the replacement of unused codes."""

import pytest
import torch
from torch import nn

from rcg_lightning.errors import UserError
from rcg_lightning.stages.codebook import CodebookTraining, EMACodebook, perplexity


def outputs_of(codes, n=40, spread=0.01):
    """Encoder outputs near the first two codes, and the index of the nearest code of each."""
    indices = torch.arange(n) % 2
    return codes[indices].detach() + spread * torch.randn(n, codes.shape[1]), indices


@pytest.fixture
def codes():
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(6, 3))


def test_each_loss_term_pulls_one_side(codes):
    training = CodebookTraining(commitment=0.5)
    training.build(codes)
    outputs = torch.randn(4, 3, requires_grad=True)
    chosen = codes[torch.tensor([0, 1, 1, 2])]
    terms = training.losses(outputs, chosen)
    error = float((outputs - chosen).square().mean())
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(
        {"commitment": error / 2, "codebook": error}
    )
    (gradient,) = torch.autograd.grad(terms["commitment"], outputs, retain_graph=True)
    torch.testing.assert_close(gradient, (outputs - chosen).detach() / outputs.numel())
    assert torch.autograd.grad(terms["commitment"], codes, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(terms["codebook"], outputs, allow_unused=True) == (None,)


def test_unused_codes_are_replaced_by_outputs(codes):
    training = CodebookTraining(patience=3)
    training.build(codes)
    before = codes.detach().clone()
    for step in range(2, 7):
        outputs, indices = outputs_of(codes)
        training.observe(outputs, indices)
        training.after_step(codes, step)
        if step == 2:
            assert torch.equal(codes, before)  # not due yet
        if step == 3:
            assert torch.equal(codes[:2], before[:2])
            distances = torch.cdist(codes[2:], outputs)
            assert (distances.min(1).values == 0).all()
            assert len(set(distances.argmin(1).tolist())) == 4  # four different ones
            replaced = codes.detach().clone()
    assert not torch.equal(codes[2:], replaced[2:])  # and again at step 6
    assert float(training.counts.sum()) == 0


def test_all_unused_codes_are_replaced_after_the_first_step(codes):
    training = CodebookTraining(patience=100)
    training.build(codes)
    before = codes.detach().clone()
    training.observe(*outputs_of(codes))
    training.after_step(codes, 1)
    assert torch.equal(codes[:2], before[:2])
    assert not (codes[2:] == before[2:]).any()


def test_fewer_outputs_than_codes_and_no_patience(codes):
    training = CodebookTraining(patience=1)
    training.build(codes)
    training.observe(*outputs_of(codes, n=2))
    training.after_step(codes, 1)
    assert torch.isfinite(codes).all()
    training = CodebookTraining(patience=None)
    training.build(codes)
    before = codes.detach().clone()
    training.observe(*outputs_of(codes))
    training.after_step(codes, 1)
    assert torch.equal(codes, before)
    with pytest.raises(UserError, match="patience"):
        CodebookTraining(patience=0)


def test_an_ema_code_is_the_mean_of_its_outputs(codes):
    training = EMACodebook(decay=0.9, patience=None)
    training.build(codes)
    assert not codes.requires_grad
    assert training.losses(torch.randn(2, 3), codes[:2]).keys() == {"commitment"}
    start = codes.detach().clone()
    ema_counts, ema_sums = torch.ones(6), start.clone()
    for step in range(1, 4):
        parts = [outputs_of(start, n=10, spread=0.3) for _ in range(2)]
        for outputs, indices in parts:
            training.observe(outputs, indices)
        training.after_step(codes, step)
        outputs, indices = (torch.cat(pair) for pair in zip(*parts))
        one_hot = nn.functional.one_hot(indices, 6).float()
        ema_counts = 0.9 * ema_counts + 0.1 * one_hot.sum(0)
        ema_sums = 0.9 * ema_sums + 0.1 * one_hot.T @ outputs
    torch.testing.assert_close(codes.detach(), ema_sums / ema_counts[:, None])
    torch.testing.assert_close(codes[2:].detach(), start[2:])  # no output was assigned to these


def test_a_replaced_ema_code_stays_while_unused(codes):
    training = EMACodebook(decay=0.5, patience=1)
    training.build(codes)
    outputs, indices = outputs_of(codes)
    training.observe(outputs, indices)
    training.after_step(codes, 1)
    replaced = codes[2:].detach().clone()
    training.patience = None
    training.observe(*outputs_of(codes))
    training.after_step(codes, 2)
    torch.testing.assert_close(codes[2:].detach(), replaced)


def test_perplexity_counts_equally_used_codes():
    assert float(perplexity(torch.tensor([3.0, 3.0, 0.0, 3.0]))) == pytest.approx(3)
    assert float(perplexity(torch.tensor([0.0, 9.0]))) == pytest.approx(1)
