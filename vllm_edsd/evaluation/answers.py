"""The target's own answers: what drafters are judged on, kept in a file so that several are judged on the same text."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vllm_edsd.errors import UserError
from vllm_edsd.files import atomic


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt as tokens, by the target's template."""

    id: str
    category: str
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Answer:
    """`tokens` int64: the question, `length` tokens of the answer (its end of turn included), and what would follow.

    What follows is never sent to a user. A server's last drafts reach into it and its counters count it.
    """

    question: Question
    tokens: torch.Tensor
    length: int


def identity(target: str, questions: Sequence[Question], sampling: dict[str, Any]) -> dict[str, Any]:
    """What answers depend on; `target` is its weights' digest. Questions count with their template and tokenizer."""
    asked = json.dumps([dataclasses.astuple(question) for question in questions])
    return {"target": target, "prompts": hashlib.sha256(asked.encode()).hexdigest()[:16], **sampling}


def write(path: Path, answers: Sequence[Answer], made: dict[str, Any]) -> None:
    """Writes answers made as `made` (of `identity`) says, whole or not at all."""
    lengths = torch.tensor([[len(answer.tokens), answer.length] for answer in answers])
    tensors = {"tokens": torch.cat([answer.tokens.int() for answer in answers]), "lengths": lengths}
    with atomic(path) as partial:
        save_file(tensors, partial, metadata={"edsd": json.dumps(made)})


def read(path: Path, questions: Sequence[Question], wanted: dict[str, Any], beyond: int) -> list[Answer]:
    """The answers to `questions` in a file of `write`.

    Raises UserError for a damaged file, for answers made another way, and for fewer than `beyond` tokens beyond them.
    """
    try:
        with safe_open(path, "pt") as file:
            made = json.loads((file.metadata() or {})["edsd"])
            tokens, lengths = file.get_tensor("tokens").long(), file.get_tensor("lengths").tolist()
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged or no file of answers ({error}); delete it and it is made again") from None
    for key, value in wanted.items():
        if made.get(key) != value:
            raise UserError(
                f"{path} has answers made with {key} {made.get(key)!r}, now {value!r}; name another file with --answers, "
                "or the same options"
            )
    parts = tokens.split([count for count, _ in lengths])
    answers = [Answer(question, part, length) for question, part, (_, length) in zip(questions, parts, lengths, strict=True)]
    spare = min(len(answer.tokens) - len(answer.question.tokens) - answer.length for answer in answers)
    if spare < beyond:
        raise UserError(
            f"{path} was made for --num-tokens {spare + 1} at most, and {beyond + 1} are asked for; name another file with "
            "--answers, or make it with the largest --num-tokens first"
        )
    return answers
