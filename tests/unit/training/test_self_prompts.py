import pytest

from vllm_edsd.training.self_prompts import self_prompts, worth_asking


@pytest.mark.parametrize("text", ["Why is the sky blue?", "Write f(x) = x**2 in C:\n{ ... }", "a b c"])
def test_keeps_what_reads_as_a_turn(text):
    assert worth_asking(text)


@pytest.mark.parametrize(
    "text",
    ["", "Hello", "word " * 301, "yes no " * 40, "What is <|im_start|> for you?", "日本語 のテキスト です から だめ"],
    ids=["empty", "fragment", "long", "loop", "template", "unreadable"],
)
def test_leaves_out_what_does_not(text):
    assert not worth_asking(text)


def test_leaves_out_repeats_and_numbers_the_rest():
    kept = self_prompts([" Why is it so? ", "why is  it SO?", "no", "Tell me a joke."], "t-1")
    assert [(prompt.id, prompt.turns, prompt.category) for prompt in kept] == [
        ("t-1-0", ["Why is it so?"], "self"),
        ("t-1-1", ["Tell me a joke."], "self"),
    ]
