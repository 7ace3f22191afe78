"""Smaller draft vocabularies (after VocabTrim, arXiv 2506.22694): what each size covers, and what it costs in acceptance."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from vllm_edsd.drafters import factory
from vllm_edsd.drafters.core import Drafter
from vllm_edsd.errors import UserError
from vllm_edsd.training.batches import collate, index
from vllm_edsd.training.belonging import check_agreement
from vllm_edsd.training.evaluation import evaluate
from vllm_edsd.training.online import Online
from vllm_edsd.training.samples import Sample
from vllm_edsd.training.target import TargetEnds
from vllm_edsd.training.vocabulary import most_frequent, token_counts

RESAMPLES = 1000
OF_THE_HEAD = ("lm_head.weight", "d2t", "t2d")


@dataclasses.dataclass(frozen=True)
class Cut:
    """One size: share of held-out answer tokens covered; acceptance length (bonus token included) and its change against
    the whole drafter, each with a 95% bootstrap interval over samples; parameters of the drafter."""

    size: int
    coverage: float
    acceptance_length: dict[str, float]
    change: dict[str, float]
    parameters: int


def coverage(counts: torch.Tensor, ids: torch.Tensor) -> float:
    """Share of the tokens counted, int64 [V], that are among `ids`."""
    return float(counts[ids].sum() / counts.sum())


def trim(drafter: Drafter, counts: torch.Tensor, size: int) -> Drafter:
    """The drafter with the `size` rows of its head whose tokens were counted most, int64 [V]; all else is shared with it.

    Raises UserError when the head has fewer rows.
    """
    config = drafter.config
    if not 1 <= size <= config.draft_vocab_size:
        raise UserError(
            f"size {size} is not within 1..{config.draft_vocab_size}, the drafter's draft vocabulary; give a size within it"
        )
    rows = most_frequent(counts[drafter.draft_ids], size)
    smaller = factory.build(config.model_copy(update={"draft_vocab_size": size}), drafter.draft_ids[rows])
    weights = drafter.state_dict()
    same = {name: weight for name, weight in weights.items() if name not in OF_THE_HEAD}
    own = {"lm_head.weight": weights["lm_head.weight"][rows], "d2t": smaller.d2t, "t2d": smaller.t2d}
    smaller.load_state_dict(same | own, assign=True)
    return smaller


def compare(
    drafters: Sequence[Drafter],
    held_out: Sequence[Sample],
    target: Path,
    data: Path,
    depth: int,
    report: Callable[[str, int, int], None],
) -> list[Cut]:
    """Teacher-forced greedy chains of `depth` tokens on held-out greedy answers; the first of `drafters` is the whole one.

    `report(what, done, total)` as it goes. Raises UserError when `target` did not write these answers.
    """
    whole = drafters[0]
    layers = whole.config.layers
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    embedding = TargetEnds.read(target).embedding.to(device)
    positions, seen = sum(len(sample.tokens) for sample in held_out), 0
    states: dict[int, dict[str, torch.Tensor]] = {}
    for place, part in Online(target, layers, device).states(held_out):
        states[place] = part | {"hidden": part["hidden"].flatten(1)}
        seen += len(part["final"])
        report("hidden states", seen, positions)
    _check(held_out, states, target, data)
    emitted = np.zeros((len(drafters), len(held_out)))
    drafts = np.zeros_like(emitted)
    # One answer at a time, so that answers can be resampled.
    for place, item in enumerate(index(held_out, [len(held_out)])):
        batch = collate([item], [states[place]]).to(device)
        batch = dataclasses.replace(batch, hidden=batch.hidden.float(), final=batch.final.float())
        for row, drafter in enumerate(drafters):
            found = evaluate(drafter.to(device), embedding, [batch], depth, torch.float32)
            emitted[row, place] = round(found.acceptance_length * found.drafts)
            drafts[row, place] = found.drafts
        report("drafting", place + 1, len(held_out))
    counts = token_counts(held_out, whole.config.vocab_size)
    draws = np.random.default_rng(0).integers(len(held_out), size=(RESAMPLES, len(held_out)))
    means = emitted.sum(1) / drafts.sum(1)
    resampled = emitted[:, draws].sum(2) / drafts[:, draws].sum(2)
    return [
        Cut(
            drafter.config.draft_vocab_size,
            coverage(counts, drafter.draft_ids),
            _interval(means[row], resampled[row]),
            _interval(means[row] - means[0], resampled[row] - resampled[0]),
            sum(parameter.numel() for parameter in drafter.parameters()),
        )
        for row, drafter in enumerate(drafters)
    ]


def _interval(mean: float, resampled: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def _check(held_out: Sequence[Sample], states: Mapping[int, dict[str, torch.Tensor]], target: Path, data: Path) -> None:
    agreed = greedy = 0
    for place, sample in enumerate(held_out):
        said = states[place]["argmax"].cpu()
        agreed += int((said[sample.answer : -1] == sample.tokens[sample.answer + 1 :]).sum())
        greedy += len(sample.tokens) - sample.answer - 1
    check_agreement(agreed, greedy, data, target)
