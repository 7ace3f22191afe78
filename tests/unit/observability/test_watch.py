import numpy as np
import pytest

from vllm_edsd.observability.tally import Tally
from vllm_edsd.observability.watch import Watch, batch
from vllm_edsd.policy import registry
from vllm_edsd.policy.base import Drafting, Step, Verdict

K = 4


def values(watch):
    watch.refresh()
    return {(name, *labels): value for name, series in watch.tally.snapshot()["values"].items() for labels, value in series}


def draft(watch, top):
    drafting = Drafting.begin(["a", "b"], 100)
    for column in np.asarray(top).T:
        drafting.add(column, np.full(2, 0.5))
    return watch.cut(drafting)


def test_what_is_cut_and_what_is_broken_is_counted():
    watch = Watch(registry.make("fixed", K), Tally(("model", "0")))
    assert watch.start(["a", "b"])
    assert draft(watch, [[0.9, 0.9, 0.9, 0.9], [0.9, np.nan, 0.9, 0.9]]).tolist() == [4, 1]
    found = values(watch)
    assert found["edsd:drafted_tokens",] == 8
    assert found["edsd:cut_tokens",] == 3
    assert found["edsd:fallbacks", "nonfinite"] == 1
    assert sum(watch.tally.snapshot()["histograms"]["edsd:drafter_entropy_nats"][:-1]) == 5


@pytest.mark.parametrize("name", registry.names())
def test_state_of_finished_requests_is_gone_under_every_policy(name):
    watch = Watch(registry.make(name, K), Tally(("model", "0")))
    for _ in range(3):
        watch.start(["a", "b"])
        verified = draft(watch, np.full((2, K), 0.9))
        watch.observe([Verdict(request, int(count), 1) for request, count in zip("ab", verified, strict=True) if count])
        watch.timed(Step(2, 100, 4, K, 4, 0.01))
    watch.forget(["a", "b"])
    assert values(watch)["edsd:tracked_requests", "policy"] == 0


def test_estimates_are_compared_with_what_came_of_them():
    watch = Watch(registry.make("evict", K), Tally(("model", "0")))
    watch.start(["a", "b"])
    draft(watch, np.full((2, K), 0.9))
    watch.observe([Verdict("a", 2, 2), Verdict("b", 2, 0)])
    found = values(watch)
    assert found["edsd:tracked_requests", "policy"] == 2
    assert found["edsd:judged_tokens",] == 3
    assert found["edsd:observed_acceptances",] == 2
    assert 0 < found["edsd:estimated_acceptances",] < 3


def test_totals_never_fall_when_drafters_change_and_change_back():
    tally = Tally(("model", "0"))
    first, second = (Watch(registry.make("evict", K), tally) for _ in range(2))
    seen = []
    for watch, verdicts in ((first, 5), (second, 2), (first, 1)):
        for _ in range(verdicts):
            watch.start(["a", "b"])
            draft(watch, np.full((2, K), 0.9))
            watch.observe([Verdict("a", 2, 2), Verdict("b", 2, 0)])
        seen.append(values(watch)["edsd:judged_tokens",])
    assert seen == [15, 21, 24]


def test_the_guard_shows_both_speeds_and_its_choice_by_batch_size():
    watch = Watch(registry.make("evict", K), Tally(("model", "0")))
    requests = [str(number) for number in range(5)]
    for _ in range(400):
        drafts = watch.start(requests)
        watch.timed(Step(5, 100, 5, K if drafts else 0, 5, 0.03 if drafts else 0.01))
    found = values(watch)
    assert found["edsd:guard_drafts", "4-7"] == 0
    assert found["edsd:guard_tokens_per_second", "4-7", "draft"] == pytest.approx(5 / 0.03, rel=0.01)
    assert found["edsd:guard_tokens_per_second", "4-7", "plain"] == pytest.approx(5 / 0.01, rel=0.01)
    assert found["edsd:fallbacks", "guard"] > 300


def test_batches_are_named_by_their_ends():
    assert [batch(size) for size in (1, 2, 3, 6)] == ["1", "2-3", "4-7", "32-63"]
