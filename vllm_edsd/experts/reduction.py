"""Fewer experts per token in a transformers model: the reference of what the served reduction computes."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch

from vllm_edsd.experts.hook import Hook
from vllm_edsd.experts.routed import RoutedLayer


def largest(weights: torch.Tensor, k: int, renormalises: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's `k` largest of `weights` [tokens, K], and their places; with `renormalises`, of the same sum as all K."""
    values, places = weights.topk(k, dim=-1)
    if renormalises:
        values = values * (weights.sum(-1, keepdim=True) / values.sum(-1, keepdim=True))
    return values, places


def strongest(weights: torch.Tensor, k: int, renormalises: bool) -> torch.Tensor:
    """`weights` [tokens, K] with zeros in place of all but `largest`."""
    values, places = largest(weights, k, renormalises)
    return torch.zeros_like(weights).scatter(-1, places, values)


@contextlib.contextmanager
def reduced(
    layers: Sequence[RoutedLayer],
    k: Mapping[int, int],
    rows: torch.Tensor,
    hooks: Mapping[int, Hook] | None = None,
) -> Iterator[None]:
    """Within it, layer i routes to `k[i]` experts where `rows` bool [B, T] is true; layers without an entry are left alone.

    `hooks`, by layer, repair the same rows.
    """
    handles = []
    flat = rows.flatten()[:, None]
    for routed in layers:
        fewer = k.get(routed.index, routed.top_k)
        if fewer < routed.top_k:

            def change(
                weights: torch.Tensor, _: torch.Tensor, fewer: int = fewer, routed: RoutedLayer = routed
            ) -> torch.Tensor:
                return torch.where(flat, strongest(weights, fewer, routed.renormalises), weights)

            handles.append(routed.on_routing(change))
        hook = (hooks or {}).get(routed.index)
        if hook is not None:
            handles.append(
                routed.block.register_forward_hook(
                    lambda _, args, output, hook=hook: output + rows[..., None].to(output.dtype) * hook(args[0])
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
