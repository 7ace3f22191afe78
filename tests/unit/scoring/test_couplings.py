"""Token-wise scorers on cases worked by hand; `tests/property` has all the others."""

import pytest
import torch

from vllm_edsd.scoring.bound import alpha_star
from vllm_edsd.scoring.draft import Draft, Draws
from vllm_edsd.scoring.kseq import KSeq, best_discount, overlap
from vllm_edsd.scoring.recursive import Recursive
from vllm_edsd.scoring.rejection import Standard

P = torch.tensor([0.5, 0.2, 0.2, 0.1]).double()
Q = torch.tensor([0.1, 0.4, 0.2, 0.3]).double()
INDEPENDENT = Draws.INDEPENDENT


def emissions(scorer, p, q, tokens, draws=INDEPENDENT):
    tokens = torch.tensor(tokens)
    return scorer.couple(p.expand(len(tokens), -1), q.expand(len(tokens), -1), tokens, tokens >= 0, draws)


@pytest.mark.parametrize("scorer", [KSeq(), Recursive()], ids=lambda scorer: type(scorer).__name__)
def test_one_draft_is_standard_rejection(scorer):
    drawn = [[0], [1], [2], [3]]
    torch.testing.assert_close(emissions(scorer, P, Q, drawn), emissions(Standard(), P, Q, drawn), atol=1e-12, rtol=0)


def test_standard_accepts_min_p_over_q():
    """Worked by hand: token 1 is accepted with 0.2/0.4, else token 0 comes, where alone p exceeds q."""
    found = emissions(Standard(), P, Q, [[0], [1]])
    torch.testing.assert_close(found[1], torch.tensor([0.5, 0.5, 0, 0]).double())
    torch.testing.assert_close(found[0], torch.tensor([1.0, 0, 0, 0]).double())


def test_distinct_drafts_that_cover_the_target_are_always_accepted():
    """RSD's example: two tokens, two distinct drafts; one of them is the target's."""
    p, q = torch.tensor([0.3, 0.7]).double(), torch.tensor([0.8, 0.2]).double()
    found = emissions(Recursive(), p, q, [[0, 1], [1, 0]], Draws.DISTINCT)
    torch.testing.assert_close(torch.tensor([0.8, 0.2]).double() @ found, p)
    assert alpha_star(p, q, 2, Draws.DISTINCT) == pytest.approx(1)
    assert alpha_star(p, q, 2) < 0.95


def test_the_discount_solves_its_equation():
    count = torch.tensor([1.0, 2.0, 5.0]).double()
    found = best_discount(P.expand(3, -1), Q.expand(3, -1), count)
    beta = overlap(P.expand(3, -1), Q.expand(3, -1), found)
    torch.testing.assert_close(1 - (1 - beta) ** count, found * beta)
    assert found[0] == 1


def test_disjoint_supports_emit_the_target():
    p, q = torch.tensor([0.3, 0.7, 0, 0]).double(), torch.tensor([0, 0, 0.5, 0.5]).double()
    for scorer, drawn in [(Standard(), [[2], [3]]), (KSeq(), [[2, 3, 2]]), (Recursive(), [[3, 2, 3]])]:
        found = emissions(scorer, p, q, drawn)
        torch.testing.assert_close(found, p.expand_as(found))


def test_refuses_drafts_it_is_not_lossless_for():
    tokens, probs = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, 4).double() / 4
    star = Draft(tokens, tokens, tokens == 0, probs, INDEPENDENT)
    with pytest.raises(ValueError, match="recursive"):
        Standard().verify(star, probs, torch.Generator())
    fixed = Draft.chain(tokens, probs, Draws.FIXED)
    with pytest.raises(ValueError, match=r"not lossless for fixed draws, only for: independent"):
        KSeq().verify(fixed, probs, torch.Generator())
    with pytest.raises(ValueError, match=r"\[1, 3, 3\]"):
        Standard().verify(fixed, probs[..., :3], torch.Generator())
