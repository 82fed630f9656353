"""Verdicts depend on the references of the same run only."""

import pytest

from rcg_lightning.evaluation.verdict import (
    Representation,
    SampleMetrics,
    Verdict,
    encoder_verdict,
    generator_verdict,
    position,
    proportion_bounds,
    rdm_verdict,
    tokenizer_verdict,
    verdict_text,
)

COMPONENTS, UNTRAINED = Representation(20, -2.5, 0.4), Representation(12, -1.0, 0.3)


@pytest.mark.parametrize(
    ("encoder", "grade", "advice"),
    [
        (Representation(25, -3.0, 0.9), "good", ""),
        (COMPONENTS, "usable", "no better than its baselines"),
        (Representation(25, -3.0, 0.42), "usable", "no better"),  # within the noise of 1000 images
        (Representation(1.2, -0.1, 0.9), "broken", "collapsed"),
        (Representation(2.9, -3.0, 0.9), "broken", "collapsed"),  # less than a quarter of both references
        (Representation(25, -3.0, 0.1), "broken", "worse than an untrained"),
    ],
)
def test_an_encoder_is_compared_with_its_baselines(encoder, grade, advice):
    verdict = encoder_verdict(encoder, COMPONENTS, UNTRAINED, 1000)
    assert verdict.grade == grade
    assert advice in verdict.advice
    assert bool(verdict.advice) == (grade != "good")


def test_a_perfect_encoder_is_good_where_its_baselines_are_perfect_too():
    perfect = Representation(20, -2.5, 1.0)
    assert encoder_verdict(perfect, perfect, perfect, 1000).grade == "good"


def test_principal_components_are_not_to_be_trained_longer():
    verdict = encoder_verdict(COMPONENTS, COMPONENTS, UNTRAINED, 1000, is_baseline=True)
    assert (verdict.grade, "longer" in verdict.advice) == ("usable", False)


@pytest.mark.parametrize(
    ("rfd", "psnr", "codes", "grade", "advice"),
    [
        (0.5, 25, (900, 1024), "good", ""),
        (0.5, 25, None, "good", ""),
        (2.0, 25, (900, 1024), "usable", "limit the samples"),
        (0.5, 25, (300, 1024), "usable", "unused"),
        (0.5, 25, (20, 1024), "broken", "collapsed"),
        (50.0, 10.5, (900, 1024), "broken", "hardly reconstructs"),
    ],
)
def test_a_tokenizer_is_compared_with_real_images_and_the_mean_image(rfd, psnr, codes, grade, advice):
    verdict = tokenizer_verdict(rfd, 1.0, psnr, 10.0, codes)
    assert (verdict.grade, advice in verdict.advice) == (grade, True)


@pytest.mark.parametrize(("fd", "grade"), [(0.18, "good"), (0.34, "good"), (0.5, "good"), (3, "usable"), (9, "broken")])
def test_an_rdm_lies_between_real_representations_and_noise(fd, grade):
    verdict = rdm_verdict(fd, 0.18, 10.0, 1000)
    assert verdict.grade == grade
    # other data with another scale: the verdict is the same
    assert rdm_verdict(1000 * fd, 180, 10_000, 1000).grade == grade


REAL = SampleMetrics(0.1, 0.9, 0.9, 10, 1000)


@pytest.mark.parametrize(
    ("samples", "grade", "advice"),
    [
        (SampleMetrics(0.2, 0.85, 0.8, 12, 1000), "good", ""),
        (SampleMetrics(3.0, 0.85, 0.8, 12, 1000), "usable", "train it longer"),
        (SampleMetrics(8.0, 0.85, 0.8, 12, 1000), "usable", "train it longer"),  # most lie among the images
        (SampleMetrics(8.0, 0.3, 0.8, 12, 1000), "broken", "closer to noise"),
        (SampleMetrics(8.0), "broken", "closer to noise"),
        (SampleMetrics(0.2, 0.3, 0.8, 12, 1000), "usable", "outside of the data"),
        (SampleMetrics(0.2, 0.95, 0.2, 12, 1000), "usable", "a part of the data"),
        (SampleMetrics(0.2, 0.95, 0.0, 12, 1000), "broken", "a part of the data"),
        (SampleMetrics(0.2, 0.95, 0.9, 80, 1000), "usable", "copies training images"),
        (SampleMetrics(0.2, 0.95, 0.9, 4, 50), "good", ""),  # 8 % of 50 may be 1 %
        (SampleMetrics(0.2, 0.95, 0.9, 700, 1000), "broken", "are copies"),
        (SampleMetrics(0.2), "good", ""),
        (SampleMetrics(float("nan")), "broken", "closer to noise"),
    ],
)
def test_a_generator_is_compared_with_real_images(samples, grade, advice):
    verdict = generator_verdict(samples, REAL, 10.0, "features")
    assert verdict.grade == grade
    assert advice in verdict.advice


def test_a_generator_without_representations_needs_no_better_encoder():
    samples = SampleMetrics(3.0, 0.85, 0.8, 12, 1000)
    assert generator_verdict(samples, REAL, 10.0, "features").advice == "train it longer, or with a better encoder"
    assert generator_verdict(samples, REAL, 10.0, "features", represented=False).advice == "train it longer"


def test_features_of_an_untrained_network_find_no_generator_good():
    samples = SampleMetrics(0.2, 0.85, 0.8, 12, 1000)
    assert generator_verdict(samples, REAL, 10.0, "features").grade == "good"
    verdict = generator_verdict(samples, REAL, 10.0, "features", trained=False)
    assert verdict.grade == "usable"
    assert "look at the samples" in verdict.advice
    assert generator_verdict(SampleMetrics(9.0, 0.1, 0.1), REAL, 10.0, "features", trained=False).grade == "broken"


def test_few_real_images_are_good_samples():
    few, others = SampleMetrics(2.6, 0.9, 0.9, 1, 64), SampleMetrics(2.0, 0.9, 0.9, 1, 64)
    assert generator_verdict(few, others, 4.0, "features").grade == "good"


def test_copies_are_reported_with_their_bound():
    verdict = generator_verdict(SampleMetrics(0.2, 0.9, 0.9, 0, 300), REAL, 10.0, "features")
    assert "copies 0.000, 95 % upper bound 0.010 (real images 0.010)" in verdict.line()
    assert verdict.metrics["copy_rate_upper"] == pytest.approx(1 - 0.05 ** (1 / 300))


def test_bounds_of_a_proportion():
    assert proportion_bounds(0, 10)[0] == 0
    assert proportion_bounds(10, 10)[1] == 1
    low, high = proportion_bounds(5, 10)  # of tables of Clopper and Pearson, 90 % on both sides
    assert (low, high) == pytest.approx((0.2224, 0.7776), abs=1e-4)


def test_positions_between_references():
    assert [position(value, 1, 3) for value in (0, 1, 2, 3)] == [0, 0, 0.5, 1]
    assert position(2, 3, 1) == 0
    assert position(4, 3, 1) == 1


def test_a_verdict_is_one_line_and_plain_data():
    verdict = Verdict("RDM", "usable", "rep-FD 2", "train it longer", {"rep_fd": 2.0})
    assert verdict.line() == "RDM: usable: rep-FD 2; train it longer"
    assert verdict.to_dict()["metrics"] == {"rep_fd": 2.0}
    assert verdict_text([verdict]) == "- **RDM: usable.** Rep-FD 2. Train it longer.\n"
