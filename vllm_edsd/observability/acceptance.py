"""What the target accepted of every draft: by step, by place in the draft, by request."""

from itertools import accumulate

from vllm_edsd.observability.tally import Tally


class AcceptanceWatch:
    """Told of every verified draft and of every request's end; `num_tokens` is K, the longest draft.

    It is called for every request of every step, so it only counts; the figures are made when they are asked for.
    """

    def __init__(self, tally: Tally, num_tokens: int):
        self.tally = tally
        self.drafted = [0] * (num_tokens + 1)  # drafts by length
        self.accepted = [0] * (num_tokens + 1)  # drafts by accepted tokens
        self.requests: dict[str, tuple[int, int]] = {}  # drafts verified, tokens accepted
        tally.observe("edsd:request_acceptance_length", ())
        tally.watch("acceptance", self.refresh)

    def verified(self, request: str, drafted: int, accepted: int) -> None:
        """A step verified `drafted` tokens (at least one) of a request and accepted the first `accepted`."""
        self.drafted[drafted] += 1
        self.accepted[accepted] += 1
        drafts, tokens = self.requests.get(request, (0, 0))
        self.requests[request] = (drafts + 1, tokens + accepted)

    def finished(self, request: str) -> None:
        """A request is over, however it ended."""
        drafts, tokens = self.requests.pop(request, (0, 0))
        if drafts:
            self.tally.observe("edsd:request_acceptance_length", (1 + tokens / drafts,))

    def refresh(self) -> None:
        """Called from another thread."""
        self.tally.put("edsd:tracked_requests", float(len(self.requests)), "scheduler")
        drafted, accepted = list(self.drafted), list(self.accepted)
        self.tally.spread("edsd:draft_length", dict(enumerate(drafted)))
        self.tally.spread("edsd:step_acceptance_length", {1 + length: count for length, count in enumerate(accepted)})
        for name, counts in (("edsd:verified_tokens", drafted), ("edsd:accepted_tokens", accepted)):
            # A token at a place was there in all drafts that are longer.
            longer = list(accumulate(reversed(counts[1:])))[::-1]
            for place, count in enumerate(longer):
                self.tally.total(name, count, str(place))
