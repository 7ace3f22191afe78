"""How well a model predicts text."""

from typing import Any

import torch


@torch.inference_mode()
def likelihood(model: Any, rows: torch.Tensor) -> float:
    """Mean negative log-likelihood in nats of each token of `rows` int64 [n, length] but the first of each."""
    total = 0.0
    for row in rows.split(4):
        logs = model(row, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        total -= float(logs.gather(-1, row[:, 1:, None]).sum())
    return total / rows[:, 1:].numel()
