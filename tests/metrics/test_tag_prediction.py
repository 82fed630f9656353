"""Tags predicted for images, against counts by hand."""

import pytest
import torch
from sklearn.metrics import average_precision_score

from rcg_lightning.errors import UserError
from rcg_lightning.metrics.tag_prediction import frequencies, metrics, neighbours_vote, vote

WORDS = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]])  # lengths do not matter


def test_each_sample_votes_for_its_nearest_words():
    samples = torch.tensor([[[9.0, 1.0], [1.0, 0.1], [0.1, 1.0]], [[-1.0, 0.1], [-1.0, 0.2], [-3.0, 0.1]]])
    assert vote(samples, WORDS, 1).floor().tolist() == [[2, 1, 0], [0, 0, 3]]
    assert vote(samples, WORDS, 2).floor().tolist() == [[3, 3, 0], [0, 3, 3]]
    ties = vote(samples, WORDS, 2)
    assert ties[0, 0] > ties[0, 1]  # the mean cosine decides
    assert ties[1, 2] > ties[1, 1]
    with pytest.raises(UserError, match="4 nearest words"):
        vote(samples, WORDS, 4)


def test_votes_do_not_depend_on_the_chunk_size(monkeypatch):
    torch.manual_seed(0)
    samples, words = torch.randn(7, 5, 4), torch.randn(11, 4)
    whole = vote(samples, words, 3)
    monkeypatch.setattr("rcg_lightning.metrics.tag_prediction._CHUNK", 2 * 5 * 11)
    assert torch.equal(vote(samples, words, 3), whole)


def test_metrics_by_hand():
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    truth = torch.tensor([[True, False, True, False], [True, False, False, False]])
    found = metrics(scores, truth, 2)
    assert found == {"precision@2": 0.25, "recall@2": 0.25, "map": pytest.approx(((1 + 2 / 3) / 2 + 1 / 4) / 2)}
    same = metrics(scores[0], truth, 2)
    assert same == {"precision@2": 0.5, "recall@2": 0.75, "map": pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)}
    assert metrics(truth.double(), truth, 2)["map"] == 1
    with pytest.raises(UserError, match="5 words"):
        metrics(scores, truth, 5)
    with pytest.raises(UserError, match="at least one tag"):
        metrics(scores, torch.zeros_like(truth), 2)


def test_average_precision_equals_scikit_learns():
    torch.manual_seed(1)
    scores, truth = torch.rand(20, 30), torch.rand(20, 30) < 0.2
    truth[:, 0] = True
    expected = [average_precision_score(t.numpy(), s.numpy()) for s, t in zip(scores, truth)]
    assert metrics(scores, truth, 5)["map"] == pytest.approx(sum(expected) / 20)


def test_predictions_without_a_generator():
    has = torch.tensor([[True, True, False], [True, False, False], [False, False, True], [True, False, True]])
    assert frequencies(has).tolist() == [3, 1, 2]
    training = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    found = neighbours_vote(torch.tensor([[5.0, 0.1], [0.1, 9.0]]), training, has, 2)
    assert found.floor().tolist() == [[2, 1, 0], [1, 0, 2]]
    assert neighbours_vote(training[:1], training, has, 1)[0].argsort(descending=True).tolist() == [0, 1, 2]
