import itertools

import numpy as np
import pytest

from vllm_edsd.errors import UserError
from vllm_edsd.policy import registry
from vllm_edsd.policy.base import Drafting, Step, Verdict
from vllm_edsd.policy.cost import CostModel
from vllm_edsd.policy.evict import Evict
from vllm_edsd.policy.gammatune import GammaTune

K = 6


def drafted(policy, requests, top, entropy=None, sampled=False):
    """Drives a policy through one draft as the engine does; top [R, K]. Returns the tokens drafted and those kept."""
    drafting = Drafting.begin(requests, 100 * len(requests), sampled)
    for position in range(policy.max_tokens):
        column = top[:, position]
        drafting.add(column, -np.log(np.maximum(column, 1e-9)) if entropy is None else entropy[:, position])
        if drafting.drafted < policy.max_tokens and not policy.proceed(drafting):
            break
    return drafting.drafted, policy.cut(drafting)


@pytest.fixture(params=[*registry.OURS])
def policy(request):
    return registry.make(request.param, K)


def test_every_policy_keeps_to_the_contract(policy):
    random = np.random.default_rng(3)
    for step in range(300):
        requests = [f"r{number}" for number in range(random.integers(1, 6))]
        emitted = len(requests)
        if policy.start(requests):
            top = random.uniform(0.02, 1.0, (len(requests), K))
            top[random.random(top.shape) < 0.02] = np.nan
            length, kept = drafted(policy, requests, top, sampled=bool(step % 2))
            assert 1 <= length <= K
            assert kept.shape == (len(requests),) and (kept >= 0).all() and (kept <= length).all()
            sound = np.logical_and.accumulate(np.isfinite(top[:, :length]), axis=1).sum(axis=1)
            assert (kept <= sound).all(), "a row whose figures are no numbers must not be verified from there on"
            accepted = [int(random.integers(0, count + 1)) for count in kept]
            policy.observe(
                [Verdict(name, int(count), got) for name, count, got in zip(requests, kept, accepted, strict=True) if count]
            )
            emitted += sum(accepted)
        policy.timed(Step(len(requests), 100, 2 * len(requests), 1, emitted, 0.05))
        assert all(np.isfinite(value) for value in policy.state().values())
    policy.forget([f"r{number}" for number in range(6)])
    inner = getattr(policy, "policy", policy)
    assert not getattr(inner, "accepted", {}) and not getattr(getattr(inner, "estimator", None), "recent", {})


@pytest.mark.parametrize("name", [*registry.OURS])
def test_with_sampled_drafts_no_decision_looks_ahead(name):
    """What is kept of the first positions is the same whatever the figures of the later ones are."""
    requests = ["a", "b"]
    for seed, position in itertools.product(range(20), range(1, K)):
        random = np.random.default_rng(seed)
        top = random.uniform(0.05, 0.95, (2, K))
        other = top.copy()
        other[0, position:] = random.uniform(0.05, 0.95, K - position)
        kept = []
        for figures in (top, other):
            policy = registry.make(name, K)
            assert policy.start(requests) or name in ("bandit", "sweep")
            kept.append(drafted(policy, requests, figures, sampled=True)[1])
        assert min(kept[0][0], position) == min(kept[1][0], position)


@pytest.mark.parametrize("sampled", [True, False])
def test_the_control_looks_ahead(sampled):
    """With greedy drafts EVICT counts what later positions cost and bring, with sampled ones it must not."""
    changed = 0
    for seed in range(200):
        top = np.random.default_rng(seed).uniform(0.05, 0.95, (2, K))
        policy = Evict(K, CostModel(np.array([1.0, 0.02, 0.3, 0.2, 0.01, 0.02])))
        policy.timed(Step(2, 200, 4, 2, 3, 1.5))
        short, long = (
            policy.cut(Drafting(["a", "b"], top[:, :count], -np.log(top[:, :count]), 200, sampled)) for count in (2, K)
        )
        changed += bool((np.minimum(short, 2) != np.minimum(long, 2)).any())
    assert (changed > 0) == (not sampled)


def brute_force(survival, requests, seconds):
    """The best over all prefix choices of every request."""
    lengths = range(survival.shape[1] + 1)
    rates = {
        choice: (requests + sum(survival[row, :count].sum() for row, count in enumerate(choice))) / seconds(sum(choice))
        for choice in itertools.product(lengths, repeat=len(survival))
    }
    return max(rates.values()), rates


