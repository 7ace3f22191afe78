import pytest
import torch

from vllm_edsd.errors import UserError
from vllm_edsd.evaluation.answers import Question
from vllm_edsd.evaluation.target import Target
from vllm_edsd.prompts import Prompt


def quiet(*_):
    pass


def question(name, *tokens):
    return Question(name, "all", tokens)


ASKED = [question("a", 7, 9, 30), question("b", *range(10, 40)), question("c", 100, 3, 5, 80, 44)]


def texts(answers):
    return [answer.tokens[len(answer.question.tokens) :].tolist() for answer in answers]


def test_greedy_answers_of_uneven_prompts_are_those_of_each_alone(tiny):
    found = tiny.answer(ASKED, 12, 3, 0.0, 0, quiet)
    for answer, text in zip(found, texts(found), strict=True):
        prompt = torch.tensor([answer.question.tokens])
        wanted = tiny.model.generate(prompt, max_new_tokens=15, min_new_tokens=15, do_sample=False, pad_token_id=0)
        if answer.length == 12:
            assert text == wanted[0, prompt.shape[1] :].tolist()
    assert {answer.length for answer in found} == {12}


def test_an_answer_ends_with_its_turn_and_goes_on_beyond_it(tiny, monkeypatch):
    whole = texts(tiny.answer(ASKED, 12, 0, 0.0, 0, quiet))
    monkeypatch.setattr(tiny, "ends", frozenset({whole[0][4]}))
    first = tiny.answer(ASKED, 12, 3, 0.0, 0, quiet)[0]
    assert first.length == whole[0].index(whole[0][4]) + 1
    assert texts([first]) == [whole[0][: first.length + 3]]


def test_sampled_answers_depend_on_seed_and_prompt_alone(tiny):
    together = texts(tiny.answer(ASKED, 12, 0, 1.0, 5, quiet))
    assert texts(tiny.answer(ASKED[2:], 12, 0, 1.0, 5, quiet)) == together[2:]
    assert texts(tiny.answer(ASKED[2:], 12, 0, 1.0, 6, quiet)) != together[2:]


def test_sampled_tokens_follow_the_targets_chances(tiny):
    many = [question(str(number), 7, 9, 30) for number in range(400)]
    firsts = torch.tensor([text[0] for text in texts(tiny.answer(many, 1, 0, 2.0, 0, quiet))])
    with torch.inference_mode():
        chances = (tiny.model(torch.tensor([[7, 9, 30]])).logits[0, -1] / 2.0).softmax(-1)
    top = chances.argmax()
    spread = float((chances[top] * (1 - chances[top]) / 400).sqrt())
    assert float((firsts == top).float().mean()) == pytest.approx(float(chances[top]), abs=4 * spread)


def test_a_question_is_the_chat_by_the_template(tiny):
    prompt = Prompt(id="x", category="maths", turns=["w9 w8", "w7"])
    assert tiny.question(prompt, prompt.messages()) == Question("x", "maths", (2, 3, 9, 8, 4, 5))


def test_a_template_that_takes_no_system_prompt_is_named(tiny, monkeypatch):
    monkeypatch.setattr(tiny.tokenizer, "chat_template", "{{ raise_exception('System role not supported') }}")
    prompt = Prompt(id="x", turns=["w7"], system="w9")
    with pytest.raises(UserError, match=r"refuses prompt x with roles system, user \(System role not supported\)"):
        tiny.question(prompt, prompt.messages())


def test_a_prompt_too_long_is_named(tiny):
    with pytest.raises(UserError, match="prompt long has 500 tokens, which with 12"):
        tiny.answer([question("long", *[3] * 500)], 12, 4, 0.0, 0, quiet)


def test_a_target_without_a_template_is_refused(chat_target, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    for file in chat_target.iterdir():
        if file.suffix != ".jinja":
            (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="has no chat template"):
        Target(folder, torch.float32, torch.device("cpu"))
