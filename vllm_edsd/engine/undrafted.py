"""Steps without a draft take the path that vLLM takes without speculation (seen in 0.32.0: it verifies empty drafts)."""

from typing import Any


def ease(runner: Any) -> None:
    """Lets `runner` (a V1 model runner) sample such steps plainly, and hand their tokens to the drafter as they lie."""
    prepare = runner._prepare_inputs

    def _prepare_inputs(*args: Any, **kwargs: Any) -> Any:
        logits_indices, metadata, most = prepare(*args, **kwargs)
        return logits_indices, metadata if any(metadata.num_draft_tokens) else None, most

    runner._prepare_inputs = _prepare_inputs
