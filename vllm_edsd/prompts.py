"""Prompt files: JSON lines (gzipped or not) with `id`, `turns` and optionally `category` and `system`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vllm_edsd.errors import UserError
from vllm_edsd.json_lines import read_lines


def _said(turn: str) -> str:
    if not turn.strip():
        raise ValueError("a turn is empty")
    return turn


Turn = Annotated[str, AfterValidator(_said)]


class Prompt(BaseModel):
    """One conversation to be had: user turns in order, under an optional system prompt. Other fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    id: str = Field(coerce_numbers_to_str=True)
    turns: list[Turn] = Field(min_length=1)
    category: str = Field(default="all", coerce_numbers_to_str=True)
    system: str | None = None

    def messages(self) -> list[dict[str, str]]:
        """The chat messages of the first turn."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.turns[0]}]


def read_prompts(path: Path, limit: int | None = None) -> list[Prompt]:
    """Reads a prompt file; with `limit`, takes that many prompts spread evenly over the categories, in file order.

    Raises UserError, naming the file and line, for a missing, empty or malformed file.
    """
    prompts = read_lines(path, Prompt, "prompt file", "`id` and `turns`", '{"id": "1", "turns": ["Hello"]}')
    return prompts if limit is None else _spread(prompts, limit)


def normalised(text: str) -> str:
    """What two texts share that differ only in case and spacing."""
    return " ".join(text.lower().split())


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The first of each group of prompts whose system prompt and turns are the same but for case and spacing."""
    kept: dict[tuple[str, ...], Prompt] = {}
    for prompt in prompts:
        kept.setdefault(tuple(map(normalised, (prompt.system or "", *prompt.turns))), prompt)
    return list(kept.values())


def _spread(prompts: list[Prompt], limit: int) -> list[Prompt]:
    """Round-robin over the categories, so that a small limit still covers all of them."""
    if limit < 1:
        raise UserError(f"limit {limit} is out of range; give 1 or more")
    rank: dict[str, int] = {}
    keyed = []
    for index, prompt in enumerate(prompts):
        turn = rank.get(prompt.category, 0)
        rank[prompt.category] = turn + 1
        keyed.append((turn, index))
    chosen = sorted(index for _, index in sorted(keyed)[:limit])
    return [prompts[index] for index in chosen]
