"""Model-free proposers by name: ours, and those that installed packages add under the entry points `vllm_edsd.proposers`."""

from vllm_edsd.drafters.proposer import Proposer
from vllm_edsd.extensions import Extensions

OURS = {
    "lookup": "vllm_edsd.drafters.lookup.core:Lookup",
    "trigram": "vllm_edsd.drafters.trigram.core:Trigram",
}
PROPOSERS = Extensions("proposer", "vllm_edsd.proposers", Proposer, OURS)


def names() -> list[str]:
    """Every proposer that can be asked for. Raises UserError for a name that is taken twice."""
    return list(PROPOSERS.known())


def load(name: str) -> type[Proposer]:
    """A proposer's class. Raises UserError for an unknown name, a failing import, or a class that is no Proposer."""
    return PROPOSERS.load(name)
