"""What a user types after `vllm-edsd bench`, made sense of.

Lists may be written with commas or spaces. The command line library hands over what follows a space as further positional
values, so those that name an arm, or are numbers, are given back to the list they belong to.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from vllm_edsd.errors import UserError

ARMS = ("none", "ngram", "suffix", "eagle3", "edsd")
# Bytes of an element.
DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclasses.dataclass(frozen=True)
class Lists:
    """The target, None for the bundled one, the arms and the concurrencies."""

    target: str | None
    arms: tuple[str, ...]
    concurrency: tuple[int, ...]


def sort_out(positional: Sequence[str], arms: Sequence[str], concurrency: Sequence[str]) -> Lists:
    """Raises UserError for an unknown arm, a concurrency below 1, or a second target."""
    names, levels, targets = [*split(arms)], [*split(concurrency)], []
    for value in positional:
        parts = split([value])
        if Path(value).expanduser().is_dir():
            targets.append(value)
        elif all(part in ARMS for part in parts):
            names += parts
        elif all(part.isdigit() for part in parts):
            levels += parts
        else:
            targets.append(value)
    if len(targets) > 1:
        raise UserError(f"one target at a time, got {', '.join(targets)}; the arms are {', '.join(ARMS)}")
    for name in names:
        if name not in ARMS:
            raise UserError(f"--arms: unknown arm {name!r}; known: {', '.join(ARMS)}")
    return Lists(targets[0] if targets else None, tuple(dict.fromkeys(names)), tuple(dict.fromkeys(map(_level, levels))))


def parse_drafters(given: Sequence[str]) -> dict[str, str]:
    """`edsd=PATH` values to a mapping from arm to drafter. Raises UserError for another form."""
    drafters = {}
    for value in given:
        arm, separator, drafter = value.partition("=")
        if not (arm and separator and drafter):
            raise UserError(f"--drafter {value!r} is not of the form ARM=DRAFTER, as in --drafter edsd=my-drafter")
        drafters[arm] = drafter
    return drafters


def check_range(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raises UserError if the option `name` is not within `least` and `most`."""
    if not least <= value <= most:
        allowed = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
        raise UserError(f"{name} {value} is out of range; give {allowed}")


def check_dtype(dtype: str) -> None:
    """Raises UserError for a type that no server is started with."""
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown; known: {', '.join(DTYPES)}")


def split(values: Sequence[str]) -> tuple[str, ...]:
    """Comma- or space-separated values as one list."""
    return tuple(part for value in values for part in value.replace(",", " ").split())


def _level(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"--concurrency {value!r} is not a whole number from 1 on; give some, as in --concurrency 1,4,16")
    return int(value)
