"""Where an engine will run, and what can be had there."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Reasons why something cannot be used, for the user; None where it can."""

    worker: str | None = None  # our CPU worker: every policy, block verification, fewer experts
    v2: str | None = None  # model runner V2 on a GPU: policy evict, and vLLM's own block verification
