"""rep-FD of generated representations, and its reference value for real ones."""

import numpy as np
import pytest
import torch

from rcg_lightning.core.frechet import frechet_distance, moments
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.errors import UserError
from rcg_lightning.metrics.fid import Moments
from rcg_lightning.metrics.representation_distance import (
    RealRepresentations,
    RepresentationScorer,
    representation_distances,
)


def store(folder, rows, column="representation"):
    writer = StoreWriter(
        folder, len(rows), 1, 700, {"dataset": "d", "split": "train", "transform": "as is", column: "e"}
    )
    for shard in writer.pending():
        writer.write(shard, {column: rows[shard.start : shard.stop, None].numpy()})
    writer.finish()
    return Store.open(folder)


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2000, 8, generator=generator), torch.randn(500, 8, generator=generator)


@pytest.fixture
def real(rows, tmp_path):
    train, evaluation = rows
    return RealRepresentations(store(tmp_path / "train", train), store(tmp_path / "eval", evaluation))


def distance(one, other):
    return frechet_distance(*moments(one), *moments(other)).item()


def scored(real, generated):
    scorer = RepresentationScorer(real)
    for part in generated.split(33):
        scorer.update(part)
    return scorer.compute()


def test_the_reference_value_is_that_of_as_many_real_representations(rows, real):
    train, evaluation = rows
    few, many = (scored(real, part) for part in (evaluation[:50] + 1, evaluation + 1))
    assert few["rep_fd_of_real"] > many["rep_fd_of_real"] > 0  # it falls with the number
    assert many["rep_fd"] == pytest.approx(distance(evaluation + 1, train), rel=1e-9)
    assert many["rep_fd"] == pytest.approx(8, rel=0.1)
    assert many["rep_fd_eval"] == pytest.approx(8, rel=0.1)
    assert many["rep_fd_of_real_eval"] == few["rep_fd_of_real_eval"]
    assert many["rep_fd_of_real_eval"] == pytest.approx(distance(train, evaluation), rel=1e-9)
    perfect = scored(real, evaluation)
    assert perfect["rep_fd"] < 2 * perfect["rep_fd_of_real"] < 0.05 * many["rep_fd"]


def test_names_contain_encoder_number_and_reference(rows, real):
    scorer = RepresentationScorer(real)
    scorer.update(rows[1])
    assert scorer.full_names(scorer.compute(), 500).keys() == {
        "rep_fd/encoder_500_train",
        "rep_fd_of_real/encoder_500_train",
        "rep_fd/encoder_500_eval",
        "rep_fd_of_real/encoder_500_eval",
    }
    scorer.reset()
    scorer.update(rows[1][:1])
    with pytest.raises(UserError, match="at least 2"):
        scorer.compute()


def test_a_subset_of_a_store_is_evenly_spread(rows, tmp_path):
    real = RealRepresentations(store(tmp_path / "train", rows[0]), max_count=100)
    assert real.count == 100
    assert np.array_equal(real.index, np.arange(100) * 20)
    found = representation_distances(Moments(*moments(rows[1]), 500), real)
    assert found.keys() == {"rep_fd", "rep_fd_of_real"}
    assert found["rep_fd"] == pytest.approx(distance(rows[1], rows[0][::20]), rel=1e-9)
    with pytest.raises(UserError, match="no representations"):
        RealRepresentations(store(tmp_path / "other", rows[0], "latent"))
