"""vLLM's counters of speculation, as its /metrics page shows them."""

import dataclasses
from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

PREFIX = "vllm:spec_decode_num_"


@dataclasses.dataclass(frozen=True)
class SpecCounters:
    """Totals since the server's start: drafts made, tokens drafted, tokens accepted, and accepted by draft position."""

    drafts: int = 0
    draft_tokens: int = 0
    accepted: int = 0
    accepted_per_position: tuple[int, ...] = ()

    def __sub__(self, earlier: "SpecCounters") -> "SpecCounters":
        before = dict(enumerate(earlier.accepted_per_position))
        return SpecCounters(
            self.drafts - earlier.drafts,
            self.draft_tokens - earlier.draft_tokens,
            self.accepted - earlier.accepted,
            tuple(count - before.get(position, 0) for position, count in enumerate(self.accepted_per_position)),
        )

    def __add__(self, other: "SpecCounters") -> "SpecCounters":
        longest = max(len(self.accepted_per_position), len(other.accepted_per_position))
        return SpecCounters(
            self.drafts + other.drafts,
            self.draft_tokens + other.draft_tokens,
            self.accepted + other.accepted,
            tuple(
                sum(c.accepted_per_position[i] for c in (self, other) if i < len(c.accepted_per_position))
                for i in range(longest)
            ),
        )

    @property
    def acceptance_length(self) -> float:
        """Tokens emitted by a target forward that verified a draft, bonus token included; 1 without drafts."""
        return 1 + self.accepted / self.drafts if self.drafts else 1.0

    @property
    def per_position(self) -> list[float]:
        """The share of drafts whose token at each position was accepted; empty without drafts."""
        return [count / self.drafts for count in self.accepted_per_position] if self.drafts else []


def parse_counters(page: str) -> SpecCounters:
    """The counters on a /metrics page, summed over its engines; zeros where the server does not speculate."""
    totals: Counter[str] = Counter()
    positions: Counter[int] = Counter()
    for family in text_string_to_metric_families(page):
        if not family.name.startswith(PREFIX):
            continue
        for sample in family.samples:
            if not sample.name.endswith("_total"):
                continue
            if "position" in sample.labels:
                positions[int(sample.labels["position"])] += int(sample.value)
            else:
                totals[family.name.removeprefix(PREFIX)] += int(sample.value)
    accepted = tuple(positions[position] for position in range(max(positions, default=-1) + 1))
    return SpecCounters(totals["drafts"], totals["draft_tokens"], totals["accepted_tokens"], accepted)
