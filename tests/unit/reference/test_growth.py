import pytest
import torch

from vllm_edsd.reference.growth import Plan, draw, grow
from vllm_edsd.reference.table import Table
from vllm_edsd.scoring.draft import Draws
from vllm_edsd.scoring.recursive import Recursive
from vllm_edsd.scoring.talon import Talon


def grown(plan, scorer, logits, roots=(0, 1)):
    roots = torch.tensor(roots)
    generator = torch.Generator().manual_seed(0)
    return grow(Table(logits).start(len(roots)), roots, len(logits), plan, scorer, generator)


def test_distinct_draws_are_draws_without_replacement():
    probs = torch.tensor([0.6, 0.3, 0.1, 0.0]).double().expand(200_000, 1, 4)
    tokens, present = draw(probs, 4, Draws.DISTINCT, torch.Generator().manual_seed(0))
    assert present[:, 0].sum(1).unique().tolist() == [3], "a token of probability 0 is no candidate"
    first, second = tokens[:, 0, 0], tokens[:, 0, 1]
    assert (first == 1).double().mean() == pytest.approx(0.3, abs=0.005)
    assert (second[first == 0] == 1).double().mean() == pytest.approx(0.75, abs=0.005)


def test_a_tree_has_the_widths_it_was_given():
    draft = grown(Plan((3, 2, 1), Draws.DISTINCT), Recursive(), torch.randn(5, 5))
    assert draft.depths[0].bincount().tolist() == [1, 3, 6, 6]
    assert draft.alive.all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_drafter_that_fails_proposes_nothing(bad):
    logits = torch.randn(5, 5)
    logits[1, 3] = bad
    for draws in Draws:
        draft = grown(Plan((1, 1), draws), Recursive(), logits)
        assert not draft.alive[1, 1:].any()
        assert draft.alive[0, 1]


def test_layered_pruning_while_drafting_is_pruning_afterwards():
    """TALON reaches depths that a full tree of this width could not; on a tree that fits both are the same."""
    scorer, logits = Talon(6), 2 * torch.randn(6, 6, generator=torch.Generator().manual_seed(3))
    plan = Plan((3, 3, 3))
    early = grown(plan, scorer, logits, range(6))
    late = scorer.prune(grown(plan, Recursive(), logits, range(6)))
    for row in range(6):
        assert paths(early, row) == paths(late, row)
    assert (early.alive.sum(1) == 7).all()
    deep = grown(Plan((3,) * 12), Talon(12), 8 * logits, range(6))
    assert int(deep.depths[deep.alive].max()) > 6


def paths(draft, row):
    found = [()]
    for slot in range(1, draft.tokens.shape[1]):
        found.append((*found[draft.parents[row, slot]], int(draft.tokens[row, slot])))
    return {path for path, alive in zip(found, draft.alive[row].tolist(), strict=True) if alive}


def test_a_plan_is_checked():
    for plan in ({"widths": (2, 0)}, {"widths": (1,), "temperature": 0.0}):
        with pytest.raises(ValueError, match="widths"):
            Plan(**plan)
