import numpy
import pytest

from vllm_edsd.evaluation.intervals import estimate, lengths, resampled, shares

COUNTS = numpy.array([[10.0, 5, 2], [20, 10, 2], [0, 0, 0], [10, 5, 4]])


def test_counts_are_summed_before_they_are_divided():
    assert shares(COUNTS.sum(0)).tolist() == [0.5, 0.2]
    assert lengths(COUNTS.sum(0)) == pytest.approx(1.7)
    assert lengths(COUNTS)[2] == 1.0


def test_resamples_repeat_with_the_seed_and_keep_prompts_whole():
    drawn = resampled(COUNTS, 3)
    assert (drawn == resampled(COUNTS, 3)).all()
    assert (drawn != resampled(COUNTS, 4)).any()
    # In every prompt the first position takes half of the drafts.
    assert (drawn[:, 1] == drawn[:, 0] / 2).all()


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = numpy.random.default_rng(0)
    held = 0
    for trial in range(300):
        accepted = random.binomial(20, random.beta(3, 7, 60))
        counts = numpy.stack([numpy.full(60, 20.0), accepted], 1)
        found = estimate(float(lengths(counts.sum(0))), lengths(resampled(counts, trial)), 60)
        held += found["low"] <= 1.3 <= found["high"]
    assert 0.90 <= held / 300 <= 0.99


def test_one_prompt_gives_no_interval():
    assert estimate(1.5, lengths(resampled(COUNTS[:1], 0)), 1) == {"mean": 1.5, "low": None, "high": None}
