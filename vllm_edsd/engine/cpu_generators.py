"""Mends requests with a seed on vLLM's CPU backend (seen in 0.32.0): one whose prompt is read in chunks ends the engine.

After each chunk vLLM takes back the draw that it made for nothing by the generator's offset, which CPU generators lack.
Here such a draw is made without the request's generator, so there is nothing to take back.
"""

from typing import Any

import torch


def mend(runner: Any) -> None:
    """Lets `runner` (a V1 model runner) sample unfinished prompts without their generators."""
    held: dict[int, torch.Generator] = {}
    sample, bookkeeping = runner._sample, runner._bookkeeping_sync

    def _sample(*args: Any, **kwargs: Any) -> Any:
        batch = runner.input_batch
        for row in runner.discard_request_mask.np[: batch.num_reqs].nonzero()[0].tolist():
            if row in batch.generators:
                held[row] = batch.generators.pop(row)
        return sample(*args, **kwargs)

    def _bookkeeping_sync(*args: Any, **kwargs: Any) -> Any:
        result = bookkeeping(*args, **kwargs)
        runner.input_batch.generators.update(held)
        held.clear()
        return result

    runner._sample, runner._bookkeeping_sync = _sample, _bookkeeping_sync
