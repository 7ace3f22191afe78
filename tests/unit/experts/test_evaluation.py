import math

import pytest
import torch

from vllm_edsd.experts.choices import Question
from vllm_edsd.experts.evaluation import Arm, evaluate
from vllm_edsd.experts.texts import Text

FULL, FEWER = dict.fromkeys(range(3), 4), {0: 1, 1: 2, 2: 1}


@pytest.fixture
def arms(make_hook):
    return [
        Arm("full", FULL),
        Arm("fewer", FEWER),
        Arm("repaired", FEWER, {0: make_hook(64), 1: make_hook()}),
        Arm("idle", FEWER, {0: make_hook(scale=0.0)}),
    ]


@pytest.mark.parametrize("mode", ["prefill", "all"])
def test_arms_side_by_side(family, mode, make_moe, arms, texts):
    model = make_moe(family)
    scores = {score.arm: score for score in evaluate(model, arms, texts, [], mode)}
    with torch.inference_mode():
        losses = [
            -model(text.tokens).logits[0].log_softmax(-1)[text.scored].gather(1, text.wanted[:, None]) for text in texts
        ]
    full, fewer = scores["full"], scores["fewer"]
    assert full.perplexity == pytest.approx(math.exp(torch.cat(losses).mean()), rel=1e-4)
    assert full.low <= full.perplexity <= full.high and full.low < full.high
    assert (full.divergence, full.agreement, full.experts_per_token) == (pytest.approx(0, abs=1e-6), 1.0, 4.0)
    assert fewer.divergence > 0.01 and fewer.agreement < 1
    whole = len(texts) / sum(text.answer for text in texts) if mode == "prefill" else 0.0  # the prompts' last tokens
    assert fewer.experts_per_token == pytest.approx(4 * whole + 4 / 3 * (1 - whole))
    assert scores["repaired"].divergence != pytest.approx(fewer.divergence, rel=1e-3)
    assert scores["idle"].divergence == pytest.approx(fewer.divergence, rel=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_arm_that_fails_leaves_nothing_behind(make_moe, make_hook, texts):
    model = make_moe()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        evaluate(model, [Arm("misfit", FEWER, {0: make_hook(hidden=3)})], texts, [], "all")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def planted(model, prompt, right):
    """A question whose right answer is what the model says itself, the others what it finds least likely."""
    answers = []
    for place in range(4):
        tokens = prompt.clone()
        for _ in range(6 + place):  # of uneven length: the mean per token decides
            with torch.inference_mode():
                last = model(tokens).logits[0, -1]
            tokens = torch.cat([tokens, (last.argmax() if place == right else last.argsort()[place])[None, None]], dim=1)
        answers.append(Text(tokens, prompt.shape[1]))
    return Question("planted", answers, right)


def likelihoods(model, text):
    return model(text.tokens).logits[0].log_softmax(-1)[text.scored].gather(1, text.wanted[:, None])


def test_planted_multiple_choice_is_answered(make_moe, arms, tokens, texts):
    model = make_moe()
    questions = [planted(model, tokens(12, seed), seed % 4) for seed in range(8)]
    wrong = [Question("wrong", question.answers, (question.right + 1) % 4) for question in questions]
    told = []
    scores = evaluate(model, arms[:2], texts[:1], [*questions, *wrong], "all", lambda: told.append(1))
    assert scores[0].accuracy == {"planted": 1.0, "wrong": 0.0}
    assert scores[1].accuracy.keys() == {"planted", "wrong"}
    assert len(told) == 2 * (1 + 16)
    with torch.inference_mode():
        found = torch.cat([likelihoods(model, question.answers[question.right]) for question in questions])
    assert scores[0].references["planted"] == pytest.approx(math.exp(-found.mean()), rel=1e-4)
    assert scores[0].references["wrong"] > scores[0].references["planted"]
