import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rcg_lightning.core.adversarial import (
    Hinge,
    LeCam,
    Logistic,
    Minimax,
    PathLength,
    accuracy,
    adaptive_weight,
    gradient_penalty,
    mean_distance,
    path_lengths,
)
from rcg_lightning.errors import UserError

REAL, FAKE = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([[-3.0, 0.25]])


def test_hinge_ignores_logits_beyond_the_margin():
    assert float(Hinge().discriminator(REAL, FAKE)) == pytest.approx((0 + 2 + 0.5) / 3 + (0 + 1.25) / 2)
    assert float(Hinge().generator(FAKE)) == pytest.approx(2.75 / 2)


@pytest.mark.parametrize("target", [1.0, 0.9])
def test_logistic_is_binary_cross_entropy(target):
    loss = Logistic(target)
    real_loss = F.binary_cross_entropy_with_logits(REAL, torch.full_like(REAL, target))
    fake_loss = F.binary_cross_entropy_with_logits(FAKE, torch.zeros_like(FAKE))
    assert float(loss.discriminator(REAL, FAKE)) == pytest.approx(float(real_loss + fake_loss))
    generator_loss = F.binary_cross_entropy_with_logits(FAKE, torch.ones_like(FAKE))
    assert float(loss.generator(FAKE)) == pytest.approx(float(generator_loss))


def test_minimax_is_the_original_value_function():
    assert float(Minimax().generator(FAKE)) == pytest.approx(float(torch.log(1 - FAKE.sigmoid()).mean()), rel=1e-5)
    assert float(Minimax().discriminator(REAL, FAKE)) == pytest.approx(float(Logistic().discriminator(REAL, FAKE)))
    with pytest.raises(UserError, match="real_target"):
        Logistic(0.1)


@pytest.mark.parametrize("loss", [Hinge(), Logistic(), Minimax()])
def test_gradients_have_the_right_sign(loss):
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    loss.discriminator(real, fake).backward()
    assert (real.grad < 0).all()  # an update raises real logits
    assert (fake.grad > 0).all()
    fake.grad = None
    loss.generator(fake).backward()
    assert (fake.grad < 0).all()


def test_accuracy_counts_logits_of_the_right_sign():
    assert float(accuracy(REAL, True)) == pytest.approx(2 / 3)
    assert float(accuracy(FAKE, False)) == 0.5


def test_the_gradient_penalty_of_a_known_function():
    x = torch.randn(5, 3, 2, requires_grad=True)
    a = torch.randn(6)
    penalty = gradient_penalty(x.flatten(1) @ a, x)
    assert float(penalty) == pytest.approx(float(a.square().sum()), rel=1e-5)
    weight = torch.ones((), requires_grad=True)
    gradient_penalty(weight * x.flatten(1).square().sum(1), x).backward()  # the penalty is differentiable
    assert float(weight.grad) == pytest.approx(float(8 * x.detach().square().flatten(1).sum(1).mean()), rel=1e-4)


def test_path_lengths_of_a_linear_generator():
    torch.manual_seed(0)
    styles = torch.randn(3, 2, 4, requires_grad=True)
    matrix = torch.randn(4, 25)
    images = (styles.sum(1) @ matrix).view(3, 1, 5, 5)
    torch.manual_seed(1)
    lengths = path_lengths(images, styles)
    torch.manual_seed(1)
    direction = torch.randn(3, 25) / 5
    torch.testing.assert_close(lengths, (direction @ matrix.T).norm(dim=1))  # the same for both layers
    penalty = PathLength(2.0, every=4)
    assert [step for step in range(9) if penalty.due(step)] == [0, 4, 8]
    assert float(penalty(lengths, lengths[0])) == pytest.approx(8 * float((lengths - lengths[0]).square().mean()))


def test_lecam_compares_logits_with_the_mean_of_the_other_kind():
    means = torch.tensor([1.0, -1.0])
    expected = 0.5 * ((9 + 0 + 1.5**2) / 3 + (16 + 0.75**2) / 2)
    assert float(LeCam(0.5)(REAL, FAKE, means)) == pytest.approx(expected)


def test_the_adaptive_weight_makes_gradients_equal():
    torch.manual_seed(0)
    last = nn.Linear(4, 4, bias=False).weight
    x = torch.randn(8, 4)
    reconstruction, adversarial = (x @ last.T).square().mean(), 1e-2 * (x @ last.T).sin().sum()
    weight = adaptive_weight(reconstruction, adversarial, last)
    assert not weight.requires_grad
    norms = [torch.autograd.grad(loss, last)[0].norm() for loss in (reconstruction, weight * adversarial)]
    assert float(norms[0]) == pytest.approx(float(norms[1]), rel=1e-2)
    assert last.grad is None


def test_the_adaptive_weight_is_bounded():
    last = torch.ones(3, requires_grad=True)
    assert float(adaptive_weight(1e6 * last.sum(), 0 * last.sum(), last)) == 1e4

    def double_the_first(gradients):
        torch._foreach_mul_(gradients[:1], 2)

    doubled = adaptive_weight(last.sum(), last.sum(), last, average=double_the_first)
    assert float(doubled) == pytest.approx(2, rel=1e-3)


def test_the_mean_distance_of_known_points():
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert float(mean_distance(points)) == pytest.approx((5 + 0 + 5) / 3 / math.sqrt(2))
    assert float(mean_distance(torch.ones(4, 1, 2, 2))) == 0
