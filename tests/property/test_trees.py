"""Any tree, ragged, empty or full: what is pruned stays a tree, what is accepted is a path of it, greedy is greedy."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_edsd.scoring.block import Block
from vllm_edsd.scoring.draft import Draft, Draws
from vllm_edsd.scoring.evict import Evict
from vllm_edsd.scoring.kseq import KSeq
from vllm_edsd.scoring.recursive import Recursive
from vllm_edsd.scoring.rejection import Standard
from vllm_edsd.scoring.survival import survival
from vllm_edsd.scoring.talon import Talon

VOCABULARY = 3
TREES = [Recursive(), KSeq(), Evict([1 + 0.1 * count for count in range(12)]), Talon(4)]
CHAINS = [Standard(), Block()]


@st.composite
def drafts(draw, chains=False, ways=tuple(Draws)):
    """A batch of drafts of up to 8 tokens, any shape, some slots dead; the drafter's distributions hold zeros."""
    rows, slots = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    choices = draw(st.lists(st.integers(0, 7), min_size=rows * slots, max_size=rows * slots))
    parents = torch.tensor(choices).view(rows, slots) % torch.arange(slots).clamp(min=1)
    if chains:
        parents = (torch.arange(slots) - 1).clamp(min=0).expand(rows, -1)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    alive = torch.rand(rows, slots, generator=generator) < draw(st.sampled_from([0, 0.7, 1]))
    alive[:, 0] = True
    for slot in range(1, slots):
        alive[:, slot] &= alive.gather(1, parents[:, slot : slot + 1])[:, 0]
    probs = torch.rand(rows, slots, VOCABULARY, generator=generator).double()
    probs = probs.masked_fill(probs < draw(st.sampled_from([0, 0.4])), 0)
    probs = torch.where(probs.sum(-1, keepdim=True) > 0, probs / probs.sum(-1, keepdim=True), 0)
    tokens = torch.randint(VOCABULARY, (rows, slots), generator=generator)
    return Draft(tokens, parents, alive, probs, draw(st.sampled_from(ways))), generator


def text(draft, row, slot):
    """The drafted tokens up to and with a slot."""
    return [] if slot == 0 else [*text(draft, row, int(draft.parents[row, slot])), int(draft.tokens[row, slot])]


def check_verdict(draft, verdict, target):
    for row in range(len(target)):
        here, accepted = 0, []
        for slot in verdict.slots[row, : verdict.lengths[row]].tolist():
            here, accepted = slot, [*accepted, int(draft.tokens[row, slot])]
            assert draft.alive[row, slot]
            assert text(draft, row, slot) == accepted
        assert (verdict.slots[row, verdict.lengths[row] :] == -1).all()
        assert target[row, here, verdict.following[row]] > 0


def consistent(draft, generator, greedy):
    """A target that depends on the last token alone, as slots with the same path need it: [B, S, V]."""
    table = torch.rand(VOCABULARY, VOCABULARY, generator=generator).double()
    if greedy:
        table = torch.nn.functional.one_hot(table.argmax(-1), VOCABULARY).double()
    return (table / table.sum(-1, keepdim=True))[draft.tokens]


@pytest.mark.parametrize("scorer", TREES, ids=lambda scorer: type(scorer).__name__)
@given(st.data(), st.booleans())
def test_trees(scorer, data, greedy):
    draft, generator = data.draw(drafts(ways=tuple(scorer.draws)))
    check(scorer, draft, generator, greedy)


@pytest.mark.parametrize("scorer", CHAINS, ids=lambda scorer: type(scorer).__name__)
@given(st.data(), st.booleans())
def test_chains(scorer, data, greedy):
    draft, generator = data.draw(drafts(chains=True))
    check(scorer, draft, generator, greedy)


def check(scorer, draft, generator, greedy):
    target = consistent(draft, generator, greedy)
    kept = scorer.prune(draft)
    assert not (kept.alive & ~draft.alive).any()
    verdict = scorer.verify(kept, target, generator)
    check_verdict(kept, verdict, target)
    if greedy:
        check_greedy(kept, verdict, target)


def check_greedy(draft, verdict, target):
    """The accepted path and the token after it are the target's argmax, slot by slot, and as long as the tree allows."""
    for row in range(len(target)):
        here = 0
        for slot in verdict.slots[row, : verdict.lengths[row]].tolist():
            assert draft.tokens[row, slot] == target[row, here].argmax()
            here = slot
        assert verdict.following[row] == target[row, here].argmax()
        below = draft.alive[row] & (draft.parents[row] == here) & (torch.arange(len(draft.alive[row])) > here)
        assert verdict.following[row] not in draft.tokens[row][below]


@given(drafts())
def test_evict_keeps_a_tree_that_is_the_best_of_its_size(case):
    draft, generator = case
    slots = draft.tokens.shape[1]
    costs = torch.rand(slots, generator=generator).double() + 0.5
    kept = Evict(costs.tolist()).prune(draft)
    assert not (kept.alive & ~kept.alive.gather(1, kept.parents)).any(), "closed under ancestors"
    scores = survival(draft)
    parent = scores.gather(1, draft.parents)
    assert (scores <= parent).all(), "a child outlives its parent"
    if draft.draws is not Draws.FIXED:
        return
    for row in range(len(scores)):
        likely = scores[row, 1:][draft.alive[row, 1:]].sort(descending=True).values
        totals = 1 + torch.cat([torch.zeros(1), likely.cumsum(0)])
        ratios = totals / costs[: len(totals)]
        count = int(kept.alive[row].sum()) - 1
        assert float(ratios[count]) == pytest.approx(float(ratios.max()))
        assert float(scores[row][kept.alive[row]].sum()) == pytest.approx(float(totals[count]))


@given(drafts(), st.integers(0, 9))
def test_talon_keeps_to_its_budget(case, budget):
    assert (Talon(budget).prune(case[0]).alive.sum(1) - 1 <= budget).all()
