"""The greedy allocation against all that are possible."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_edsd.experts.allocate import allocate, uniform

rises = st.floats(0.001, 1.0)


@st.composite
def curves(draw, convex=False):
    """D_l(k) for k = 1..K, falling to zero; `convex` where each expert less costs more than the one before."""
    count, experts = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    found = {}
    for layer in range(count):
        steps = draw(st.lists(rises, min_size=experts - 1, max_size=experts - 1))
        steps = sorted(steps) if convex else steps
        found[3 * layer] = [math.fsum(steps[: experts - k]) for k in range(1, experts + 1)]
    return found


def cost(found, counts):
    return math.fsum(found[layer][count - 1] for layer, count in counts.items())


@given(curves(), st.floats(0.0, 1.0))
def test_the_budget_is_met_and_no_layer_is_emptied(found, budget):
    counts = allocate(found, budget)
    assert counts.keys() == found.keys()
    assert all(1 <= counts[layer] <= len(curve) for layer, curve in found.items())
    whole = sum(map(len, found.values()))
    allowed = math.floor(budget * whole + 1e-9)
    # Experts that the budget leaves are not given up for nothing.
    assert sum(counts.values()) == max(allowed, len(found))


@given(curves(convex=True), st.floats(0.0, 1.0))
def test_on_convex_curves_nothing_is_better(found, budget):
    counts = allocate(found, budget)
    total = sum(counts.values())
    possible = itertools.product(*(range(1, len(curve) + 1) for curve in found.values()))
    best = min(cost(found, dict(zip(found, each, strict=True))) for each in possible if sum(each) <= total)
    assert cost(found, counts) == pytest.approx(best, abs=1e-9)


def test_a_dip_is_stepped_over():
    """Three experts of layer 0 are dear and one is cheap; a step at a time would never find it."""
    assert allocate({0: [0.1, 5.0, 5.0, 0.0], 1: [3.0, 2.0, 1.0, 0.0]}, 5 / 8) == {0: 1, 1: 4}


@given(curves())
def test_the_whole_budget_cuts_nothing(found):
    assert allocate(found, 1.0) == {layer: len(curve) for layer, curve in found.items()}


@given(st.integers(1, 8), st.floats(0.0, 1.0))
def test_uniform_stays_within_the_budget(top_k, budget):
    counts = uniform([0, 2, 5], top_k, budget)
    assert counts.keys() == {0, 2, 5} and len(set(counts.values())) == 1
    (k,) = set(counts.values())
    assert k == max(1, math.floor(budget * top_k + 1e-9))


@given(st.integers(1, 64), st.data())
def test_a_share_that_is_a_number_of_experts_is_that_number(top_k, data):
    k = data.draw(st.integers(1, top_k))
    assert uniform(range(7), top_k, 7 * k / (7 * top_k)) == dict.fromkeys(range(7), k)
    linear = {layer: [float(top_k - k) for k in range(1, top_k + 1)] for layer in range(7)}
    assert sum(allocate(linear, 7 * k / (7 * top_k)).values()) == 7 * k