def test_evict_finds_the_best_choice_of_all():
    for seed in range(50):
        random = np.random.default_rng(seed)
        top = random.uniform(0.05, 0.98, (3, 4))
        cost = CostModel(np.array([1.0, 0.02, random.uniform(0.02, 0.4), 0.06, 0.01, 0.02]))
        policy = Evict(4, cost)
        kept = policy.cut(Drafting(["a", "b", "c"], top, -np.log(top), 300))
        base = 1.0 + 3 * 0.02 + 4 * 0.06 + 12 * 0.01 + 0.3 * 0.02
        price = cost.weights[2]
        best, rates = brute_force(np.cumprod(top, axis=1), 3, lambda drafts, base=base, price=price: base + drafts * price)
        assert rates[tuple(kept.tolist())] == pytest.approx(best)


def test_evict_promises_less_the_more_requests_there_are():
    policy = Evict(K)
    promised = [policy.promise(requests) for requests in (1, 4, 16, 64)]
    assert promised == sorted(promised, reverse=True)
    assert promised[0] > 1 > promised[-1]


def test_evict_promises_what_its_newest_drafts_say():
    policy = Evict(K, CostModel(np.array([1.0, 0.02, 0.02, 0.05, 0.01, 0.0])))
    promised = {}
    for top in (0.9, 0.05):
        for _ in range(64):
            drafted(policy, ["a"], np.full((1, K), top))
        promised[top] = policy.promise(1)
    # A step without a draft takes 1.02 for one token; with one of chance 0.9 it is 1.1 for 1.9 tokens.
    assert promised[0.9] == pytest.approx(1.9 / 1.1 * 1.02, rel=0.02)
    assert promised[0.05] == pytest.approx(1.02 * 1.05 / 1.1, rel=0.02)


def test_evict_promises_less_where_the_drafter_must_read_more():
    policy = Evict(K, CostModel(np.array([1.0, 0.02, 0.02, 0.05, 0.01, 0.0])))
    before = policy.promise(1)
    policy.reads(0.5, 0.0)
    assert 1.02 / policy.promise(1) == pytest.approx(1.02 / before + 0.5)


def test_evict_drafts_on_only_where_it_pays():
    cheap = Evict(K, CostModel(np.array([1.0, 0.02, 0.001, 0.001, 0.001, 0.0])))
    dear = Evict(K, CostModel(np.array([1.0, 0.02, 0.001, 3.0, 0.001, 0.0])))
    sure = np.full((1, K), 0.9)
    assert drafted(cheap, ["a"], sure)[0] == K
    assert drafted(dear, ["a"], sure)[0] == 1


def test_gammatune_follows_a_requests_accepted_length():
    policy = GammaTune(K)
    sure = np.full((2, K), 0.9)
    for _ in range(20):
        policy.observe([Verdict("poor", 2, 0), Verdict("good", 5, 5)])
    assert drafted(policy, ["poor", "good"], sure)[1].tolist() == [1, K]


def test_entropy_stops_where_the_drafter_is_unsure():
    policy = registry.make("entropy", K)
    entropy = np.array([[0.1, 0.1, 4.0, 0.1, 0.1, 0.1]])
    assert drafted(policy, ["a"], np.full((1, K), 0.9), entropy)[1].tolist() == [2]


def test_specdec_stops_once_a_rejection_is_likely():
    policy = registry.make("specdec", K)
    assert drafted(policy, ["a"], np.full((1, K), 0.7))[1].tolist() == [3]  # 1 - 0.7**3 = 0.66, 1 - 0.7**4 = 0.76


def test_bandit_finds_the_fastest_length():
    policy = registry.make("bandit", 8)
    speed = {0: 10, 1: 12, 2: 20, 3: 15, 5: 9, 8: 5}
    chosen = []
    for _ in range(3000):
        policy.start(["a"])
        chosen.append(policy.length)
        policy.timed(Step(1, 100, 1, policy.length, 2, 2 / speed[policy.length]))
    assert chosen[1000:].count(2) > 0.8 * 2000


def test_an_unknown_policy_lists_the_known():
    with pytest.raises(UserError, match="unknown policy 'evit'; known: bandit, entropy, evict, fixed, gammatune, specdec"):
        registry.make("evit", 3)
