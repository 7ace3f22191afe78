"""Scorers by name: ours, and those that installed packages add under the entry-point group `vllm_edsd.scorers`."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vllm_edsd.errors import UserError
from vllm_edsd.scoring.scorer import Scorer

GROUP = "vllm_edsd.scorers"
OURS = {
    "block": "vllm_edsd.scoring.block:Block",
    "evict": "vllm_edsd.scoring.evict:Evict",
    "k-seq": "vllm_edsd.scoring.kseq:KSeq",
    "recursive": "vllm_edsd.scoring.recursive:Recursive",
    "standard": "vllm_edsd.scoring.rejection:Standard",
    "talon": "vllm_edsd.scoring.talon:Talon",
}


def known() -> dict[str, EntryPoint]:
    """Every scorer's entry point by name, sorted; nothing is imported. UserError for a name that is taken twice."""
    found: dict[str, EntryPoint] = {}
    for entry in [*(EntryPoint(name, value, GROUP) for name, value in OURS.items()), *entry_points(group=GROUP)]:
        if found.setdefault(entry.name, entry).value != entry.value:
            values = f"{found[entry.name].value} and {entry.value}"
            raise UserError(f"the scorer {entry.name!r} is both {values}: uninstall the package of one of them")
    return dict(sorted(found.items()))


def make(name: str, **options: Any) -> Scorer:
    """A new scorer; `options` go to its class. UserError for an unknown name, or a class that is no Scorer."""
    entries = known()
    if name not in entries:
        raise UserError(f"unknown scorer {name!r}: use one of {', '.join(entries)}")
    found = entries[name].load()
    if not (isinstance(found, type) and issubclass(found, Scorer)):
        raise UserError(f"the scorer {name!r}, {entries[name].value}, is no subclass of vllm_edsd.scoring.scorer.Scorer")
    return found(**options)
