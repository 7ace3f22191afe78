"""Training data of the bundled target on one GPU without vLLM: python benchmarks/bundled/data.py TARGET --prompts P --out D

The target answers the prompts at each of --temperature, and greedily prompts of its own making (self_prompts.py). What is
written is what `vllm-edsd regen` writes.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from decoder import Decoder
from transformers import AutoModelForCausalLM, AutoTokenizer

from vllm_edsd.bench.progress import Progress
from vllm_edsd.prompts import distinct, read_prompts
from vllm_edsd.training.belonging import fingerprint
from vllm_edsd.training.samples import Sample, write_shard
from vllm_edsd.training.self_prompts import self_prompts, user_turn

LONGEST_PROMPT, LONGEST_ANSWER, LONGEST_TURN = 512, 256, 128  # tokens
CLASSES = (128, 256, LONGEST_PROMPT)  # prompts are answered beside those of like length
SHARD = 1024  # samples


def main(
    target: Path,
    prompts: Annotated[Path, typer.Option()],
    out: Annotated[Path, typer.Option()],
    temperature: Annotated[list[float], typer.Option(min=0)] = [0.0, 0.8],  # noqa: B006 - typer reads it, nothing writes
    own: int = 60_000,
    limit: int | None = None,
    rows: int = 4096,
    seed: int = 0,
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16, device_map=device).eval()
    asked = [prompt.messages() for prompt in distinct(read_prompts(prompts, limit))]
    with Progress() as progress:
        made = _own(model, tokenizer, own, rows, seed, progress)
        jobs = [(tokens, heat) for tokens in _rendered(tokenizer, asked) for heat in temperature]
        jobs += [(tokens, 0.0) for tokens in _rendered(tokenizer, made)]
        samples = [sample for part in _classes(jobs) for sample in _answers(model, part, rows, seed, progress)]
    random.Random(seed).shuffle(samples)
    notes: dict[str, Any] = {
        "target": target.name,
        "fingerprint": fingerprint(target),
        "seed": seed,
        "made_by": "decoder.py",
    }
    notes |= {"temperatures": temperature, "max_tokens": LONGEST_ANSWER, "max_prompt_tokens": LONGEST_PROMPT}
    notes |= {"prompts": len(asked), "own_prompts": len(made)}
    out.mkdir(parents=True, exist_ok=True)
    for number, begin in enumerate(range(0, len(samples), SHARD)):
        write_shard(out / f"samples-{number:05d}.safetensors", samples[begin : begin + SHARD], notes)
    written = sum(len(sample.tokens) - sample.answer for sample in samples)
    print(f"{out}: {len(samples)} answers, {written} answer tokens, {len(made)} of {own} own prompts were worth asking")


def _own(model: Any, tokenizer: Any, count: int, rows: int, seed: int, progress: Progress) -> list[list[dict[str, str]]]:
    turns = _decoded(model, [user_turn(tokenizer)] * count, [1.0] * count, LONGEST_TURN, rows, seed, progress)
    texts = tokenizer.batch_decode([turn for turn in turns if len(turn) < LONGEST_TURN], skip_special_tokens=True)
    return [prompt.messages() for prompt in self_prompts(texts, "own")]


def _rendered(tokenizer: Any, chats: Sequence[list[dict[str, str]]]) -> list[list[int]]:
    found = tokenizer.apply_chat_template(list(chats), add_generation_prompt=True, return_dict=False) if chats else []
    return [tokens for tokens in found if len(tokens) <= LONGEST_PROMPT]


def _classes(jobs: Sequence[tuple[list[int], float]]) -> Iterator[list[tuple[list[int], float]]]:
    shortest = 0
    for longest in CLASSES:
        if part := [job for job in jobs if shortest < len(job[0]) <= longest]:
            yield part
        shortest = longest


def _answers(
    model: Any, jobs: Sequence[tuple[list[int], float]], rows: int, seed: int, progress: Progress
) -> Iterator[Sample]:
    answers = _decoded(model, *zip(*jobs, strict=True), LONGEST_ANSWER, rows, seed, progress)
    for (tokens, heat), answer in zip(jobs, answers, strict=True):
        yield Sample(torch.tensor(tokens + answer, dtype=torch.int32), len(tokens), heat)


def _decoded(
    model: Any, prompts: Sequence[list[int]], heats: Sequence[float], most: int, rows: int, seed: int, progress: Progress
) -> list[list[int]]:
    if not prompts:
        return []
    length = max(map(len, prompts)) + most
    decoder = Decoder(model, min(rows, len(prompts)), length, [model.config.eos_token_id], seed)
    progress.total += len(prompts)
    progress.status(f"{len(prompts)} texts of up to {length} tokens")
    return decoder.generate(prompts, heats, most, progress.advance)


if __name__ == "__main__":
    typer.run(main)
