"""Every coupling is lossless and within the transport bound, exactly, whatever the distributions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_edsd.scoring.bound import alpha_star
from vllm_edsd.scoring.distributions import probabilities
from vllm_edsd.scoring.draft import Draws
from vllm_edsd.scoring.kseq import KSeq
from vllm_edsd.scoring.recursive import Recursive
from vllm_edsd.scoring.rejection import Standard

LOGIT = st.floats(-6, 6) | st.just(-torch.inf)
SCORERS = [
    (Standard(), Draws.INDEPENDENT, 1),
    (Standard(), Draws.FIXED, 1),
    (KSeq(), Draws.INDEPENDENT, 3),
    (Recursive(), Draws.INDEPENDENT, 3),
    (Recursive(), Draws.DISTINCT, 3),
    (Recursive(), Draws.FIXED, 3),
]


@st.composite
def models(draw):
    """A target's and a drafter's distribution over 2 to 4 tokens, the target's through temperature, top-k and top-p."""
    size = draw(st.integers(2, 4))
    logits = st.lists(LOGIT, min_size=size, max_size=size).filter(lambda found: max(found) > -torch.inf)
    heat, top_k, top_p = draw(st.floats(0, 2)), draw(st.integers(0, 3)), draw(st.floats(0.1, 1))
    target = probabilities(torch.tensor(draw(logits)), 0 if heat < 0.1 else heat, top_k, top_p)
    return target, probabilities(torch.tensor(draw(logits)))


@pytest.mark.parametrize(
    ("scorer", "draws", "most"), SCORERS, ids=[f"{type(each).__name__}-{draws.value}" for each, draws, _ in SCORERS]
)
@given(models(), st.integers(1, 3))
def test_lossless_and_within_the_bound(candidates, scorer, draws, most, pair, count):
    target, draft = pair
    tokens, present, chances = candidates(draft, min(count, most), draws)
    rows = len(tokens)
    emission = scorer.couple(target.expand(rows, -1), draft.expand(rows, -1), tokens, present, draws)
    assert (emission >= 0).all()
    torch.testing.assert_close(chances @ emission, target, rtol=0, atol=1e-9)
    drafted = torch.zeros_like(emission).scatter_reduce(1, tokens, present.double(), "amax")
    accepted = float((chances[:, None] * drafted * emission).sum())
    assert accepted <= alpha_star(target, draft, min(count, most), draws) + 1e-9
