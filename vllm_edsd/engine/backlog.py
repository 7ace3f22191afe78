"""What the drafter has not read while it was not drafting: it catches up in one pass when it drafts again.

Without it the drafter's KV cache would have holes where the target decoded alone, and it would draft badly after them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # tokens, positions, hidden states of a step
MOST = 256  # tokens of one request; then the drafter reads them without drafting


class Backlog:
    """Tokens, positions and hidden states of the steps that the drafter sat out, by request."""

    def __init__(self, block_size: Callable[[], int], capacity: int):
        self.block_size = block_size
        self.capacity = capacity
        self.waiting: dict[str, list[Part]] = {}
        self.counts: dict[str, int] = {}  # tokens of each request that wait

    def room(self) -> bool:
        """Whether another step may be put off."""
        return max(self.counts.values(), default=0) < MOST

    def add(
        self,
        requests: Sequence[str],
        metadata: CommonAttentionMetadata,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        hidden: torch.Tensor,
    ) -> None:
        """Puts off a step: tokens [N], positions [N] and hidden states [N, ...] of `requests`, in their order."""
        starts = metadata.query_start_loc_cpu.tolist()
        tokens, positions, hidden = tokens.clone(), positions.clone(), hidden.clone()
        for request, begin, end in zip(requests, starts, starts[1:], strict=False):
            self._wait(request, [(tokens[begin:end], positions[begin:end], hidden[begin:end])])

    def take(
        self,
        requests: Sequence[str],
        metadata: CommonAttentionMetadata,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        hidden: torch.Tensor,
    ) -> tuple[CommonAttentionMetadata, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The step with what was put off before it, which is then forgotten.

        Where both together are too much for one pass, the step alone: what waits goes on waiting, this step behind it.
        """
        starts = metadata.query_start_loc_cpu.tolist()
        parts, lengths, late = [], [], []
        for request, begin, end in zip(requests, starts, starts[1:], strict=False):
            now = (tokens[begin:end], positions[begin:end], hidden[begin:end])
            before = self.waiting.pop(request, [])
            waited = self.counts.pop(request, 0)
            # A request that was preempted starts anew and reads everything again.
            if before and int(before[-1][1][-1]) + 1 == int(now[1][0]):
                late.append((request, before, now))
                parts += before
                end += waited
            parts.append(now)
            lengths.append(end - begin)
        fits = sum(lengths) <= self.capacity
        if not fits:
            for request, before, now in late:
                self._wait(request, [*before, (now[0].clone(), now[1].clone(), now[2].clone())])
        if not late or not fits:
            return metadata, tokens, positions, hidden
        tokens, positions, hidden = (torch.cat(column) for column in zip(*parts, strict=True))
        counts = torch.tensor(lengths)
        starts_now = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        starts_now[1:] = counts.cumsum(0)
        blocks = metadata.block_table_tensor[torch.arange(len(lengths)).repeat_interleave(counts)]
        size = self.block_size()
        slots = blocks.gather(1, (positions // size)[:, None].long())[:, 0].long() * size + positions % size
        return (
            dataclasses.replace(
                metadata,
                query_start_loc=starts_now.to(metadata.query_start_loc.device),
                query_start_loc_cpu=starts_now,
                num_actual_tokens=len(tokens),
                max_query_len=max(lengths),
                slot_mapping=slots.to(metadata.slot_mapping.dtype),
                # Computed from the query lengths on demand.
                _num_computed_tokens_cache=None,
                _token_to_req_indices_cache=None,
            ),
            tokens,
            positions,
            hidden,
        )

    def forget(self, requests: Iterable[str]) -> None:
        """These requests are finished."""
        for request in requests:
            self.waiting.pop(request, None)
            self.counts.pop(request, None)

    def _wait(self, request: str, parts: list[Part]) -> None:
        self.waiting.setdefault(request, []).extend(parts)
        self.counts[request] = self.counts.get(request, 0) + sum(len(part[0]) for part in parts)
