"""The bound against the linear programme that it is the dual of."""

import pytest
import torch
from scipy.optimize import linprog

from vllm_edsd.scoring.bound import alpha_star
from vllm_edsd.scoring.draft import Draws


def transport(p, drawn):
    """max sum of pi(candidates, y) over y among them, given both marginals: HiGHS on the primal."""
    tokens, present, chances = drawn
    edges = [(row, token) for row, kept in enumerate(present) for token in sorted(set(tokens[row, kept].tolist()))]
    rows = torch.zeros(len(chances) + len(p), len(edges))
    for column, (row, token) in enumerate(edges):
        rows[row, column] = rows[len(chances) + token, column] = 1
    limits = torch.cat([chances, p])
    found = linprog(-torch.ones(len(edges)), A_ub=rows.numpy(), b_ub=limits.numpy())
    assert found.success
    return -found.fun


@pytest.mark.parametrize("draws", list(Draws), ids=lambda draws: draws.value)
@pytest.mark.parametrize(("vocabulary", "drafts", "zeros"), [(2, 2, 0), (3, 2, 1), (4, 3, 0), (6, 2, 2), (5, 1, 1)])
def test_equals_brute_force(candidates, draws, vocabulary, drafts, zeros):
    for seed in range(3):
        p, q = torch.rand(2, vocabulary, generator=torch.Generator().manual_seed(seed)).double() ** 3
        p[:zeros], q[vocabulary - zeros :] = 0, 0
        p, q = p / p.sum(), q / q.sum()
        assert alpha_star(p, q, drafts, draws) == pytest.approx(transport(p, candidates(q, drafts, draws)), abs=1e-9)
