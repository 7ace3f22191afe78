"""Losslessness by chi-square: drafts, verified and continued by the target, are distributed as the target's own text."""

import itertools

import pytest
import torch
from scipy.stats import chisquare

from vllm_edsd.kernels.block_verify import METHODS, block_verify, naive

VOCABULARY, LONGEST, REQUESTS = 3, 3, 40_000


def draw(chances, generator):
    return torch.multinomial(chances, 1, generator=generator)[:, 0]


class Language:
    """Next-token tables [position, last token, V] of a target and of a drafter; position 0 follows token 0.

    `skewed` ones are made so that what replaces a rejected draft depends much on the drafts kept before it.
    """

    def __init__(self, skewed=False):
        self.generator = torch.Generator().manual_seed(0)
        if skewed:
            tables = [[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]], [[0.9, 0.05, 0.05], [0.2, 0.18, 0.62]]
            self.target, self.drafter = (torch.tensor(table * 2)[:, None].expand(-1, 3, -1) for table in tables)
            return
        shape = (LONGEST + 1, VOCABULARY, VOCABULARY)
        target = torch.randn(shape, generator=self.generator)
        self.target = target.softmax(-1)
        self.drafter = (target + torch.randn(shape, generator=self.generator)).softmax(-1)

    def drafts(self, greedy):
        """A ragged batch, with the drafter's distributions also where it took their argmax."""
        counts = torch.randint(0, LONGEST + 1, (REQUESTS,), generator=self.generator)
        last, rows = torch.zeros(REQUESTS, dtype=torch.int64), []
        for position in range(LONGEST + 1):
            p, q = self.target[position, last], self.drafter[position, last]
            drawn = q.argmax(-1) if greedy else draw(q, self.generator)
            token = torch.where(position < counts, drawn, draw(p, self.generator))
            rows.append((token, q, p))
            last = torch.where(position < counts, token, last)
        token, q, p = (torch.stack(column, 1) for column in zip(*rows, strict=True))
        real = torch.arange(LONGEST + 1) < counts[:, None]
        bonus = token[torch.arange(REQUESTS), counts]
        seeds = torch.randint(-(2**62), 2**62, (REQUESTS,), generator=self.generator)
        return token[real], counts.cumsum(0).int(), q[real], p[real], bonus, seeds, LONGEST

    def finish(self, tokens, kept):
        """What verification left open is written by the target."""
        texts = tokens.clone()
        for position in range(1, LONGEST + 1):
            written = draw(self.target[position, texts[:, position - 1]], self.generator)
            texts[:, position] = torch.where(position > kept, written, texts[:, position])
        return texts

    def pvalue(self, texts):
        """Of the texts under the target: one cell for each text of LONGEST + 1 tokens."""
        cells, chances = [], []
        for text in itertools.product(range(VOCABULARY), repeat=LONGEST + 1):
            pairs = zip((0, *text), text, strict=False)
            chances.append(float(torch.stack([self.target[place, *pair] for place, pair in enumerate(pairs)]).prod()))
            cells.append(text)
        place = (texts * VOCABULARY ** torch.arange(LONGEST, -1, -1)).sum(-1)
        counts = torch.bincount(place, minlength=len(cells)).double()
        wanted = torch.tensor(chances, dtype=torch.float64) * len(texts)
        assert wanted.min() > 5
        return chisquare(counts, wanted * len(texts) / wanted.sum()).pvalue


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("greedy", "known"), [(False, True), (True, False), (False, False)], ids=["drawn", "greedy", "hidden"]
)
@pytest.mark.parametrize("skewed", [False, True], ids=["random", "skewed"])
def test_the_text_is_the_targets(method, greedy, known, skewed):
    """Taking a drawn draft for a fixed one (hidden) is lossless too, it only keeps fewer."""
    language = Language(skewed)
    drafts, ends, q, *others = language.drafts(greedy)
    texts = language.finish(*block_verify(drafts, ends, q if known else None, *others, method))
    assert language.pvalue(texts) > 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mistake", ["greedy called drawn", "wrong q", "one seed", "no residual"])
def test_mistakes_are_found(method, mistake):
    language = Language()
    drafts, ends, q, p, bonus, seeds, longest = language.drafts(greedy=mistake == "greedy called drawn")
    if mistake == "wrong q":
        q = (q.log() * 1.3).softmax(-1)
    elif mistake == "one seed":
        seeds = torch.zeros_like(seeds)
    tokens, kept = block_verify(drafts, ends, q, p, bonus, seeds, longest, method)
    if mistake == "no residual":  # a rejected draft is replaced from p instead of max(p - q, 0)
        counts = ends.long().diff(prepend=torch.zeros(1, dtype=torch.long))
        last = torch.where(kept > 0, tokens.gather(1, (kept.long() - 1).clamp(min=0)[:, None])[:, 0], 0)
        again = draw(language.target[kept.long(), last], language.generator)
        tokens = torch.where((torch.arange(longest + 1) == kept[:, None]) & (kept < counts)[:, None], again[:, None], tokens)
    assert language.pvalue(language.finish(tokens, kept)) < 1e-6


