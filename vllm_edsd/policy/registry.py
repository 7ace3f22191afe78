"""Length policies by name: ours, and those that installed packages add under the entry-point group `vllm_edsd.policies`."""

from collections.abc import Sequence

import numpy as np

from vllm_edsd.extensions import Extensions
from vllm_edsd.policy.base import DraftPolicy
from vllm_edsd.policy.beside import Beside
from vllm_edsd.policy.cost import CostModel
from vllm_edsd.policy.guard import Guard

OURS = {
    "fixed": "vllm_edsd.policy.fixed:Fixed",
    "entropy": "vllm_edsd.policy.entropy:Entropy",
    "gammatune": "vllm_edsd.policy.gammatune:GammaTune",
    "specdec": "vllm_edsd.policy.specdec:SpecDec",
    "evict": "vllm_edsd.policy.evict:Evict",
    "bandit": "vllm_edsd.policy.bandit:Bandit",
    "sweep": "vllm_edsd.policy.sweep:Sweep",
}
POLICIES = Extensions("policy", "vllm_edsd.policies", DraftPolicy, OURS)
UNGUARDED = {"fixed", "bandit", "sweep"}  # what was asked for, and what has plain decoding among its choices


def names() -> list[str]:
    """Every policy that can be asked for. Raises UserError for a name that is taken twice."""
    return list(POLICIES.known())


def make(name: str, max_tokens: int, coefficients: Sequence[float] | None = None, beside: bool = False) -> DraftPolicy:
    """A policy, behind the guard where it has none of its own; with `beside` it weighs drafts made without a model.

    `coefficients` are those of the cost model to start from.

    Raises UserError for an unknown name, a failing import, or a class that is no DraftPolicy.
    """
    cost = CostModel(None if coefficients is None else np.array(coefficients))
    found = POLICIES.load(name)
    policy = found(max_tokens, cost) if name == "evict" else found(max_tokens)
    guarded = policy if name in UNGUARDED else Guard(policy)
    return Beside(guarded, cost) if beside else guarded
