"""One rank decides about drafts and the others do as it says: ranks that differ would wait for each other for ever.

Only rank 0 has a policy. Its clock, and figures that another machine might round otherwise, stay its own affair.
"""

from collections.abc import Sequence

import numpy as np
from vllm.distributed.parallel_state import GroupCoordinator, get_tp_group

from vllm_edsd.policy.base import Drafting, DraftPolicy, Wrapper


def agreed(policy: DraftPolicy) -> DraftPolicy:
    """`policy` as this rank of the tensor-parallel group must use it."""
    group = get_tp_group()
    return Leader(policy, group) if group.is_first_rank else Follower(policy.max_tokens, group)


class Leader(Wrapper):
    """Rank 0's: tells every decision to the others."""

    def __init__(self, policy: DraftPolicy, group: GroupCoordinator):
        super().__init__(policy)
        self.group = group

    def beside(self, requests: Sequence[str], chances: Sequence[Sequence[float]], context: int) -> np.ndarray | None:
        return self.group.broadcast_object(super().beside(requests, chances, context))

    def start(self, requests: Sequence[str]) -> bool:
        return self.group.broadcast_object(super().start(requests))

    def proceed(self, drafting: Drafting) -> bool:
        return self.group.broadcast_object(super().proceed(drafting))

    def cut(self, drafting: Drafting) -> np.ndarray:
        return self.group.broadcast_object(super().cut(drafting))


class Follower(DraftPolicy):
    """Any other rank's: waits for each decision, and learns nothing."""

    def __init__(self, max_tokens: int, group: GroupCoordinator):
        super().__init__(max_tokens)
        self.group = group

    def beside(self, requests: Sequence[str], chances: Sequence[Sequence[float]], context: int) -> np.ndarray | None:
        return self.group.broadcast_object()

    def start(self, requests: Sequence[str]) -> bool:
        return self.group.broadcast_object()

    def proceed(self, drafting: Drafting) -> bool:
        return self.group.broadcast_object()

    def cut(self, drafting: Drafting) -> np.ndarray:
        return self.group.broadcast_object()