def test_block_keeps_what_its_paper_says():
    """Two drafts from (2/3, 1/3) for a target (1/3, 2/3): 10/9 are kept one by one, 11/9 as a block (Sun et al.)."""
    generator, requests = torch.Generator().manual_seed(1), 200_000
    p, q = torch.tensor([1 / 3, 2 / 3]).expand(2 * requests, 2), torch.tensor([2 / 3, 1 / 3]).expand(2 * requests, 2)
    ends, seeds = torch.arange(2, 2 * requests + 1, 2).int(), torch.arange(requests)
    for method, wanted in (("standard", 10 / 9), ("block", 11 / 9)):
        _, kept = block_verify(draw(q, generator), ends, q, p, draw(p[:requests], generator), seeds, 2, method)
        assert float(kept.float().mean()) == pytest.approx(wanted, abs=0.01)


def random_batch(counts, vocabulary, greedy, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, sum(counts), vocabulary, generator=generator) * 2
    q, p = logits[0].softmax(-1), (logits[0] + logits[1] / 2).softmax(-1)
    tokens = draw(q, generator) if sum(counts) else torch.empty(0, dtype=torch.int64)
    ends = torch.tensor(counts, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    bonus = torch.randint(vocabulary, (len(counts),), generator=generator)
    seeds = torch.randint(-(2**62), 2**62, (len(counts),), generator=generator)
    return tokens, ends, None if greedy else q, p, bonus, seeds, max(counts, default=0)


@pytest.mark.parametrize("greedy", [False, True], ids=["drawn", "greedy"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("counts", "vocabulary"),
    [([3, 0, 5], 63), ([1, 4, 2, 4] * 2, 5), ([2], 32003), ([1], 151936), ([0, 0], 7), ([], 9)],
    ids=lambda x: str(x)[:12],
)
def test_equals_naive(interpreted, counts, vocabulary, method, greedy):
    batch = random_batch(counts, vocabulary, greedy)
    found = interpreted("block_verify", *batch, method)
    wanted = naive(*batch, method)
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


def test_equals_naive_where_the_replacement_depends_on_the_block(interpreted):
    drafts, ends, q, p, bonus, seeds, longest = Language(skewed=True).drafts(greedy=False)
    total = int(ends[39])
    batch = (drafts[:total], ends[:40], q[:total], p[:total], bonus[:40], seeds[:40], longest, "block")
    assert torch.equal(interpreted("block_verify", *batch)[0], naive(*batch)[0])


@pytest.mark.parametrize("method", METHODS)
def test_temperature_zero_is_the_targets_argmax(method):
    drafts, ends, q, p, bonus, seeds, longest = random_batch([4] * 200, 5, False)
    said = p.argmax(-1)
    p = torch.nn.functional.one_hot(said, 5).float()
    tokens, kept = block_verify(drafts, ends, q, p, bonus, seeds, longest, method)
    same = (drafts == said).view(200, 4)
    assert torch.equal(kept.long(), same.long().cumprod(1).sum(1))
    for request in range(200):
        wanted = torch.cat([said.view(200, 4)[request], bonus[request, None]])[: kept[request] + 1]
        assert tokens[request].tolist() == wanted.tolist() + [-1] * (4 - int(kept[request]))


@pytest.mark.parametrize("method", METHODS)
def test_waits_for_no_result(method):
    """Meta tensors have no values to wait for."""
    batch = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in random_batch([3, 0, 5], 63, False)]
    tokens, _ = naive(*batch, method)
    assert tokens.shape == (3, 6)


@pytest.mark.parametrize(
    ("place", "wrong", "named"),
    [
        (0, torch.zeros(4), "drafts"),
        (1, torch.zeros(2, dtype=torch.int64), "cu_num_draft_tokens"),
        (2, torch.zeros(3, 5), "draft_probs"),
        (3, torch.zeros(4, 5, dtype=torch.bfloat16), "target_probs"),
        (4, torch.zeros(3, dtype=torch.int64), "bonus"),
        (5, torch.zeros(2), "seeds"),
        (6, -1, "longest is -1"),
        (7, "typical", "typical.*standard, block"),
    ],
)
def test_errors_name_the_argument(place, wrong, named):
    arguments = [*random_batch([3, 1], 5, False), "block"]
    arguments[place] = wrong
    with pytest.raises(ValueError, match=named):
        block_verify(*arguments)
