"""Block verification, exactly, over all chains of two tokens."""

import pytest
import torch

from vllm_edsd.scoring.block import Block
from vllm_edsd.scoring.draft import Draft, Draws

# The paper's example: two tokens, models without context.
PAPER_P, PAPER_Q = torch.tensor([1 / 3, 2 / 3]).double(), torch.tensor([2 / 3, 1 / 3]).double()


def all_chains(p, q):
    pairs = torch.cartesian_prod(torch.arange(len(q)), torch.arange(len(q)))
    tokens = torch.cat([torch.zeros_like(pairs[:, :1]), pairs], 1)
    shape = (*tokens.shape, len(q))
    return Draft.chain(tokens, q.expand(shape), Draws.INDEPENDENT), p.expand(shape), q[pairs].prod(1)


def test_expected_length_of_the_papers_example():
    """Sun et al. 2024, section 2: 10/9 tokens accepted one by one, 11/9 as a block."""
    draft, target, weights = all_chains(PAPER_P, PAPER_Q)
    chances, _ = Block().judge(draft, target)
    assert float((weights[:, None] * chances * torch.arange(3)).sum()) == pytest.approx(11 / 9)
    one = float(torch.minimum(PAPER_P, PAPER_Q).sum())
    assert one + one**2 == pytest.approx(10 / 9)


def test_a_drafter_that_is_the_target_is_accepted_whole():
    draft, target, _ = all_chains(PAPER_Q, PAPER_Q)
    chances, follows = Block().judge(draft, target)
    assert (chances[:, 2] == 1).all()
    torch.testing.assert_close(follows[:, 2], target[:, 2])


def test_nothing_drafted_emits_the_target():
    probs = PAPER_P.expand(3, 1, 2)
    chances, follows = Block().judge(Draft.chain(torch.zeros(3, 1, dtype=torch.long), probs, Draws.FIXED), probs)
    assert chances.tolist() == [[1.0]] * 3
    torch.testing.assert_close(follows, probs)


def test_trees_are_refused():
    star = torch.zeros(1, 3, dtype=torch.long)
    draft = Draft(star, star, star == 0, PAPER_P.expand(1, 3, 2), Draws.INDEPENDENT)
    with pytest.raises(ValueError, match="recursive"):
        Block().verify(draft, draft.probs, torch.Generator())
