"""Token samples on disk: safetensors shards of packed conversations, each with the target's own answer at its end.

A shard holds `tokens` int32 [N], `starts` int64 [S+1] (sample s is tokens[starts[s]:starts[s+1]]), `answers` int64 [S]
(length of the prompt, that is where the answer begins within its sample) and `temperatures` float32 [S]. Its metadata
names the target, its fingerprint, the prompts and the sampling.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vllm_edsd.errors import UserError
from vllm_edsd.files import atomic
from vllm_edsd.tensor_files import notes, opened


@dataclasses.dataclass(frozen=True)
class Sample:
    """One conversation: `tokens` int32 [n]; positions from `answer` on were written by the target."""

    tokens: torch.Tensor
    answer: int
    temperature: float


def write_shard(path: Path, samples: Sequence[Sample], metadata: dict) -> None:
    """Writes `samples` to `path`, whole or not at all. Metadata is stored as one JSON string."""
    lengths = torch.tensor([0] + [len(sample.tokens) for sample in samples])
    tensors = {
        "tokens": torch.cat([sample.tokens.int() for sample in samples]),
        "starts": lengths.cumsum(0),
        "answers": torch.tensor([sample.answer for sample in samples]),
        "temperatures": torch.tensor([sample.temperature for sample in samples], dtype=torch.float32),
    }
    with atomic(path) as partial:
        save_file(tensors, partial, metadata={"edsd": json.dumps(metadata, sort_keys=True)})


def shards(folder: Path) -> list[Path]:
    """The shards of a data folder in order. Raises UserError when there are none."""
    found = sorted(Path(folder).glob("samples-*.safetensors"))
    if not found:
        raise UserError(f"no samples-*.safetensors in {folder}; make some with: vllm-edsd regen --out {folder}")
    return found


def read_samples(folder: Path) -> list[Sample]:
    """All samples of a data folder. Raises UserError for an empty folder or a damaged shard, naming it."""
    return [sample for path in shards(folder) for sample in read_shard(path)]


def open_shard(path: Path) -> AbstractContextManager[Any]:
    """A shard's safetensors file. Raises UserError where it is damaged or no shard."""
    return opened(path, "data shard", "delete it and run regen again")


def read_shard(path: Path) -> list[Sample]:
    """The samples of one shard. Raises UserError when it is damaged."""
    with open_shard(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        starts, answers = tensors["starts"].tolist(), tensors["answers"].tolist()
        temperatures = tensors["temperatures"].tolist()
    return [
        Sample(tensors["tokens"][begin:end], answer, temperature)
        for begin, end, answer, temperature in zip(starts, starts[1:], answers, temperatures, strict=False)
    ]


def split(samples: Sequence[Sample], held_out: int, seed: int, folder: Path) -> tuple[list[int], list[int]]:
    """Places of the samples to train on and of those held out: greedy answers, since evaluations draft greedily.

    A seeded choice; answers of one token are in neither. Raises UserError when `folder` has too few.
    """
    usable = [place for place, sample in enumerate(samples) if len(sample.tokens) - sample.answer > 1]
    greedy = [place for place in usable if samples[place].temperature == 0]
    if len(greedy) < held_out or len(usable) <= held_out:
        raise UserError(
            f"{folder} has {len(greedy)} greedy answers, held_out {held_out} needs more; regenerate more "
            "(temperature 0 among the temperatures) or lower held_out"
        )
    kept = set(random.Random(seed).sample(greedy, held_out))
    return [place for place in usable if place not in kept], sorted(kept)


def metadata(folder: Path) -> dict:
    """The metadata of the first shard: how the data was made."""
    return made_with(shards(folder)[0])


def made_with(path: Path) -> dict:
    """The metadata of one shard. Raises UserError when it is damaged or has none."""
    with open_shard(path) as file:
        return notes(file)


def length(path: Path, name: str) -> int:
    """Entries of a shard's tensor: its `answers`, its `tokens`. Raises UserError when it is damaged."""
    with open_shard(path) as file:
        return file.get_slice(name).get_shape()[0]


def fingerprint(folder: Path) -> str:
    """SHA-256 over the shards' bytes, in order."""
    digest = hashlib.sha256()
    for path in shards(folder):
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
