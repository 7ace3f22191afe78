"""What every one-layer drafter is built of: rotary positions, attention over an unrolled draft, a gated MLP."""

import torch
from torch import nn
from torch.nn import functional as F

from vllm_edsd.drafters.config import DrafterConfig


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose weight takes the input's dtype, without which mixed precision leaves PyTorch's fused kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Rotary(nn.Module):
    """Rotary position embedding in the half-split (NeoX) layout, as Llama has it."""

    frequencies: torch.Tensor

    def __init__(self, head_dim: int, theta: float):
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("frequencies", theta**-exponents, persistent=False)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotates x [B, L, heads, D] by positions [B, L]."""
        angles = (positions[..., None].float() * self.frequencies)[:, :, None, :]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        low, high = x.chunk(2, dim=-1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


class DraftCache:
    """Keys and values that an unrolled draft attends to.

    `prefix` are those of step 0, over the whole sequence [B, L, kv_heads, D]; `own` are those of later steps, one for each
    chain [B, Lq, kv_heads, D]: the chain that starts at position i sees the prefix up to i and its own steps only.
    """

    def __init__(self) -> None:
        self.prefix: tuple[torch.Tensor, torch.Tensor] | None = None
        self.own: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, key: torch.Tensor, value: torch.Tensor) -> None:
        if self.prefix is None:
            self.prefix = (key, value)
        else:
            self.own.append((key, value))

    def narrow(self, rows: int) -> None:
        """Forgets all but the first `rows` sequences."""
        assert self.prefix is not None
        self.prefix = (self.prefix[0][:rows], self.prefix[1][:rows])
        self.own = [(key[:rows], value[:rows]) for key, value in self.own]


def unrolled_attention(query: torch.Tensor, cache: DraftCache, visible: torch.Tensor) -> torch.Tensor:
    """Attention of chains over their prefix and their own drafted steps.

    query [B, Lq, heads, D]; visible bool [B, Lq, L], which prefix positions each chain sees. Returns [B, Lq, heads * D].
    Softmax in float32. (EAGLE-3's training-time test: a causal part plus one diagonal for each later step.)
    """
    return (masked_attention if query.is_cuda else diagonal_attention)(query, cache, visible)


def masked_attention(query: torch.Tensor, cache: DraftCache, visible: torch.Tensor) -> torch.Tensor:
    """As `unrolled_attention`, by PyTorch's fused kernel with a mask over the keys of all steps: keeps no weights."""
    assert cache.prefix is not None
    batch, chains, heads, _ = query.shape
    own = torch.eye(chains, dtype=torch.bool, device=query.device).expand(batch, -1, -1)
    mask = torch.cat([visible, *[own] * len(cache.own)], -1)[:, None]
    keys, values = (torch.cat(each, 1).transpose(1, 2) for each in zip(cache.prefix, *cache.own, strict=True))
    # Repeated here, since not every kernel shares keys between grouped queries.
    keys, values = (each.repeat_interleave(heads // each.shape[1], 1) for each in (keys, values))
    return F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, mask).transpose(1, 2).flatten(2)


def diagonal_attention(query: torch.Tensor, cache: DraftCache, visible: torch.Tensor) -> torch.Tensor:
    """As `unrolled_attention`, each later step as one product: on CPU up to twice as fast as a mask over all its keys."""
    assert cache.prefix is not None
    keys, values = cache.prefix
    batch, chains, heads, dim = query.shape
    kv_heads = keys.shape[2]
    # Scaled before the scores are made and masked by a sum: each other way passes over all scores again, backwards too.
    query = (query * dim**-0.5).view(batch, chains, kv_heads, heads // kv_heads, dim)
    unseen = torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, float("-inf"))
    # [B, kv, group * Lq, D]: grouped queries share their keys without repeating them.
    grouped = query.permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = (grouped @ keys.permute(0, 2, 3, 1)).float().unflatten(2, (heads // kv_heads, chains)) + unseen[:, None, None]
    own = [(query * key[:, :, :, None]).float().sum(-1).permute(0, 2, 3, 1) for key, _ in cache.own]
    weights = torch.cat([scores, torch.stack(own, -1)] if own else [scores], -1).softmax(-1).to(values.dtype)
    prefix = weights[..., : keys.shape[1]].flatten(2, 3) @ values.permute(0, 2, 1, 3)
    out = prefix.unflatten(2, (heads // kv_heads, chains)).permute(0, 3, 1, 2, 4)
    for step, (_, value) in enumerate(cache.own):
        out = out + weights[..., keys.shape[1] + step].permute(0, 3, 1, 2)[..., None] * value[:, :, :, None]
    return out.reshape(batch, chains, heads * dim)


class Attention(nn.Module):
    """Grouped-query attention of a drafter's layer; its input may be wider than its output (EAGLE-3's concatenation)."""

    def __init__(self, config: DrafterConfig, input_size: int):
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(input_size, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(input_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(input_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)
        self.rotary = Rotary(config.head_dim, config.rope_theta)

    def forward(self, x: torch.Tensor, positions: torch.Tensor, cache: DraftCache, visible: torch.Tensor) -> torch.Tensor:
        """x [B, L, input], positions [B, L]; only the last Lq = visible.shape[1] positions are chains: [B, Lq, H]."""
        chains = visible.shape[1]
        key = self.rotary(self.k_proj(x).unflatten(-1, (-1, self.head_dim)), positions)
        cache.add(key, self.v_proj(x).unflatten(-1, (-1, self.head_dim)))
        query = self.q_proj(x[:, -chains:]).unflatten(-1, (-1, self.head_dim))
        return self.o_proj(unrolled_attention(self.rotary(query, positions[:, -chains:]), cache, visible))


class GatedMLP(nn.Module):
    """W_down(SiLU(W_gate x) * W_up x)."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
