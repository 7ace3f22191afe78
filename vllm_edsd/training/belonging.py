"""Refuses data that another target or tokenizer made.

Shards record both fingerprints; what those from before that say greedily must be what this target would write.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from vllm_edsd.drafters.checkpoint import version
from vllm_edsd.errors import UserError
from vllm_edsd.training.samples import Sample, made_with, read_shard, shards

LEAST_AGREEMENT = 0.7  # its own text in other arithmetic: above 0.95; another target's: below 0.5
ANSWERS = 8  # read over for it, of 100 tokens or so each
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


def fingerprint(target: Path) -> dict[str, str]:
    """The first 12 digits of the SHA-256 of a target's weights (`target`) and of its `tokenizer`; "-" for what it lacks."""
    found = [path for name in TOKENIZER_FILES if (path := Path(target) / name).is_file()]
    tokenizer = hashlib.sha256(b"".join(path.read_bytes() for path in found)).hexdigest()[:12] if found else "-"
    return {"target": version(target), "tokenizer": tokenizer}


def check_data(data: Path, samples: Sequence[Sample], target: Path, vocab_size: int, device: torch.device) -> None:
    """Raises UserError when any shard of `data` is of another target or tokenizer; `samples` are all that it holds."""
    now, unmarked = fingerprint(target), []
    for path in shards(data):
        made = made_with(path).get("fingerprint", {})
        for what, mark in made.items():
            if mark != now.get(what):
                raise UserError(
                    f"{path} was made with {what} {mark}, but that of {target} is {now.get(what)}; train with the target "
                    f"that wrote it, or regenerate it with: vllm-edsd regen {target}"
                )
        if not made:
            unmarked.append(path)
    check_vocabulary(samples, vocab_size, data, target)
    if unmarked:
        answers = [sample for sample in read_shard(unmarked[0]) if sample.temperature == 0]
        check_agreement(*_agreement(answers[:ANSWERS], target, device), data, target)


def check_vocabulary(samples: Sequence[Sample], vocab_size: int, data: Path, target: Path) -> None:
    """Raises UserError for a token that the target does not have."""
    largest = max(int(sample.tokens.max()) for sample in samples)
    if largest >= vocab_size:
        raise UserError(
            f"{data} has token {largest}, but {target} has a vocabulary of {vocab_size}: the data is of another tokenizer; "
            f"regenerate it with: vllm-edsd regen {target}"
        )


def check_agreement(agreed: int, greedy: int, data: Path, target: Path) -> None:
    """Raises UserError when too few of the `greedy` answer tokens are what the target says there; 0 of 0 passes."""
    if agreed < LEAST_AGREEMENT * greedy:
        raise UserError(
            f"{target} would have written only {agreed / greedy:.0%} of the greedy answers in {data}: they are another "
            f"target's; regenerate them with: vllm-edsd regen {target}"
        )


@torch.inference_mode()
def _agreement(answers: Sequence[Sample], target: Path, device: torch.device) -> tuple[int, int]:
    """How many of the answers' tokens are the target's first choice, and how many there are."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16, device_map=device).eval()
    agreed = greedy = 0
    for sample in answers:
        tokens = sample.tokens.long()[None].to(device)
        said = model(tokens, use_cache=False).logits[0, sample.answer - 1 : -1].argmax(-1)
        agreed += int((said == tokens[0, sample.answer :]).sum())
        greedy += len(said)
    return agreed, greedy
