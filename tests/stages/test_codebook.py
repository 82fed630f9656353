import pytest
import torch
from torch import nn

from rcg_lightning.errors import UserError
from rcg_lightning.stages.codebook import CodebookTraining, EMACodebook, perplexity


def outputs_of(codes, n=40, spread=0.01):
    """Encoder outputs around the first two of the codes, and which one each is nearest to."""
    indices = torch.arange(n) % 2
    return codes[indices].detach() + spread * torch.randn(n, codes.shape[1]), indices


@pytest.fixture
def codes():
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(6, 3))


def test_both_sides_are_drawn_together(codes):
    training = CodebookTraining(commitment=0.5)
    training.build(codes)
    outputs = torch.randn(4, 3, requires_grad=True)
    chosen = codes[torch.tensor([0, 1, 1, 2])]
    terms = training.losses(outputs, chosen)
    error = float((outputs - chosen).square().mean())
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(
        {"commitment": error / 2, "codebook": error}
    )
    (pull,) = torch.autograd.grad(terms["commitment"], outputs, retain_graph=True)
    torch.testing.assert_close(pull, (outputs - chosen).detach() / outputs.numel())
    assert torch.autograd.grad(terms["commitment"], codes, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(terms["codebook"], outputs, allow_unused=True) == (None,)


def test_unused_codes_come_back_where_outputs_are(codes):
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
            back = codes.detach().clone()
    assert not torch.equal(codes[2:], back[2:])  # and again at step 6
    assert float(training.counts.sum()) == 0


def test_all_unused_codes_move_after_the_first_step(codes):
    training = CodebookTraining(patience=100)
    training.build(codes)
    before = codes.detach().clone()
    training.observe(*outputs_of(codes))
    training.after_step(codes, 1)
    assert torch.equal(codes[:2], before[:2])
    assert not (codes[2:] == before[2:]).any()


def test_there_may_be_fewer_outputs_than_codes_and_no_patience(codes):
    training = CodebookTraining(patience=1)
    training.build(codes)
    training.observe(*outputs_of(codes, n=2))
    training.after_step(codes, 1)
    assert torch.isfinite(codes).all()
    still = CodebookTraining(patience=None)
    still.build(codes)
    before = codes.detach().clone()
    still.observe(*outputs_of(codes))
    still.after_step(codes, 1)
    assert torch.equal(codes, before)
    with pytest.raises(UserError, match="patience"):
        CodebookTraining(patience=0)


def test_an_averaged_code_is_the_mean_of_what_chose_it(codes):
    training = EMACodebook(decay=0.9, patience=None)
    training.build(codes)
    assert not codes.requires_grad
    assert training.losses(torch.randn(2, 3), codes[:2]).keys() == {"commitment"}
    start = codes.detach().clone()
    masses, sums = torch.ones(6), start.clone()
    for step in range(1, 4):
        parts = [outputs_of(start, n=10, spread=0.3) for _ in range(2)]
        for outputs, indices in parts:
            training.observe(outputs, indices)
        training.after_step(codes, step)
        outputs, indices = (torch.cat(pair) for pair in zip(*parts))
        chose = nn.functional.one_hot(indices, 6).float()
        masses = 0.9 * masses + 0.1 * chose.sum(0)
        sums = 0.9 * sums + 0.1 * chose.T @ outputs
    torch.testing.assert_close(codes.detach(), sums / masses[:, None])
    torch.testing.assert_close(codes[2:].detach(), start[2:])  # nobody chose these


def test_an_averaged_code_that_came_back_stays_near(codes):
    training = EMACodebook(decay=0.5, patience=1)
    training.build(codes)
    outputs, indices = outputs_of(codes)
    training.observe(outputs, indices)
    training.after_step(codes, 1)
    back = codes[2:].detach().clone()
    training.patience = None
    training.observe(*outputs_of(codes))
    training.after_step(codes, 2)
    torch.testing.assert_close(codes[2:].detach(), back)


def test_perplexity_counts_codes_in_equal_use():
    assert float(perplexity(torch.tensor([3.0, 3.0, 0.0, 3.0]))) == pytest.approx(3)
    assert float(perplexity(torch.tensor([0.0, 9.0]))) == pytest.approx(1)
