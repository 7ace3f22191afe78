import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from vllm_edsd.errors import UserError
from vllm_edsd.prompts import Prompt
from vllm_edsd.training.regen import RegenOptions, regenerate
from vllm_edsd.training.samples import metadata, read_samples

OPTIONS = RegenOptions("t", (0.0, 0.7), max_tokens=4, max_prompt_tokens=40, shard_size=4, seed=3)
PROMPTS = [Prompt(id=str(number), turns=["x" * (number % 5 + 1)]) for number in range(18)]


class Target:
    """Answers with the prompt's length; counts what it was asked."""

    def __init__(self, fail_after=10**9):
        self.asked = 0
        self.fail_after = fail_after

    def render(self, messages):
        return [len(message["content"]) for message in messages] * 3

    def decode(self, tokens):
        return "y" * len(tokens)

    def generate(self, prompts, temperatures):
        if self.asked >= self.fail_after:
            raise KeyboardInterrupt
        self.asked += len(prompts)
        return [[len(prompt), 9] for prompt in prompts]


def run(out, target=None, options=OPTIONS, prompts=PROMPTS, tokens=10**6, part=(1, 1)):
    target = target or Target()
    return regenerate(prompts, target.render, target.decode, target.generate, options, out, tokens, lambda *_: None, part)


def contents(folder):
    return [(sample.tokens.tolist(), sample.answer, sample.temperature) for sample in read_samples(folder)]


def test_a_killed_run_resumes_without_loss_or_repetition(tmp_path):
    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Target(fail_after=8))
    again = Target()
    assert run(tmp_path / "killed", again) == 36
    assert again.asked == 10
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "whole")) == 18


def test_parts_make_the_whole(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "parts", part=(2, 2))
    run(tmp_path / "parts", part=(1, 2))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_stops_after_enough_tokens(tmp_path):
    assert run(tmp_path, tokens=9) == 16
    assert len(contents(tmp_path)) == 8


def test_temperatures_take_turns_and_long_prompts_are_left_out(tmp_path):
    long = Prompt(id="long", turns=["hello", "again"], system="s" * 50)
    options = RegenOptions("t", (0.0, 0.7), max_tokens=4, max_prompt_tokens=5, shard_size=4, seed=3)
    run(tmp_path, options=options, prompts=[*PROMPTS[:3], long])
    assert len(contents(tmp_path)) == 3
    run(tmp_path / "all", prompts=PROMPTS)
    assert torch.tensor([heat for *_, heat in contents(tmp_path / "all")]).unique().tolist() == pytest.approx([0.0, 0.7])


def test_every_turn_is_a_sample_over_the_answers_before_it(tmp_path):
    run(tmp_path, prompts=[Prompt(id="two", turns=["a", "bb"])])
    first, second = contents(tmp_path)
    assert first[0] == [1, 1, 1, 3, 9]
    assert second[0] == [1, 2, 2] * 3 + [9, 9]


def test_other_options_are_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(UserError, match="another seed"):
        run(tmp_path, options=RegenOptions("t", (0.0, 0.7), 4, 40, 4, 4))


@pytest.mark.parametrize("spoil", ["truncated", "foreign"])
def test_a_shard_that_cannot_be_read_is_named(spoil, tmp_path):
    run(tmp_path)
    shard = tmp_path / "samples-00001.safetensors"
    if spoil == "truncated":
        shard.write_bytes(shard.read_bytes()[:-9])
    else:
        save_file(load_file(shard), shard)
    with pytest.raises(
        UserError, match=r"data shard .*samples-00001\.safetensors is damaged .*; delete it and run regen again"
    ):
        run(tmp_path)


def test_shards_name_the_targets_fingerprint_and_those_of_another_are_refused(tmp_path):
    marks = {"target": "a" * 12, "tokenizer": "b" * 12}
    run(tmp_path / "old")
    marked = dataclasses.replace(OPTIONS, fingerprint=marks)
    run(tmp_path / "new", options=marked)
    assert metadata(tmp_path / "new")["fingerprint"] == marks
    with pytest.raises(UserError, match="another fingerprint"):
        run(tmp_path / "new", options=dataclasses.replace(OPTIONS, fingerprint=marks | {"target": "c" * 12}))
