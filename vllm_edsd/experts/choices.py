"""Multiple choice from questions with reference answers: the right answer among those to other questions of the set."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from vllm_edsd.errors import UserError
from vllm_edsd.experts.texts import LEAST, LONGEST, Text
from vllm_edsd.json_lines import read_lines
from vllm_edsd.prompts import Turn


class Asked(BaseModel):
    """A line of a prompt file with a reference answer."""

    model_config = ConfigDict(extra="ignore")

    id: str = Field(coerce_numbers_to_str=True)
    turns: list[Turn] = Field(min_length=1)
    reference: str | None = Field(default=None, coerce_numbers_to_str=True)


@dataclasses.dataclass(frozen=True)
class Question:
    """`answers` are the conversations with each possible answer, `right` the place of the reference."""

    group: str
    answers: list[Text]
    right: int


def read_questions(
    file: Path, encode: Callable[[str], list[int]], answer: Callable[[str], list[int]], count: int, options: int, seed: int
) -> list[Question]:
    """`count` questions of `file`, each with `options` answers.

    `encode` gives the tokens of a user's turn up to where the answer starts, `answer` those of an answer. Raises UserError
    where the file has too few questions with references that are not too long, or too few different answers.
    """
    lines = read_lines(file, Asked, "question file", "`id`, `turns` and `reference`", "")
    prompts = [(encode(line.turns[0]), line.reference) for line in lines if line.reference]
    asked = [(prompt, reference) for prompt, reference in prompts if len(prompt) <= LONGEST - LEAST]
    references = sorted({reference for _, reference in asked})
    if len(asked) < count or len(references) < options:
        raise UserError(
            f"{file} has {len(asked)} questions with a `reference` and room for it in {LONGEST} tokens, with "
            f"{len(references)} different answers; {count} and {options} are needed"
        )
    chooser = random.Random(seed)
    group = file.name.partition(".")[0]
    questions = []
    for prompt, reference in chooser.sample(asked, count):
        given = chooser.sample([other for other in references if other != reference], options - 1)
        right = chooser.randrange(options)
        given.insert(right, reference)
        questions.append(Question(group, [_text(prompt, answer(text)) for text in given], right))
    return questions


def _text(prompt: Sequence[int], answer: Sequence[int]) -> Text:
    return Text(torch.tensor([[*prompt, *answer][:LONGEST]]), len(prompt))
