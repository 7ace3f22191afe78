"""What the drafter has not read while it was not drafting: it catches up when it drafts again.

Without it the drafter's KV cache would have holes where the target worked alone, and it would draft badly after them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # tokens, positions, hidden states of a request
MOST = 8  # times what the drafter reads in one pass; what waits beyond that is read without drafting


@dataclasses.dataclass(frozen=True)
class Batch:
    """What the drafter's pass takes: tokens [N], positions [N], hidden states [N, ...]; after each request's, `next` [R]."""

    metadata: CommonAttentionMetadata
    tokens: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor
    next: torch.Tensor

    @property
    def part(self) -> Part:
        return self.tokens, self.positions, self.hidden


@dataclasses.dataclass
class Waiting:
    """What waits of one request: `tokens` in all, up to position `end`, which is the next."""

    parts: list[Part]
    tokens: int
    end: int


class Backlog:
    """Tokens, positions and hidden states of the steps that the drafter sat out, by request.

    `block_size` gives the tokens in a KV cache block, `capacity` is the most tokens that one pass of the drafter takes.
    """

    def __init__(self, block_size: Callable[[], int], capacity: int):
        self.block_size = block_size
        self.capacity = capacity
        self.waiting: dict[str, Waiting] = {}

    def room(self, tokens: int) -> bool:
        """Whether a step of so many tokens may be put off."""
        return self.tokens() + tokens <= MOST * self.capacity

    def tokens(self) -> int:
        """How many were put off."""
        return sum(held.tokens for held in self.waiting.values())

    def add(self, requests: Sequence[str], step: Batch) -> None:
        """Puts off a step of `requests`, in their order."""
        own: Part = (step.tokens.clone(), step.positions.clone(), step.hidden.clone())
        for request, (begin, end, first) in zip(requests, _bounds(step), strict=True):
            held = self.waiting.get(request)
            # A request that was preempted starts anew and reads everything again.
            if held is None or held.end != first:
                held = self.waiting[request] = Waiting([], 0, first)
            held.parts.append(_slice(own, begin, end))
            held.tokens += end - begin
            held.end += end - begin

    def take(self, requests: Sequence[str], step: Batch, most: int) -> tuple[list[Batch], Batch]:
        """The step with what was put off before it, which is then forgotten.

        Where that is more than `most` tokens, or than fits into one pass, it is each request's last token alone, and before
        it come passes that read the rest.
        """
        parts: list[Part] = []
        late = False
        for request, (begin, end, first) in zip(requests, _bounds(step), strict=True):
            held = self.waiting.pop(request, None)
            part = _slice(step.part, begin, end)
            if held is not None and held.end == first:
                part, late = _joined([*held.parts, part]), True
            parts.append(part)
        if sum(len(part[0]) for part in parts) > min(most, self.capacity):
            last = [_slice(part, len(part[0]) - 1, len(part[0])) for part in parts]
            return list(self._readings(step.metadata, parts)), self._batch(step.metadata, range(len(last)), last, step.next)
        return [], self._batch(step.metadata, range(len(parts)), parts, step.next) if late else step

    def _readings(self, metadata: CommonAttentionMetadata, parts: Sequence[Part]) -> Iterable[Batch]:
        """Passes of at most `capacity` tokens over all but the last token of `parts`, one for each row of the step."""
        rows: list[int] = []
        taken: list[Part] = []
        following: list[torch.Tensor] = []
        room = self.capacity
        for row, part in enumerate(parts):
            begin, stop = 0, len(part[0]) - 1
            while begin < stop:
                end = min(begin + room, stop)
                rows.append(row)
                taken.append(_slice(part, begin, end))
                following.append(part[0][end])
                room -= end - begin
                begin = end
                if not room:
                    yield self._batch(metadata, rows, taken, torch.stack(following))
                    rows, taken, following, room = [], [], [], self.capacity
        if rows:
            yield self._batch(metadata, rows, taken, torch.stack(following))

    def _batch(
        self, metadata: CommonAttentionMetadata, rows: Sequence[int], parts: Sequence[Part], following: torch.Tensor
    ) -> Batch:
        """A pass over `parts` of requests whose blocks are those of `rows`; they end where their parts end."""
        tokens, positions, hidden = _joined(parts)
        counts = torch.tensor([len(part[0]) for part in parts])
        starts = torch.zeros(len(parts) + 1, dtype=torch.int32)
        starts[1:] = counts.cumsum(0)
        table = metadata.block_table_tensor[list(rows)]
        size = self.block_size()
        owners = torch.arange(len(parts)).repeat_interleave(counts)
        blocks = table[owners, (positions // size).long()].long()
        ends = (positions[starts[1:].long() - 1] + 1).to(metadata.seq_lens.dtype)
        most = metadata.seq_lens_cpu_upper_bound
        return Batch(
            dataclasses.replace(
                metadata,
                query_start_loc=starts.to(metadata.query_start_loc.device),
                query_start_loc_cpu=starts,
                seq_lens=ends,
                seq_lens_cpu_upper_bound=most if most is None else ends.to(most),
                num_reqs=len(parts),
                num_actual_tokens=len(tokens),
                max_query_len=int(counts.max()),
                block_table_tensor=table,
                slot_mapping=(blocks * size + positions % size).to(metadata.slot_mapping.dtype),
                # Computed from the query lengths on demand.
                _num_computed_tokens_cache=None,
                _token_to_req_indices_cache=None,
            ),
            tokens,
            positions,
            hidden,
            following,
        )

    def forget(self, requests: Iterable[str]) -> None:
        """These requests are finished."""
        for request in requests:
            self.waiting.pop(request, None)


def _bounds(step: Batch) -> list[tuple[int, int, int]]:
    """Where each request's tokens begin and end in a step, and the position of the first."""
    starts = step.metadata.query_start_loc_cpu
    firsts = step.positions[starts[:-1].long()]
    return list(zip(starts[:-1].tolist(), starts[1:].tolist(), firsts.tolist(), strict=True))


def _slice(part: Part, begin: int, end: int) -> Part:
    tokens, positions, hidden = part
    return tokens[begin:end], positions[begin:end], hidden[begin:end]


def _joined(parts: Sequence[Part]) -> Part:
    tokens, positions, hidden = (torch.cat(column) for column in zip(*parts, strict=True))
    return tokens, positions, hidden
