"""Sampled text of every scorer follows the target exactly, over sequences; the same scorer with one mistake does not."""

from dataclasses import replace

import pytest
import torch

from vllm_edsd.reference.engine import Engine, Sampling
from vllm_edsd.reference.growth import Plan
from vllm_edsd.reference.table import Table
from vllm_edsd.scoring.block import Block
from vllm_edsd.scoring.distributions import point, probabilities
from vllm_edsd.scoring.draft import Draws
from vllm_edsd.scoring.evict import Evict, spend
from vllm_edsd.scoring.kseq import KSeq
from vllm_edsd.scoring.recursive import Recursive
from vllm_edsd.scoring.rejection import Standard, reject
from vllm_edsd.scoring.survival import survival
from vllm_edsd.scoring.talon import Talon

SAMPLES, VOCABULARY = 100_000, 4
COSTS = [1 + 0.15 * count for count in range(12)]
STEEP = [1, 1.45, 1.9]
CHAIN = Plan((1, 1), Draws.INDEPENDENT)
SURE = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()


def called(value):
    return f"{value.draws.value}-{value.widths}" if isinstance(value, Plan) else type(value).__name__


@pytest.fixture
def p_value(p_of):
    """Chi-square p-value of the first three tokens that `scorer` lets through, and the generation."""

    def measure(scorer, plan, tables=None, sampling=None):
        if tables is None:
            generator = torch.Generator().manual_seed(0)
            target = torch.randn(VOCABULARY, VOCABULARY, generator=generator)
            tables = target, target + torch.randn(VOCABULARY, VOCABULARY, generator=generator)
        sampling = sampling or Sampling()
        engine = Engine(*map(Table, tables), scorer, plan, sampling)
        found = engine.generate([[0]] * SAMPLES, 3, torch.Generator().manual_seed(1))
        follows = probabilities(tables[0], **vars(sampling))
        return p_of(found.tokens, follows[0], follows, follows.expand(len(follows), -1, -1)), found

    return measure


class NoResidual(Standard):
    """After a rejection, samples the target instead of the residual."""

    def couple(self, target, draft, tokens, present, draws):
        accepted, _ = reject(target, draft, tokens[:, 0], present[:, 0])
        return point(tokens[:, 0], target) * accepted[:, None] + target * (1 - accepted)[:, None]


class TokenResidual(Block):
    """Block verification's lengths with token-wise verification's residual."""

    def judge(self, draft, target):
        chances, follows = super().judge(draft, target)
        for slot in range(target.shape[1] - 1):
            token, drafted = draft.tokens[:, slot + 1], draft.alive[:, slot + 1]
            follows[:, slot] = reject(target[:, slot], draft.probs[:, slot], token, drafted)[1]
        return chances, follows


class NotRenormalised(Recursive):
    """Judges distinct siblings against the whole draft distribution."""

    def couple(self, target, draft, tokens, present, draws):
        return super().couple(target, draft, tokens, present, Draws.INDEPENDENT)


class NoDiscount(KSeq):
    """Every candidate gets standard rejection's chance, and the residual after them all is standard rejection's."""

    def couple(self, target, draft, tokens, present, draws):
        emission, left, residual = torch.zeros_like(target), torch.ones_like(target[:, 0]), target
        for candidate in range(tokens.shape[1]):
            accepted, residual = reject(target, draft, tokens[:, candidate], present[:, candidate])
            emission += point(tokens[:, candidate], target) * (left * accepted)[:, None]
            left = left * (1 - accepted)
        return emission + residual * left[:, None]


class _ByOwnToken:
    """Prunes a sampled draft by the probabilities of the very tokens that were drawn."""

    def prune(self, draft):
        return draft.pruned(super().prune(replace(draft, draws=Draws.FIXED)).alive)


class OwnTokenEvict(_ByOwnToken, Evict):
    pass


class OwnTokenTalon(_ByOwnToken, Talon):
    pass


class LaterDrawsEvict(Evict):
    """One argmax over the whole sampled chain: an early token is verified because of what was drawn after it."""

    def prune(self, draft):
        scores = survival(draft).double().masked_fill(draft.depths == 0, -torch.inf)
        root = torch.ones_like(scores[:, 0])
        return draft.pruned(spend(scores, self.costs, root, root.long() - 1))


@pytest.mark.parametrize(
    ("scorer", "plan"),
    [
        (Standard(), CHAIN),
        (Standard(), Plan((1, 1))),
        (Block(), CHAIN),
        (Block(), Plan((1, 1))),
        (KSeq(), Plan((3, 1), Draws.INDEPENDENT)),
        (Recursive(), Plan((2, 2), Draws.DISTINCT)),
        (Recursive(), Plan((2, 2), Draws.INDEPENDENT)),
        (Recursive(), Plan((2, 2))),
        (Talon(4), Plan((2, 2, 2))),
        (Talon(4), Plan((2, 2), Draws.DISTINCT)),
        (Evict(COSTS), Plan((2, 2))),
        (Evict(STEEP), CHAIN),
        (Evict(COSTS), Plan((2, 2), Draws.DISTINCT)),
    ],
    ids=called,
)
def test_sequences_follow_the_target(p_value, scorer, plan):
    p, found = p_value(scorer, plan)
    assert p > 1e-3
    assert found.accepted.sum() > SAMPLES / 4, "too little was accepted for the test to mean anything"
    assert not isinstance(scorer, Evict) or 0 < found.verified.sum() < found.drafted.sum(), "nothing was cut, or all"


@pytest.mark.parametrize(
    ("scorer", "plan"),
    [
        (NoResidual(), CHAIN),
        (TokenResidual(), CHAIN),
        (NoDiscount(), Plan((3, 1), Draws.INDEPENDENT)),
        (NotRenormalised(), Plan((2, 2), Draws.DISTINCT)),
        (OwnTokenTalon(4, gate=0.5), Plan((2, 2), Draws.DISTINCT)),
        (OwnTokenEvict(COSTS), CHAIN),
        (LaterDrawsEvict([1, 1.7, 1.75]), CHAIN),
    ],
    ids=called,
)
def test_the_controls_fail(p_value, scorer, plan):
    assert p_value(scorer, plan)[0] < 1e-6


@pytest.mark.parametrize(
    ("scorer", "plan"),
    [
        (Block(), CHAIN),
        (KSeq(), Plan((3, 1), Draws.INDEPENDENT)),
        (Recursive(), Plan((2, 2), Draws.DISTINCT)),
    ],
    ids=called,
)
def test_top_k_and_top_p(p_value, scorer, plan):
    assert p_value(scorer, plan, sampling=Sampling(0.7, top_k=3, top_p=0.9))[0] > 1e-3


def test_a_drafter_that_fails_leaves_the_text_right(p_value):
    drafter = SURE.clone()
    drafter[1, 0] = torch.nan
    p, found = p_value(Recursive(), Plan((2, 2), Draws.DISTINCT), (SURE, drafter))
    assert p > 1e-3
    assert (found.verified.sum() / found.steps.sum()) < 6


def test_cutting_by_the_drawn_token_makes_the_likely_one_likelier(p_value):
    """p = q = (0.9, 0.1) and a cut whenever the rare token was drawn give P(likely) = 0.99."""
    costs = [1, 1.5]
    plan = Plan((1,), Draws.INDEPENDENT)
    p, found = p_value(OwnTokenEvict(costs), plan, (SURE, SURE))
    assert p < 1e-6
    assert (found.tokens[:, 0] == 0).double().mean() == pytest.approx(0.99, abs=2e-3)
    assert p_value(Evict(costs), plan, (SURE, SURE))[0] > 1e-3
