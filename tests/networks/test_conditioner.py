import pytest
import torch

from rcg_lightning.config import construct, describe
from rcg_lightning.errors import UserError
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.types import Classes, Vector

PARTS = {
    "class": ((Classes(5),), (torch.tensor([0, 4, 2, 2]),)),
    "vector": ((Vector(3),), (torch.randn(4, 3),)),
    "joint": ((Vector(3), Classes(5)), (torch.randn(4, 3), torch.tensor([0, 4, 2, 2]))),
}


def build(kind, **settings):
    conditioner = Conditioner(**settings)
    parts, raw = PARTS[kind]
    assert conditioner.build(parts, 6) == (settings.get("dim") or 6)
    return conditioner, raw


def test_without_a_condition_the_embedding_is_empty():
    conditioner = Conditioner()
    assert conditioner.build((), 6) == 0
    assert conditioner((), 3).shape == (3, 0)
    assert not list(conditioner.parameters())
    with pytest.raises(UserError, match="has no condition"):
        conditioner.null(3)


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("dim", [None, 10])
def test_each_example_has_an_embedding(kind, dim):
    conditioner, raw = build(kind, dim=dim)
    conditioner.eval()
    c = conditioner(raw, 4)
    assert c.shape == (4, dim or 6)
    torch.testing.assert_close(conditioner(tuple(part[1:2] for part in raw), 1), c[1:2])
    assert conditioner.null(4).shape == c.shape


def test_parts_are_added():
    conditioner, raw = build("joint")
    conditioner.eval()
    expected = sum(embed(part, None) for embed, part in zip(conditioner.parts, raw))
    torch.testing.assert_close(conditioner(raw, 4), expected)


@pytest.mark.parametrize("kind", PARTS)
def test_the_whole_condition_is_dropped_in_training_only(kind):
    conditioner, raw = build(kind, drop=0.3)
    many = tuple(part[:1].repeat(4000, *[1] * (part.ndim - 1)) for part in raw)
    null, cond = conditioner.null(1), conditioner.eval()(many, 4000)[:1]
    assert not torch.allclose(null, cond)
    torch.manual_seed(0)
    c = conditioner.train()(many, 4000)
    is_null = (c - null).abs().amax(1) < 1e-6
    is_cond = (c - cond).abs().amax(1) < 1e-6
    assert bool((is_null ^ is_cond).all())  # never one part without the other
    assert float(is_null.float().mean()) == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(conditioner.eval()(many, 4000), cond.expand(4000, -1))


@pytest.mark.parametrize("kind", PARTS)
def test_without_drop_there_is_no_null(kind):
    conditioner, raw = build(kind, drop=0.0)
    torch.testing.assert_close(conditioner.train()(raw, 4), conditioner.eval()(raw, 4))
    with pytest.raises(UserError, match="cannot be guided"):
        conditioner.null(4)
    sizes = {name: tuple(p.shape) for name, p in conditioner.named_parameters()}
    if kind == "class":
        assert sizes == {"parts.0.table.weight": (5, 6)}
    if kind == "vector":
        assert sizes == {"parts.0.linear.weight": (6, 3), "parts.0.linear.bias": (6,)}


def test_null_is_an_additional_row_for_classes_and_a_projected_vector_for_vectors():
    table = build("class")[0]
    assert table.parts[0].table.weight.shape == (6, 6)
    torch.testing.assert_close(table.null(2), table.parts[0].table.weight[5:].expand(2, -1))
    vector = build("vector")[0]
    torch.testing.assert_close(vector.null(1), vector.parts[0].linear(vector.parts[0].fake))


def test_noise_is_added_to_vectors_in_training_only():
    conditioner, raw = build("joint", drop=0.0, noise=0.5)
    noiseless = conditioner.eval()(raw, 4)
    torch.testing.assert_close(conditioner.eval()(raw, 4), noiseless)
    many = tuple(part[:1].repeat(5000, *[1] * (part.ndim - 1)) for part in raw)
    torch.manual_seed(0)
    change = conditioner.train()(many, 5000) - noiseless[:1]
    weight = conditioner.parts[0].linear.weight
    torch.testing.assert_close(change.T.cov(), 0.25 * weight @ weight.T, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("kind", PARTS)
def test_every_parameter_gets_a_gradient(kind):
    conditioner, raw = build(kind, drop=0.5)
    torch.manual_seed(1)
    conditioner.train()(raw, 4).sum().backward()
    assert all(p.grad is not None for p in conditioner.parameters())


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_without_projection_a_vector_is_unchanged(drop):
    conditioner = Conditioner(drop=drop, project=False)
    (part,), (vector,) = PARTS["vector"]
    assert conditioner.build((part,), 6) == 3
    torch.testing.assert_close(conditioner.eval()((vector,), 4), vector)
    assert sum(p.numel() for p in conditioner.parameters()) == (3 if drop else 0)
    if drop:
        torch.manual_seed(1)
        c = conditioner.train()((vector,), 4)
        is_cond = (c == vector).all(1)
        assert 0 < int(is_cond.sum()) < 4
        torch.testing.assert_close(c[~is_cond], conditioner.null(4)[~is_cond])


def test_without_projection_all_parts_have_the_width_of_the_vector():
    parts, raw = PARTS["joint"]
    conditioner = Conditioner(drop=0.0, project=False)
    assert conditioner.build(parts, 6) == 3
    torch.testing.assert_close(conditioner(raw, 4), raw[0] + conditioner.parts[1].table(raw[1]))
    assert Conditioner(project=False).build(PARTS["class"][0], 6) == 6
    for settings, parts in (({"dim": 5}, (Vector(3),)), ({}, (Vector(3), Vector(4)))):
        with pytest.raises(UserError, match="without projection"):
            Conditioner(project=False, **settings).build(parts, 6)


def test_a_projection_may_start_at_zero():
    conditioner, raw = build("vector", drop=0.0, zero_start=True)
    assert float(conditioner(raw, 4).detach().abs().max()) == 0
    with pytest.raises(UserError, match="needs a projection"):
        Conditioner(project=False, zero_start=True)


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_parts_with_their_own_widths_are_concatenated(drop):
    conditioner = Conditioner(dim=[4, 7], drop=drop)
    parts, raw = PARTS["joint"]
    assert conditioner.build(parts, 6) == 11
    c = conditioner.eval()(raw, 4)
    torch.testing.assert_close(c[:, :4], conditioner.parts[0](raw[0], None))
    torch.testing.assert_close(c[:, 4:], conditioner.parts[1](raw[1], None))
    if drop:
        assert conditioner.null(2).shape == (2, 11)
    rebuilt = construct(describe(conditioner))
    assert rebuilt.build(parts, 6) == 11
    assert Conditioner(dim=[4, 7]).build((), 6) == 0


def test_widths_that_do_not_fit_the_parts_are_rejected():
    parts, _ = PARTS["joint"]
    with pytest.raises(UserError, match="1 widths"):
        Conditioner(dim=[4]).build(parts, 6)
    with pytest.raises(UserError, match="keeps its width"):
        Conditioner(dim=[4, 7], project=False).build(parts, 6)
    assert Conditioner(dim=[3, 7], project=False).build(parts, 6) == 10
