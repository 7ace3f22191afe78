"""The bound where it is known in closed form."""

import pytest
import torch

from vllm_edsd.scoring.bound import alpha_star
from vllm_edsd.scoring.draft import Draws


def pair(vocabulary, seed, zeros=0):
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.rand(2, vocabulary, generator=generator).double() ** 3
    if zeros:
        p[:zeros], q[-zeros:] = 0, 0
    return p / p.sum(), q / q.sum()


@pytest.mark.parametrize("draws", [Draws.INDEPENDENT, Draws.DISTINCT])
def test_one_draft_is_the_overlap(draws):
    p, q = pair(7, 5, 2)
    assert alpha_star(p, q, 1, draws) == pytest.approx(float(torch.minimum(p, q).sum()))


def test_rises_with_drafts_at_any_vocabulary():
    p, q = pair(50_000, 1)
    found = [alpha_star(p, q, drafts) for drafts in (1, 2, 4, 8)]
    assert found == sorted(found)
    assert found[-1] < 1


def test_bounds_of_its_own():
    p, q = pair(17, 1)
    with pytest.raises(ValueError, match="of 16 tokens"):
        alpha_star(p, q, 2, Draws.DISTINCT)
    with pytest.raises(ValueError, match="0 drafts"):
        alpha_star(p, q, 0)
