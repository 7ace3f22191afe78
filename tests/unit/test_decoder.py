"""benchmarks/bundled/decoder.py writes what transformers writes, however rows are shared out among the prompts."""

import importlib.util
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

MOST = 24


@pytest.fixture(scope="module")
def decoder():
    path = Path(__file__).parents[2] / "benchmarks" / "bundled" / "decoder.py"
    spec = importlib.util.spec_from_file_location("decoder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tiny_target):
    return AutoModelForCausalLM.from_pretrained(tiny_target, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(model):
    chance = random.Random(0)
    return [[chance.randrange(3, model.config.vocab_size) for _ in range(chance.randrange(1, 90))] for _ in range(9)]


@pytest.fixture(scope="module")
def expected(model, prompts):
    found = [model.generate(torch.tensor([prompt]), max_new_tokens=MOST, do_sample=False) for prompt in prompts]
    return [tokens[0, len(prompt) :].tolist() for tokens, prompt in zip(found, prompts, strict=True)]


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_greedy_answers_are_those_of_transformers(decoder, model, prompts, expected, rows):
    ends = [expected[0][3], expected[5][20]]  # some answers stop early, and their rows take others
    made = decoder.Decoder(model, rows, 90 + MOST, ends, 0)
    wanted = [answer[: min([answer.index(end) + 1 for end in ends if end in answer], default=MOST)] for answer in expected]
    reported = []
    assert made.generate(prompts, [0.0] * len(prompts), MOST, reported.append) == wanted
    assert sum(reported) == len(prompts)
    assert len({len(answer) for answer in wanted}) > 1


def test_a_heat_is_a_row_s_own(decoder, model, prompts, expected):
    heats = [0.0 if place % 2 else 5.0 for place in range(len(prompts))]
    found = decoder.Decoder(model, 3, 90 + MOST, [], 0).generate(prompts, heats, MOST, lambda _: None)
    assert [answer == wanted for answer, wanted in zip(found, expected, strict=True)] == [heat == 0 for heat in heats]


def test_drawn_tokens_follow_the_target(decoder, model):
    prompt, count, heat = [5, 9, 7], 4000, 1.5
    drawn = decoder.Decoder(model, 500, 3 + 16, [], 0).generate([prompt] * count, [heat] * count, 1, lambda _: None)
    seen = torch.bincount(torch.tensor([answer[0] for answer in drawn]), minlength=model.config.vocab_size)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    apart = {t: 0.5 * float((seen / count - (logits / t).softmax(-1)).abs().sum()) for t in (heat, 0.5 * heat)}
    assert apart[heat] < 0.05 + 0.5 * (model.config.vocab_size / count) ** 0.5 < apart[0.5 * heat]
