"""Scorers by name: ours, and those that installed packages add under the entry-point group `vllm_edsd.scorers`."""

from importlib.metadata import EntryPoint
from typing import Any

from vllm_edsd.extensions import Extensions
from vllm_edsd.scoring.scorer import Scorer

OURS = {
    "block": "vllm_edsd.scoring.block:Block",
    "evict": "vllm_edsd.scoring.evict:Evict",
    "k-seq": "vllm_edsd.scoring.kseq:KSeq",
    "recursive": "vllm_edsd.scoring.recursive:Recursive",
    "standard": "vllm_edsd.scoring.rejection:Standard",
    "talon": "vllm_edsd.scoring.talon:Talon",
}
SCORERS = Extensions("scorer", "vllm_edsd.scorers", Scorer, OURS)


def known() -> dict[str, EntryPoint]:
    """Every scorer's entry point by name, sorted. Raises UserError for a name that is taken twice."""
    return SCORERS.known()


def make(name: str, **options: Any) -> Scorer:
    """A new scorer; `options` go to its class. Raises UserError for an unknown name, or a class that is no Scorer."""
    return SCORERS.load(name)(**options)
