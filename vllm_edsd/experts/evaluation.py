"""What a reduction costs: the arms side by side on held-out text and on multiple choice."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from vllm_edsd.experts.choices import Question
from vllm_edsd.experts.hook import Hook
from vllm_edsd.experts.plan import Mode
from vllm_edsd.experts.reduction import reduced
from vllm_edsd.experts.replay import predictions, record
from vllm_edsd.experts.routed import RoutedLayer, routed_layers
from vllm_edsd.experts.texts import Text

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Arm:
    """A setting of the model: experts per token by layer, and what repairs them."""

    name: str
    counts: Mapping[int, int]
    hooks: Mapping[int, Hook] | None = None


@dataclasses.dataclass(frozen=True)
class Score:
    """What an arm costs.

    `perplexity` is of the target's own answers, with a 95% bootstrap interval over texts; `divergence` is from the whole
    model in nats per token, `agreement` the share of positions with its likeliest token. By set of questions: `accuracy` of
    multiple choice, and `references`, the perplexity of the right answers, which the target did not write.
    `experts_per_token` is over the tokens that the mode is about: the prompts' (with the last, which is not cut), or all.
    """

    arm: str
    experts_per_token: float
    perplexity: float
    low: float
    high: float
    divergence: float
    agreement: float
    accuracy: dict[str, float]
    references: dict[str, float]


@torch.inference_mode()
def evaluate(
    model: Any,
    arms: Sequence[Arm],
    texts: Sequence[Text],
    questions: Sequence[Question],
    mode: Mode,
    report: Callable[[], None] = lambda: None,
) -> list[Score]:
    """Scores of `arms`, all on the same `texts` and `questions`; `report()` after each text and question of each arm."""
    layers = routed_layers(model)
    losses: dict[str, list[np.ndarray]] = {arm.name: [] for arm in arms}
    divergences, agreements = dict.fromkeys(losses, 0.0), dict.fromkeys(losses, 0)
    for text in texts:
        full = predictions(model, record(model, text.tokens).inputs[-1], text.scored)
        for arm in arms:
            with reduced(layers, arm.counts, text.rows(mode), arm.hooks):
                found = predictions(model, record(model, text.tokens).inputs[-1], text.scored)
            losses[arm.name].append(-found.gather(1, text.wanted[:, None])[:, 0].double().numpy())
            divergences[arm.name] += float(nn.functional.kl_div(found, full, reduction="sum", log_target=True))
            agreements[arm.name] += int((found.argmax(-1) == full.argmax(-1)).sum())
            report()
    right: dict[str, dict[str, list[bool]]] = {arm.name: {} for arm in arms}
    references: dict[str, dict[str, list[torch.Tensor]]] = {arm.name: {} for arm in arms}
    for question in questions:
        for arm in arms:
            likelihoods = _likelihoods(model, layers, arm, question, mode)
            chosen = int(np.argmax([float(found.mean()) for found in likelihoods]))
            right[arm.name].setdefault(question.group, []).append(chosen == question.right)
            references[arm.name].setdefault(question.group, []).append(likelihoods[question.right])
            report()
    positions = sum(len(text.wanted) for text in texts)
    return [
        Score(
            arm.name,
            _experts(arm, layers, texts, mode),
            *_perplexity(losses[arm.name]),
            divergences[arm.name] / positions,
            agreements[arm.name] / positions,
            {group: float(np.mean(answers)) for group, answers in right[arm.name].items()},
            {group: float(torch.cat(found).mean().neg().exp()) for group, found in references[arm.name].items()},
        )
        for arm in arms
    ]


def _likelihoods(model: Any, layers: Sequence[RoutedLayer], arm: Arm, question: Question, mode: Mode) -> list[torch.Tensor]:
    """Of each possible answer, the log-likelihoods of its tokens; the highest mean is the arm's choice."""
    scores = []
    for text in question.answers:
        with reduced(layers, arm.counts, text.rows(mode), arm.hooks):
            found = predictions(model, record(model, text.tokens).inputs[-1], text.scored)
        scores.append(found.gather(1, text.wanted[:, None])[:, 0])
    return scores


def _experts(arm: Arm, layers: Sequence[RoutedLayer], texts: Sequence[Text], mode: Mode) -> float:
    tokens = sum(text.answer if mode == "prefill" else text.tokens.shape[1] for text in texts)
    cut = sum(int(text.rows(mode).sum()) for text in texts)
    used = [cut * arm.counts.get(layer.index, layer.top_k) + (tokens - cut) * layer.top_k for layer in layers]
    return sum(used) / (tokens * len(layers))


def _perplexity(losses: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Mean over all tokens and a 95% interval, texts resampled."""
    sums, counts = np.array([loss.sum() for loss in losses]), np.array([len(loss) for loss in losses])
    draws = np.random.default_rng(0).integers(len(losses), size=(RESAMPLES, len(losses)))
    resampled = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(np.exp(sums.sum() / counts.sum())), float(np.exp(low)), float(np.exp(high))
