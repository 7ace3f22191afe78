"""Logit-lens entropy over a target's layers, and the pair of layers that it suggests to a drafter [ours].

H_l = H(softmax(W_head Norm(h_l))) in nats, h_l the input of layer l, h_L the output of the last; the mean over the positions
from which the target wrote its answers.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from vllm_edsd.errors import UserError
from vllm_edsd.training.belonging import check_agreement, check_vocabulary
from vllm_edsd.training.samples import Sample

PER_SAMPLE = 32  # positions of one answer, evenly spread: many texts tell more than many positions of one
LEAST_FALL = 0.2  # a smaller relative fall of the entropy is no collapse
BEND = 0.8
TINY = 1e-9
RESAMPLES = 200


@dataclasses.dataclass(frozen=True)
class Curve:
    """`entropy[l]` for l in 0..L with 95% bootstrap intervals over samples; `collapse` is None where there is none."""

    samples: int
    positions: int
    entropy: list[float]
    low: list[float]
    high: list[float]
    collapse: int | None
    collapse_low: int | None
    collapse_high: int | None
    suggested: tuple[int, int] | None


def spread(sample: Sample) -> list[int]:
    """Up to PER_SAMPLE positions that predict the answer's tokens."""
    first, last = sample.answer - 1, len(sample.tokens) - 2
    return sorted({round(place) for place in np.linspace(first, last, min(PER_SAMPLE, last - first + 1))})


def choose(samples: Sequence[Sample], positions: int, seed: int) -> list[Sample]:
    """Samples in a seeded order until so many positions are chosen."""
    order = [sample for sample in samples if len(sample.tokens) > sample.answer > 0]
    random.Random(seed).shuffle(order)
    chosen: list[Sample] = []
    while order and positions > 0:
        chosen.append(order.pop())
        positions -= len(spread(chosen[-1]))
    return chosen


@torch.inference_mode()
def measure(
    target: Path, samples: Sequence[Sample], data: Path, device: torch.device, report: Callable[[int], None]
) -> Curve:
    """The curve over `samples` of folder `data`; `report(positions)` after each sample.

    Raises UserError when the target is not Llama-like or did not write these samples.
    """
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype, device_map=device).eval()
    if not hasattr(getattr(model, "model", None), "norm"):
        raise UserError(f"target {target} is a {type(model).__name__} without model.norm; a Llama-like target is needed")
    check_vocabulary(samples, model.config.vocab_size, data, target)
    means, counts, agreed, greedy = [], [], 0, 0
    for sample in samples:
        places = torch.tensor(spread(sample))
        states = model.model(sample.tokens.long()[None].to(device), output_hidden_states=True, use_cache=False).hidden_states
        entropies = []
        for layer, state in enumerate(states):
            picked = state[0, places]
            # The last state comes normed.
            logs = model.lm_head(picked if layer == len(states) - 1 else model.model.norm(picked)).float().log_softmax(-1)
            entropies.append(float(-(logs.exp() * logs).sum(-1).mean()))
        if sample.temperature == 0:
            agreed += int((logs.argmax(-1).cpu() == sample.tokens[places + 1]).sum())
            greedy += len(places)
        means.append(entropies)
        counts.append(len(places))
        report(len(places))
    check_agreement(agreed, greedy, data, target)
    return summarise(np.array(means), np.array(counts))


def summarise(means: np.ndarray, counts: np.ndarray) -> Curve:
    """From the samples' mean entropies [S, L + 1] and their numbers of positions [S]."""
    entropy = np.average(means, axis=0, weights=counts)
    draws = np.random.default_rng(0).integers(len(means), size=(RESAMPLES, len(means)))
    resampled = np.stack([np.average(means[draw], axis=0, weights=counts[draw]) for draw in draws])
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    start = collapse(entropy)
    starts = [found for found in map(collapse, resampled) if found is not None]
    first, last = np.percentile(starts, [2.5, 97.5], method="nearest").tolist() if starts else (None, None)
    return Curve(
        samples=len(means),
        positions=int(counts.sum()),
        entropy=entropy.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        collapse=start,
        collapse_low=first,
        collapse_high=last,
        suggested=pair(start, len(entropy)),
    )


def collapse(entropy: np.ndarray) -> int | None:
    """The layer at whose input the entropy, [L + 1], starts to collapse; None if it falls by less than LEAST_FALL.

    The largest fall lies between two layers a < b. Between them two straight lines that meet at layer c are fitted by least
    squares, the second steeper than the first: that c, or a where two lines leave over BEND of one line's squared error. (A
    tied head makes h_0 name its own token, at almost no entropy, and some targets' entropy rises again at the end: neither
    matters.)
    """
    highest = np.maximum.accumulate(entropy)
    last = int((highest - entropy).argmax())
    first = int(entropy[: last + 1].argmax())
    if entropy[first] - entropy[last] < LEAST_FALL * entropy[first] or last == first:
        return None
    layers, values = np.arange(first, last + 1), entropy[first : last + 1]
    best, start = BEND * _misfit([np.ones_like(layers), layers], values)[0] - TINY, first
    for corner in range(first + 1, last):
        misfit, slopes = _misfit([np.ones_like(layers), layers, np.maximum(layers - corner, 0)], values)
        if slopes[-1] < 0 and misfit < best:
            best, start = misfit, corner
    return start


def _misfit(columns: list[np.ndarray], values: np.ndarray) -> tuple[float, np.ndarray]:
    design = np.stack(columns, axis=1).astype(float)
    found = np.linalg.lstsq(design, values, rcond=None)[0]
    return float(((design @ found - values) ** 2).sum()), found


def pair(start: int | None, states: int) -> tuple[int, int] | None:
    """The layer where the collapse starts, and the last but one; `states` is L + 1. None where they are not two."""
    layers = states - 1
    return (start, layers - 2) if start is not None and start < layers - 2 else None
