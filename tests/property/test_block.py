"""Block verification is exact over whole blocks, ragged or not, and accepts no less than token-wise rejection."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_edsd.scoring.block import Block
from vllm_edsd.scoring.distributions import probabilities
from vllm_edsd.scoring.draft import Draft, Draws

LOGIT = st.floats(-5, 5) | st.just(-torch.inf)
BLOCK = Block()


@st.composite
def cases(draw):
    """A target's and a drafter's table over 2 or 3 tokens, the longest draft, and after which tokens drafting stops."""
    size = draw(st.integers(2, 3))
    row = st.lists(LOGIT, min_size=size, max_size=size).filter(lambda found: max(found) > -torch.inf)
    table = st.lists(row, min_size=size, max_size=size)
    target = probabilities(torch.tensor(draw(table)), top_p=draw(st.floats(0.3, 1)))
    stops = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return target, probabilities(torch.tensor(draw(table))), draw(st.integers(0, 3)), torch.tensor(stops)


def all_chains(drafter, longest, stops):
    """Every chain after token 0 with its probability; a chain ends where its last token says that drafting stops."""
    size = len(drafter)
    tokens = torch.cartesian_prod(torch.tensor([0]), *[torch.arange(size)] * longest).view(-1, longest + 1)
    chances = drafter[tokens[:, :-1], tokens[:, 1:]].prod(1)
    lengths = (~stops[tokens[:, :-1]]).long().cumprod(1).sum(1)
    return Draft.chain(tokens, drafter[tokens], Draws.INDEPENDENT, lengths), chances, lengths


@given(cases())
def test_blocks_follow_the_target(case):
    target, drafter, longest, stops = case
    size = len(target)
    draft, weights, _ = all_chains(drafter, longest, stops)
    accepted, follows = BLOCK.judge(draft, target[draft.tokens])
    exact = target[0]
    for _ in range(longest):
        exact = exact[..., None] * target
    found = torch.zeros_like(exact)
    for length in range(longest + 1):
        # What was accepted, the token that follows, and the target's own text up to a whole block.
        tails = follows[:, length]
        for _ in range(longest - length):
            tails = tails[..., None] * target
        share = (weights * accepted[:, length]).view(-1, *[1] * (tails.dim() - 1)) * tails
        prefix = (draft.tokens[:, 1 : length + 1] * size ** torch.arange(length - 1, -1, -1)).sum(1)
        found += torch.zeros(size**length, *share.shape[1:]).double().index_add(0, prefix, share).view_as(found)
    torch.testing.assert_close(accepted.sum(1), torch.ones(len(weights)).double())
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)


@given(cases())
def test_accepts_no_less_than_token_by_token(case):
    target, drafter, longest, stops = case
    draft, weights, lengths = all_chains(drafter, longest, stops)
    slots = torch.arange(longest + 1)
    accepted, _ = BLOCK.judge(draft, target[draft.tokens])
    block = float((weights[:, None] * accepted * slots).sum())
    before, after = draft.tokens[:, :-1], draft.tokens[:, 1:]
    ratios = (target[before, after] / drafter[before, after].clamp(min=1e-300)).clamp(max=1) * (
        slots[1:] <= lengths[:, None]
    )
    assert block >= float((weights * ratios.cumprod(1).sum(1)).sum()) - 1e-9
