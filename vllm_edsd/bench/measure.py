"""From replies and counters to figures. All times are an arm's own: they stand still while it waits for its turn.

- Output tokens/s: the servers' token counts over the time in which at least one request was open.
- Speed-up: the ratio of these to those of arm `none` in the same run; beside it that of each quarter of the tokens.
- Time to first token: from sending a request to its first chunk with a token.
- Inter-token latency: a chunk of n tokens that comes g seconds after the one before counts as n gaps of g/n, so that the
  gaps of an answer add up to its decoding time however many tokens a step yields.
- Acceptance length: 1 + accepted/drafts, bonus token included, over the steps that had a draft. `tokens_per_step` counts
  steps without one too; the two differ where an arm does not always draft (ngram, suffix).
- Identical: the same text, byte for byte, as arm `none` gave to the same prompt at the same concurrency.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy

from vllm_edsd.bench.arms import Arm
from vllm_edsd.bench.load import Reply
from vllm_edsd.engine.counters import SpecCounters

QUARTERS = 4


@dataclasses.dataclass(frozen=True)
class Sample:
    """The replies to some prompts and what the server's counters gained meanwhile."""

    replies: tuple[Reply, ...]
    counters: SpecCounters


@dataclasses.dataclass
class Measurement:
    """All samples of one arm at one concurrency."""

    arm: Arm
    concurrency: int
    samples: list[Sample] = dataclasses.field(default_factory=list)

    @property
    def replies(self) -> list[Reply]:
        """All replies, failed ones too."""
        return [reply for sample in self.samples for reply in sample.replies]

    @property
    def answers(self) -> list[Reply]:
        """The replies that did not fail."""
        return [reply for reply in self.replies if reply.error is None]

    @property
    def counters(self) -> SpecCounters:
        """What the counters gained over all samples."""
        return total(sample.counters for sample in self.samples)

    def speed(self) -> float:
        """Output tokens per second."""
        return speed(self.samples)

    def categories(self) -> dict[str, list[Sample]]:
        """Samples by category, where each has one: at concurrency 1, where counters are read after every answer."""
        groups: dict[str, list[Sample]] = {}
        if all(len(sample.replies) == 1 for sample in self.samples):
            for sample in self.samples:
                groups.setdefault(sample.replies[0].prompt.category, []).append(sample)
        return groups


def speed(samples: Sequence[Sample]) -> float:
    """Output tokens per second of busy time; 0 where nothing was answered."""
    tokens = sum(reply.tokens for sample in samples for reply in sample.replies if reply.error is None)
    seconds = sum(busy_seconds(sample.replies) for sample in samples)
    return tokens / seconds if tokens else 0.0


def busy_seconds(replies: Iterable[Reply]) -> float:
    """The time in which at least one of the requests was open."""
    busy, reached = 0.0, float("-inf")
    for begun, ended in sorted((reply.begun, reply.ended) for reply in replies):
        busy += max(0.0, ended - max(begun, reached))
        reached = max(reached, ended)
    return busy


def quarters(replies: Sequence[Reply]) -> list[float]:
    """Output tokens per second while each quarter of the tokens came, infinite where all came at once; [] without tokens."""
    came = sorted(
        (when, has - had) for reply in replies for (_, had), (when, has) in pairwise(((reply.begun, 0), *reply.arrivals))
    )
    if not came:
        return []
    times, tokens = zip(*came, strict=True)
    done = numpy.cumsum((0, *tokens))
    ends = numpy.interp(done[-1] * numpy.arange(QUARTERS + 1) / QUARTERS, done, (min(one.begun for one in replies), *times))
    return [done[-1] / QUARTERS / seconds if seconds else math.inf for seconds in numpy.diff(ends).tolist()]


def first_token_seconds(reply: Reply) -> float:
    """Seconds from the request to its first token."""
    return reply.arrivals[0][0] - reply.begun


def gaps(reply: Reply) -> list[float]:
    """The inter-token latencies of an answer in seconds, one for each token after those of the first chunk."""
    found = []
    for (before, had), (now, has) in pairwise(reply.arrivals):
        found += [(now - before) / (has - had)] * (has - had)
    return found


def total(counters: Iterable[SpecCounters]) -> SpecCounters:
    """The sum of counters."""
    return sum(counters, SpecCounters())


def summary(measured: Measurement, plain: Measurement | None, temperature: float) -> dict[str, Any]:
    """One entry of the result's `arms`; what needs arm `none` is None without it (`plain`)."""
    counters = measured.counters
    answers = measured.answers
    tokens = sum(reply.tokens for reply in answers)
    parts = _ratios(quarters(answers), quarters(plain.answers)) if plain else []
    errors = [reply.error for reply in measured.replies if reply.error is not None]
    return {
        "arm": measured.arm.name,
        "policy": measured.arm.policy,
        "concurrency": measured.concurrency,
        "output_tokens_per_s": _round(measured.speed()),
        "speedup": _ratio(measured.speed(), plain.speed()) if plain else None,
        "speedup_quarters": parts,
        "speedup_quarter_median": _round(statistics.median(parts)) if parts else None,
        "acceptance_length": _round(counters.acceptance_length),
        "per_position": [_round(share) for share in counters.per_position],
        "tokens_per_step": _round(tokens / (tokens - counters.accepted)) if tokens > counters.accepted else None,
        # Sampled answers differ by chance, so their share would say nothing.
        "identical_share": _identical(measured, plain) if plain and temperature == 0 else None,
        "ttft_ms": _percentiles([first_token_seconds(reply) for reply in answers]),
        "itl_ms": _percentiles([gap for reply in answers for gap in gaps(reply)]),
        "requests": len(measured.replies),
        "failed_requests": len(errors),
        "errors": sorted(set(errors))[:5],
        "output_tokens": tokens,
        "drafts": counters.drafts,
        "draft_tokens": counters.draft_tokens,
        "accepted_tokens": counters.accepted,
        "categories": _categories(measured, plain),
    }


def _categories(measured: Measurement, plain: Measurement | None) -> dict[str, dict[str, Any]]:
    before = plain.categories() if plain else {}
    return {
        name: {
            "requests": len(samples),
            "output_tokens_per_s": _round(speed(samples)),
            "speedup": _ratio(speed(samples), speed(before[name])) if name in before else None,
            "acceptance_length": _round(total(sample.counters for sample in samples).acceptance_length),
        }
        for name, samples in measured.categories().items()
    }


def _identical(measured: Measurement, plain: Measurement) -> float | None:
    # Every arm gets the same prompts in the same order.
    pairs = [(one, other) for one, other in zip(measured.replies, plain.replies, strict=True) if other.error is None]
    same = sum(one.error is None and one.text == other.text for one, other in pairs)
    return _round(same / len(pairs)) if pairs else None


def _ratios(fast: Sequence[float], slow: Sequence[float]) -> list[float]:
    known = zip(fast, slow, strict=True) if fast and slow else ()
    return [_round(one / other) for one, other in known if max(one, other) < math.inf]


def _ratio(fast: float, slow: float) -> float | None:
    return _round(fast / slow) if slow else None


def _percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    if not seconds:
        return {"p50": None, "p99": None}
    p50, p99 = numpy.percentile(seconds, (50, 99)) * 1000
    return {"p50": _round(float(p50)), "p99": _round(float(p99))}


def _round(value: float) -> float:
    return round(value, 4)
