"""Regenerates responses: the target answers prompts in its own words, since acceptance depends on text the target writes.

A conversation of n user turns gives n samples, each with the loss on its own answer. Work goes shard by shard; a finished
shard is never made again, so a killed run resumes without a lost or repeated sample.
"""

import dataclasses
import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vllm_edsd.errors import UserError
from vllm_edsd.prompts import Prompt
from vllm_edsd.training.samples import Sample, made_with, open_shard, write_shard

# (prompt token lists, temperatures) -> answer token lists, the end-of-turn token included where the target wrote it
Generate = Callable[[list[list[int]], list[float]], list[list[int]]]
# chat messages -> the token list of the prompt, generation prompt included
Render = Callable[[list[dict[str, str]]], list[int]]


@dataclasses.dataclass(frozen=True)
class RegenOptions:
    """What the samples depend on; a resumed run must have the same. `fingerprint` is of the target and its tokenizer."""

    target: str
    temperatures: tuple[float, ...]
    max_tokens: int
    max_prompt_tokens: int
    shard_size: int
    seed: int
    fingerprint: dict[str, str] = dataclasses.field(default_factory=dict)


def regenerate(
    prompts: Sequence[Prompt],
    render: Render,
    decode: Callable[[list[int]], str],
    generate: Generate,
    options: RegenOptions,
    out: Path,
    max_response_tokens: int,
    report: Callable[[int], None],
    part: tuple[int, int] = (1, 1),
) -> int:
    """Answers `prompts` in a seeded order until `max_response_tokens` are written; returns how many were.

    Temperatures are taken in turn over the prompts. `report(tokens)` is called after each shard; those that
    were there count too. `part=(i, n)` makes the i-th of every n shards (i from 1), so that n processes or
    machines share one folder; `max_response_tokens` then counts this part's. Raises UserError if `out` holds shards made
    with other options or prompts.
    """
    order = list(prompts)
    random.Random(options.seed).shuffle(order)
    identity = dataclasses.asdict(options) | {"prompts": _digest(order), "temperatures": list(options.temperatures)}
    done = 0
    mine, parts = part
    for index in range((mine - 1) * options.shard_size, len(order), parts * options.shard_size):
        if done >= max_response_tokens:
            break
        path = Path(out) / f"samples-{index // options.shard_size:05d}.safetensors"
        if path.exists():
            tokens = _finished(path, identity)
        else:
            chunk = list(enumerate(order))[index : index + options.shard_size]
            samples = _converse(chunk, render, decode, generate, options)
            tokens = sum(len(sample.tokens) - sample.answer for sample in samples)
            write_shard(path, samples, identity | {"response_tokens": tokens})
        done += tokens
        report(tokens)
    return done


def _converse(
    chunk: list[tuple[int, Prompt]],
    render: Render,
    decode: Callable[[list[int]], str],
    generate: Generate,
    options: RegenOptions,
) -> list[Sample]:
    samples: list[Sample] = []
    open_chats = [(index, prompt, prompt.messages()) for index, prompt in chunk]
    turn = 0
    while open_chats:
        rendered = [(chat, render(chat[2])) for chat in open_chats]
        kept = [(chat, tokens) for chat, tokens in rendered if len(tokens) <= options.max_prompt_tokens]
        heats = [options.temperatures[chat[0] % len(options.temperatures)] for chat, _ in kept]
        answers = generate([tokens for _, tokens in kept], heats) if kept else []
        turn += 1
        open_chats = []
        for ((index, prompt, messages), tokens), heat, answer in zip(kept, heats, answers, strict=True):
            samples.append(Sample(torch.tensor(tokens + answer, dtype=torch.int32), len(tokens), heat))
            if turn < len(prompt.turns):
                said = [{"role": "assistant", "content": decode(answer)}, {"role": "user", "content": prompt.turns[turn]}]
                open_chats.append((index, prompt, messages + said))
    return samples


def _digest(prompts: Sequence[Prompt]) -> str:
    return hashlib.sha256("\n".join(prompt.model_dump_json() for prompt in prompts).encode()).hexdigest()


def _finished(path: Path, identity: dict) -> int:
    made = made_with(path)
    # Shards from before a key was recorded lack it.
    different = [key for key, value in identity.items() if made.get(key, value) != value]
    if different:
        raise UserError(
            f"{path.parent} holds samples made with another {different[0]} ({made.get(different[0])!r}, now "
            f"{identity[different[0]]!r}); give another --out, or the same options to resume"
        )
    with open_shard(path) as file:
        starts, answers = file.get_tensor("starts"), file.get_tensor("answers")
    return int(starts[-1] - answers.sum())
