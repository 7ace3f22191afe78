"""Judging along the text is exact: against slow loops, an oracle, noise, and what rejection sampling must give."""

from types import SimpleNamespace

import pytest
import torch

from vllm_edsd.drafters import factory
from vllm_edsd.drafters.layers import DraftCache
from vllm_edsd.errors import UserError
from vllm_edsd.evaluation.acceptance import Judge, follow
from vllm_edsd.evaluation.answers import Answer, Question
from vllm_edsd.training.evaluation import walk
from vllm_edsd.training.samples import read_samples

DEPTH = 3
GREEDY = Judge(DEPTH, 0.0, False, torch.float32)


def questions(count):
    generator = torch.Generator().manual_seed(7)
    texts = [torch.randint(2, 128, (4 + 3 * number,), generator=generator).tolist() for number in range(count)]
    return [Question(str(number), "all", tuple(text)) for number, text in enumerate(texts)]


def answers(tiny, count=6, tokens=24, temperature=0.0):
    return tiny.answer(questions(count), tokens, DEPTH - 1, temperature, 0, lambda _: None)


@torch.inference_mode()
def draft(tiny, drafter, text):
    """The greedy chain after `text`, step by step with nothing kept between calls."""
    states = tiny.model.model(text[None], output_hidden_states=True).hidden_states
    features = torch.cat([states[layer] for layer in drafter.config.layers], -1)[:, :-1]
    count, cache, drafted = len(text) - 1, DraftCache(), []
    visible = torch.ones(1, 1, count, dtype=torch.bool)
    tokens = tiny.embedding[text[1:]][None]
    state = drafter.first(features, tokens, torch.arange(count)[None], cache, visible)
    for step in range(DEPTH):
        drafted.append(int(drafter.draft_ids[drafter.logits(state)[0, 0].argmax()]))
        token = tiny.embedding[drafted[-1]][None, None]
        state = drafter.next(state, token, torch.tensor([[count + step]]), cache, visible)
    return drafted


@torch.inference_mode()
def serve(tiny, drafter, answer):
    """Drafts and accepted tokens by position of a request that is really decoded, one target forward after the other."""
    counts, text = torch.zeros(1 + DEPTH), torch.tensor(answer.question.tokens)
    text = torch.cat([text, tiny.model(text[None]).logits[0, -1:].argmax(-1)])
    while len(text) < len(answer.question.tokens) + answer.length:
        drafted = torch.tensor(draft(tiny, drafter, text))
        said = tiny.model(torch.cat([text, drafted])[None]).logits[0, len(text) - 1 :].argmax(-1)
        kept = int((drafted == said[:-1]).int().cumprod(0).sum())
        counts[0] += 1
        counts[1 : 1 + kept] += 1
        text = torch.cat([text, said[: kept + 1]])
    return counts


def test_greedy_counts_are_those_of_a_served_request(tiny, trained_drafter, tiny_data):
    drafter, total = factory.load(trained_drafter), torch.zeros(1 + DEPTH)
    seen = [Question("", "all", tuple(sample.tokens[: sample.answer].tolist())) for sample in read_samples(tiny_data)[::3]]
    for answer in tiny.answer(seen, 20, DEPTH - 1, 0.0, 0, lambda _: None):
        found = GREEDY.counts(tiny, {"it": drafter}, answer)["it"]
        assert torch.equal(found.float(), serve(tiny, drafter, answer))
        total += found
    assert total[0] > 40 and total[1] > 20 and total[DEPTH] > 3


class Oracle:
    """Knows the text; wrong at positions in `wrong`."""

    def __init__(self, text, wrong=()):
        self.said = text.clone()
        self.said[list(wrong)] = 0
        self.config = SimpleNamespace(layers=(1,))
        self.draft_ids, self.t2d = torch.arange(128), torch.ones(128, dtype=torch.bool)

    def first(self, hidden, tokens, positions, cache, visible):
        cache.add(hidden[..., None], hidden[..., None])
        return positions[:, -visible.shape[1] :, None].float()

    def next(self, state, tokens, positions, cache, visible):
        return positions[..., None].float()

    def logits(self, state):
        places = (state[..., 0].long() + 2).clamp(max=len(self.said) - 1)
        return 20.0 * torch.nn.functional.one_hot(self.said[places], 128)


