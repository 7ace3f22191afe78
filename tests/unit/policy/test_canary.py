import numpy as np
import pytest

from vllm_edsd.observability.catalog import KEPT, ROLLED_BACK
from vllm_edsd.policy.canary import ENOUGH, FEWEST, Acceptance, Canary


def watched(before: float, now: float, seed: int) -> tuple[str | None, int]:
    """The verdict on a drafter whose drafts have `now` accepted tokens in the mean (geometric), and after how many."""
    random = np.random.default_rng(seed)

    def drafts(mean: float, count: int) -> list[int]:
        return (random.geometric(1 / (1 + mean), count) - 1).tolist()

    former, acceptance = Acceptance(), Acceptance()
    former.add(drafts(before, 400))
    canary = Canary(former)
    while (verdict := canary.verdict(acceptance)) is None:
        acceptance.add(drafts(now, 4))
    return verdict, acceptance.drafts


def test_moments():
    acceptance = Acceptance()
    acceptance.add([0, 1, 2, 5])
    assert acceptance.mean == pytest.approx(2)
    assert acceptance.variance == pytest.approx(np.var([0, 1, 2, 5]))
    assert acceptance.error() == pytest.approx(np.std([0, 1, 2, 5]) / 2)


def test_old_drafts_are_forgotten():
    acceptance = Acceptance()
    acceptance.add([4] * ENOUGH)
    acceptance.add([1] * (8 * ENOUGH))
    assert acceptance.mean == pytest.approx(1, abs=0.01)


def test_noise_is_rolled_back_at_once():
    assert watched(0.5, 0.0, 0) == (ROLLED_BACK, FEWEST)


@pytest.mark.parametrize(("now", "verdict"), [(0.5, KEPT), (1.0, KEPT), (0.2, ROLLED_BACK)])
def test_most_drafters_get_the_verdict_that_they_deserve(now, verdict):
    found = [watched(0.5, now, seed) for seed in range(100)]
    assert sum(said == verdict for said, _ in found) >= 90
    assert max(drafts for _, drafts in found) <= ENOUGH


def test_without_a_former_to_compare_with_it_is_kept():
    assert Canary(Acceptance()).verdict(Acceptance()) == KEPT
