import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from rcg_lightning.errors import UserError
from rcg_lightning.metrics.probes import LinearProbe, probe


def classes(count, seed, distance=2.0, dim=6):
    """Three overlapping classes, with one constant feature."""
    generator = torch.Generator().manual_seed(seed)
    centres = distance * torch.randn(3, dim, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(0, 3, (count,), generator=generator)
    rows = centres[labels] + 2 * torch.randn(count, dim, generator=generator)
    return torch.cat([rows, torch.ones(count, 1)], dim=1), labels


def test_the_linear_probe_equals_scikit_learns():
    (train, labels), (evaluation, _) = classes(400, 0), classes(300, 1)
    ours = LinearProbe(train, labels)
    scaler = StandardScaler().fit(train)
    theirs = LogisticRegression(C=1.0, max_iter=1000, tol=1e-8).fit(scaler.transform(train), labels)
    weight = ours.weight.detach().numpy()
    np.testing.assert_allclose(weight, theirs.coef_, atol=2e-3)
    assert (ours(evaluation).numpy() == theirs.predict(scaler.transform(evaluation))).mean() > 0.99


def test_a_probe_is_complete_and_reproducible():
    (train, labels), (evaluation, truth) = classes(400, 0), classes(300, 1)
    found = probe(train, labels, evaluation, truth)
    assert found == probe(train, labels, evaluation, truth)
    assert found.keys() == {"uniformity", "effective_rank", "knn_accuracy", "linear_accuracy"}
    assert 0.5 < found["knn_accuracy"] < 1
    assert 0.5 < found["linear_accuracy"] < 1
    assert probe(*classes(400, 0, 20.0), *classes(300, 1, 20.0))["linear_accuracy"] == 1.0
    assert probe(train, None, evaluation, None).keys() == {"uniformity", "effective_rank"}


def test_probes_separate_collapsed_representations_from_spread_ones():
    spread = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    line = torch.ones(500, 32) + 0.01 * spread[:, :1]
    good, bad = (probe(rows, None, rows, None) for rows in (spread, line))
    assert good["effective_rank"] > 28
    assert bad["effective_rank"] < 1.5
    assert good["uniformity"] < -3 < bad["uniformity"] == pytest.approx(0, abs=0.01)


def test_broken_representations_are_rejected():
    rows = torch.randn(10, 4)
    with pytest.raises(UserError, match="NaN"):
        probe(torch.full((10, 4), float("nan")), None, rows, None)
    with pytest.raises(UserError, match="9 labels"):
        LinearProbe(rows, torch.zeros(9, dtype=torch.int64))
