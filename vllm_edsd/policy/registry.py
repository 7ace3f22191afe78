"""Length policies by name: ours, and those of other packages through the entry points `vllm_edsd.policies`."""

from collections.abc import Callable
from importlib.metadata import entry_points

from vllm_edsd.errors import UserError
from vllm_edsd.policy.bandit import Bandit
from vllm_edsd.policy.base import DraftPolicy
from vllm_edsd.policy.entropy import Entropy
from vllm_edsd.policy.evict import Evict
from vllm_edsd.policy.fixed import Fixed
from vllm_edsd.policy.gammatune import GammaTune
from vllm_edsd.policy.guard import Guard
from vllm_edsd.policy.specdec import SpecDec

GROUP = "vllm_edsd.policies"
OURS: dict[str, Callable[[int], DraftPolicy]] = {
    "fixed": Fixed,
    "entropy": Entropy,
    "gammatune": GammaTune,
    "specdec": SpecDec,
    "evict": Evict,
    "bandit": Bandit,
}
UNGUARDED = {"fixed", "bandit"}  # the one is what was asked for, the other has plain decoding among its choices


def names() -> list[str]:
    """Every policy that can be asked for."""
    return sorted({*OURS, *(entry.name for entry in entry_points(group=GROUP))})


def make(name: str, max_tokens: int) -> DraftPolicy:
    """A policy, behind the guard where it has none of its own. Raises UserError for an unknown name, listing the known."""
    if name in OURS:
        policy = OURS[name](max_tokens)
    else:
        found = {entry.name: entry for entry in entry_points(group=GROUP)}
        if name not in found:
            raise UserError(f"unknown policy {name!r}; known: {', '.join(names())}")
        policy = found[name].load()(max_tokens)
    return policy if name in UNGUARDED else Guard(policy)