@pytest.mark.parametrize("judge", [GREEDY, Judge(DEPTH, 1.0, False, torch.float32)], ids=["greedy", "sampled text"])
def test_an_oracle_is_always_accepted(tiny, judge):
    for answer in answers(tiny, temperature=judge.temperature):
        counts = judge.counts(tiny, {"oracle": Oracle(answer.tokens)}, answer)["oracle"]
        steps = -(-(answer.length - 1) // (DEPTH + 1))
        assert counts.tolist() == [steps] * (1 + DEPTH)


def test_an_oracle_that_errs_once_loses_that_draft(tiny):
    (answer,) = answers(tiny, count=1)
    asked = len(answer.question.tokens)
    counts = GREEDY.counts(tiny, {"oracle": Oracle(answer.tokens, [asked + 2])}, answer)["oracle"]
    # The first draft is of tokens asked+1 to asked+3: one is kept, and the target goes on from asked+2.
    after = -(-(answer.length - 3) // (DEPTH + 1))
    assert counts.tolist() == [1 + after, 1 + after, after, after]


def test_noise_is_hardly_ever_accepted(tiny, tiny_drafter):
    drafter = factory.load(tiny_drafter)
    counts = sum(GREEDY.counts(tiny, {"noise": drafter}, answer)["noise"] for answer in answers(tiny, 12))
    assert counts[1:].sum() / counts[0] < 0.1


def test_a_drafter_that_says_nan_is_named(tiny, tiny_drafter):
    drafter = factory.load(tiny_drafter)
    torch.nn.init.constant_(drafter.norm.weight, torch.nan)
    with pytest.raises(UserError, match="drafter broken says NaN to prompt 0"):
        GREEDY.counts(tiny, {"broken": drafter}, answers(tiny, 1)[0])


def test_a_sampled_draft_is_accepted_as_rejection_sampling_accepts(tiny, tiny_drafter):
    """Over the target's next token x ~ p, the mean of min(1, q(x)/p(x)) is sum_v min(p, q)."""
    drafter, heat, asked = factory.load(tiny_drafter), 0.7, questions(3)[2]
    judge = Judge(1, heat, True, torch.float32)
    text = torch.tensor([*asked.tokens, 9])
    with torch.inference_mode():
        target = (tiny.model(text[None]).logits[0, -1] / heat).softmax(-1)
        states = tiny.model.model(text[None], output_hidden_states=True).hidden_states
        features = torch.cat([states[layer] for layer in drafter.config.layers], -1)[:, :-1]
        count = len(text) - 1
        visible = torch.ones(1, 1, count, dtype=torch.bool)
        tokens = tiny.embedding[text[1:]][None]
        state = drafter.first(features, tokens, torch.arange(count)[None], DraftCache(), visible)
        drawn = torch.zeros(128)
        drawn[drafter.draft_ids] = (drafter.logits(state)[0, 0] / heat).softmax(-1)
    mean = 0.0
    for token in range(128):
        answer = Answer(asked, torch.tensor([*asked.tokens, 9, token]), 2)
        drafts, accepted = judge.counts(tiny, {"it": drafter}, answer)["it"].tolist()
        assert drafts == 1
        mean += float(target[token]) * accepted
    assert mean == pytest.approx(float(torch.minimum(target, drawn).sum()), rel=1e-4)
    assert mean > 0.01


def test_plain_counts_are_those_of_the_walk():
    generator = torch.Generator().manual_seed(1)
    for chains in (0, 1, 5, 40):
        matches = torch.rand(chains, 4, generator=generator) < 0.6
        kept = walk(matches)
        wanted = [len(kept), *(sum(count > position for count in kept) for position in range(4))]
        assert follow(matches.double()).tolist() == wanted


def test_chances_are_followed_along_every_course():
    chances = torch.rand(7, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def course(chain, weight):
        if chain >= len(chances):
            return torch.zeros(3, dtype=torch.float64)
        first, second = chances[chain].tolist()
        own = weight * torch.tensor([1, first, first * second], dtype=torch.float64)
        ends = (1 - first, first * (1 - second), first * second)
        return own + sum(course(chain + 1 + kept, weight * end) for kept, end in enumerate(ends))

    torch.testing.assert_close(follow(chances), course(0, 1.0))
