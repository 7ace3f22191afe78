"""What EVICT and TALON keep."""

import pytest
import torch

from vllm_edsd.errors import UserError
from vllm_edsd.scoring.draft import Draft, Draws
from vllm_edsd.scoring.evict import Evict
from vllm_edsd.scoring.survival import survival
from vllm_edsd.scoring.talon import Talon


def chain(*largest, draws=Draws.FIXED, tokens=None):
    """A chain whose drafter gives token 0 these probabilities, step by step."""
    first = torch.tensor([*largest, 0.5]).double()
    probs = torch.stack([first, 1 - first], 1)[None]
    tokens = torch.zeros(1, len(first), dtype=torch.long) if tokens is None else torch.tensor([[0, *tokens]])
    return Draft.chain(tokens, probs, draws)


def test_survival_is_the_product_along_the_path():
    torch.testing.assert_close(survival(chain(0.9, 0.5, 0.8)), torch.tensor([[1, 0.9, 0.45, 0.36]]).double())


def test_survival_of_a_sampled_draft_does_not_see_its_tokens():
    unlucky = chain(0.9, 0.8, draws=Draws.INDEPENDENT, tokens=[1, 1])
    torch.testing.assert_close(survival(unlucky), survival(chain(0.9, 0.8)))


@pytest.mark.parametrize(("step", "kept"), [(0.0, 3), (0.3, 2), (0.7, 1), (1.0, 0)])
def test_evict_stops_where_a_token_no_longer_pays(step, kept):
    """E = 1, 1.9, 2.62, 2.908: with C = 1 + step * k the best ratio is at `kept`, worked by hand."""
    costs = [1 + step * count for count in range(4)]
    for draws in (Draws.FIXED, Draws.INDEPENDENT):
        draft = Evict(costs).prune(chain(0.9, 0.8, 0.4, draws=draws))
        assert draft.alive.sum() - 1 == kept


def test_evict_looks_past_a_costly_token_only_where_nothing_was_drawn():
    """C = 1, 1.9, 1.95: the first token pays only with the second, which a sampled draft must not know yet."""
    costs = [1, 1.95, 2.0]
    assert Evict(costs).prune(chain(0.9, 0.9)).alive.all()
    assert Evict(costs).prune(chain(0.9, 0.9, draws=Draws.INDEPENDENT)).alive.sum() == 1


def test_talon_is_deep_where_sure_and_wide_where_not():
    sure, unsure = torch.tensor([0.98, 0.01, 0.01]), torch.tensor([0.36, 0.33, 0.31])
    kept = []
    for probs in (sure, unsure):
        parents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6]])
        tokens = torch.tensor([[0, *[0, 1, 2] * 4, 0, 0, 0]])
        draft = Draft(tokens, parents, tokens >= 0, probs.double().expand(1, 16, 3), Draws.FIXED)
        kept.append(Talon(5).prune(draft))
    assert [int(draft.alive.sum()) - 1 for draft in kept] == [5, 5]
    assert [int(draft.depths[draft.alive].max()) for draft in kept] == [3, 2]


def test_an_orphan_is_refused():
    with pytest.raises(ValueError, match="closed under ancestors"):
        chain(0.9, 0.8).pruned(torch.tensor([[True, False, True]]))


@pytest.mark.parametrize("costs", [[], [1.0, 0.0], [1.0, float("nan")]])
def test_costs_are_checked(costs):
    with pytest.raises(UserError, match="seconds above 0"):
        Evict(costs)


def test_more_is_checked():
    with pytest.raises(UserError, match="give 3"):
        Evict([1.0, 1.1]).prune(chain(0.9, 0.8))
    for options in ({"budget": -1}, {"budget": 4, "gate": 0.0}):
        with pytest.raises(UserError, match="gate"):
            Talon(**options)
