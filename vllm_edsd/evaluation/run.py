"""A run: the target answers the prompts, or their answers are read, and drafters are judged on them."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from vllm_edsd.bench.environment import describe
from vllm_edsd.bench.progress import Progress
from vllm_edsd.drafters.checkpoint import version
from vllm_edsd.drafters.core import Drafter
from vllm_edsd.evaluation import answers
from vllm_edsd.evaluation.acceptance import Judge
from vllm_edsd.evaluation.answers import Answer
from vllm_edsd.evaluation.drafters import load
from vllm_edsd.evaluation.target import Target
from vllm_edsd.prompts import Prompt
from vllm_edsd.training.trainer import DTYPES


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """What is measured. `prompts_file` and `limit` are only quoted in the result."""

    target: Path
    prompts: tuple[Prompt, ...]
    prompts_file: Path | None = None
    limit: int | None = None
    num_tokens: int = 5
    temperature: float = 0.0
    draft_sample_method: str = "greedy"
    max_tokens: int = 256
    dtype: str = "bfloat16"
    seed: int = 0

    def sampling(self) -> dict[str, Any]:
        """What an answer depends on beside target and prompt."""
        return {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "dtype": self.dtype,
            "seed": self.seed if self.temperature > 0 else 0,
        }


class Run:
    """The target with its answers, and drafters judged on them one prompt after the other."""

    def __init__(self, options: EvalOptions, drafters: dict[str, Path], progress: Progress):
        self.options, self.progress = options, progress
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = DTYPES[options.dtype]
        progress.status("loading")
        self.target = Target(options.target, dtype, self.device)
        self.drafters: dict[str, Drafter] = {name: load(folder, self.device) for name, folder in drafters.items()}
        self.folders = drafters
        sampled = options.draft_sample_method == "probabilistic"
        self.judge = Judge(options.num_tokens, options.temperature, sampled, dtype)

    def answers(self, chats: Sequence[list[dict[str, str]]] | None = None, path: Path | None = None) -> list[Answer]:
        """The target's answers to the prompts, in order; read from `path` where that exists, else written to it.

        `chats` are what is asked instead of the prompts' first turns, one for each prompt.
        """
        options, prompts = self.options, self.options.prompts
        asked = [prompt.messages() for prompt in prompts] if chats is None else chats
        questions = [self.target.question(prompt, chat) for prompt, chat in zip(prompts, asked, strict=True)]
        beyond = options.num_tokens - 1
        made = answers.identity(version(options.target), questions, options.sampling())
        if path is not None and path.exists():
            return answers.read(path, questions, made, beyond)
        self._answered(0)
        sampling = (options.max_tokens, beyond, options.temperature, options.seed)
        found = self.target.answer(questions, *sampling, self._answered)
        if path is not None:
            answers.write(path, found, made)
        return found

    def counts(self, found: Sequence[Answer]) -> dict[str, numpy.ndarray]:
        """For each drafter float64 [prompts, 1 + depth]: drafts, and accepted tokens by position."""
        rows = []
        for answer in found:
            self.progress.status("judging")
            rows.append(self.judge.counts(self.target, self.drafters, answer))
            self.progress.advance(1)
        return {name: numpy.stack([row[name].numpy() for row in rows]) for name in self.drafters}

    def describe(self) -> dict[str, Any]:
        """The environment of the result."""
        options = self.options
        return describe(options.target, options.prompts_file) | {
            "command": shlex.join(["vllm-edsd", *sys.argv[1:]]),  # a command that started itself again has another name
            "seeds": {"answers": options.seed, "bootstrap": options.seed},
            "num_tokens": options.num_tokens,
            "temperature": options.temperature,
            "draft_sample_method": options.draft_sample_method,
            "dtype": options.dtype,
            "max_tokens": options.max_tokens,
            "limit": options.limit,
            "prompt_count": len(options.prompts),
            "turns": "first",
            "device": str(self.device),
            "drafters": {name: self._drafter(name) for name in self.drafters},
        }

    def _drafter(self, name: str) -> dict[str, Any]:
        drafter = self.drafters[name]
        return {
            "kind": drafter.config.drafter,
            "version": version(self.folders[name]),
            "parameters": sum(parameter.numel() for parameter in drafter.parameters()),
        }

    def _answered(self, count: int) -> None:
        self.progress.advance(count)
        self.progress.status("the target answers")
