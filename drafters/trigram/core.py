"""Online tri-grams: after the last two tokens, the one that followed them before; in this text, else in earlier answers."""

from collections import OrderedDict

import numpy as np

from vllm_edsd.drafters.proposer import Proposer

WINDOW = 4096  # last tokens of the text that are searched
CONTEXTS = 1 << 16  # token pairs remembered over all requests, about 20 MB
TRUSTED = 2  # votes from which on an earlier answer's token is drafted
CERTAIN = 8  # votes at most, so that a change of habit is soon learnt


class Trigram(Proposer):
    """Inspired by ADED (arXiv 2407.12021), which learns a tri-gram matrix online and searches it for several drafts.

    [ours] One draft only, so each pair of tokens needs only its most frequent successor: a majority vote, which is small and
    forgets; the pair that was unused for longest makes room.
    """

    def __init__(self) -> None:
        self.votes: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()  # successor and its lead in votes

    def propose(self, tokens: np.ndarray, most: int) -> list[int]:
        text = tokens[-WINDOW:]
        drafted: list[int] = []
        while len(drafted) < most and len(text) >= 2:
            token = self._successor(text)
            if token is None:
                break
            drafted.append(token)
            text = np.append(text, np.int32(token))
        return drafted

    def observe(self, tokens: np.ndarray, new: int) -> None:
        text = tokens[-new - 2 :].tolist()
        for first, second, token in zip(text, text[1:], text[2:], strict=False):
            leader, lead = self.votes.pop((first, second), (token, 0))
            if token == leader:
                lead = min(lead + 1, CERTAIN)
            elif lead > 1:
                lead -= 1
            else:
                leader, lead = token, 1
            self.votes[first, second] = leader, lead
        while len(self.votes) > CONTEXTS:
            self.votes.popitem(last=False)

    def _successor(self, text: np.ndarray) -> int | None:
        earlier = np.flatnonzero((text[:-2] == text[-2]) & (text[1:-1] == text[-1]))
        if len(earlier):
            return int(text[earlier[-1] + 2])
        leader, lead = self.votes.get((int(text[-2]), int(text[-1])), (0, 0))
        return leader if lead >= TRUSTED else None
