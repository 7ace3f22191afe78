"""Prompt files: JSON lines (gzipped or not) with `id`, `turns` and optionally `category` and `system`."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_edsd.errors import UserError


class Prompt(BaseModel):
    """One conversation to be had: user turns in order, under an optional system prompt. Other fields are ignored."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    id: str
    turns: list[str] = Field(min_length=1)
    category: str = "all"
    system: str | None = None

    def messages(self) -> list[dict[str, str]]:
        """The chat messages of the first turn."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.turns[0]}]


def read_prompts(path: Path, limit: int | None = None) -> list[Prompt]:
    """Reads a prompt file; with `limit`, takes that many prompts spread evenly over the categories, in file order.

    Raises UserError, naming the file and line, for a missing, empty or malformed file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"prompt file {path} does not exist; give a .jsonl or .jsonl.gz file with `id` and `turns`")
    opener = gzip.open if path.suffix == ".gz" else open
    prompts = []
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    prompts.append(_parse(line, f"{path}:{number}"))
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable text: {error}; give UTF-8 JSON lines, gzipped or not") from error
    if not prompts:
        raise UserError(f"prompt file {path} is empty; each line must be a JSON object with `id` and `turns`")
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


def _parse(line: str, place: str) -> Prompt:
    try:
        return Prompt.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not valid JSON ({error.msg}, column {error.colno}); mend or delete the line") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "line"
        raise UserError(
            f"{place}: field {field!r}: {first['msg']} (got {str(first['input'])[:80]!r}); a line is a JSON object with "
            '`id` and `turns`, as in {"id": "1", "turns": ["Hello"]}'
        ) from None


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
