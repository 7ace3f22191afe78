"""A Llama target in plain torch that answers thousands of prompts at a time on one GPU, where vLLM is not at hand.

Rows are independent and each has its own place in a fixed cache; a row whose answer has ended takes the next prompt. A
decode step is a CUDA graph, one for each length of cache that is looked at.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch
from torch.nn import functional as F

from vllm_edsd.attention import without_plans

STEPS = 16  # decode steps between two looks at what has ended
SPAN = 64  # cache lengths are multiples of it
PREFILL_TOKENS = 32_768  # of prompts read at once, padding counted


class Decoder:
    """`model`: a loaded Llama-like transformers model. `rows` texts side by side, of at most `length` tokens each."""

    def __init__(self, model: Any, rows: int, length: int, ends: Sequence[int], seed: int):
        config = model.config
        self.model, self.rows, self.ends = model, rows, list(ends)
        self.length = -(-(length + STEPS) // SPAN) * SPAN
        self.device, dtype = model.device, model.dtype
        self.kv, self.dim = config.num_key_value_heads, config.head_dim
        self.group, self.eps = config.num_attention_heads // self.kv, config.rms_norm_eps
        self.layers = [_Layer(layer) for layer in model.model.layers]
        shape = (len(self.layers), 2, rows, self.kv, self.length, self.dim)
        self.cache = torch.zeros(shape, dtype=dtype, device=self.device)
        self.angles = config.rope_parameters["rope_theta"] ** -(
            torch.arange(0, self.dim, 2, device=self.device, dtype=torch.float32) / self.dim
        )
        self.tokens = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.places = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.heats = torch.zeros(rows, 1, device=self.device)
        self.written = torch.zeros(STEPS, rows, dtype=torch.int32, device=self.device)
        self.every = torch.arange(rows, device=self.device)
        self.graphs: dict[tuple[int, bool], Callable[[], None]] = {}
        self.drawn = False
        torch.manual_seed(seed)
        without_plans()

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], heats: Sequence[float], most: int, report: Callable[[int], None]
    ) -> list[list[int]]:
        """An answer of at most `most` tokens to each of `prompts` (int lists), its end included; heat 0 is greedy."""
        self.drawn = any(heats)
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))  # rows of like length side by side
        waiting = iter(order)
        whole = -(-most // STEPS) * STEPS
        answers = numpy.full((len(prompts), whole), -1, dtype=numpy.int32)
        made = numpy.zeros(self.rows, dtype=numpy.int64)
        held = numpy.full(self.rows, -1, dtype=numpy.int64)  # which prompt a row answers
        furthest = numpy.zeros(self.rows, dtype=numpy.int64)  # where its next token goes
        while True:
            free = numpy.flatnonzero(held < 0)
            taken = [place for _, place in zip(free, waiting, strict=False)]
            if taken:
                rows = free[: len(taken)]
                held[rows], made[rows] = taken, 0
                furthest[rows] = [len(prompts[place]) - 1 for place in taken]
                self._read([prompts[place] for place in taken], rows.tolist(), [heats[place] for place in taken])
            alive = numpy.flatnonzero(held >= 0)
            if not len(alive):
                break
            self._steps(int(furthest[alive].max()) + STEPS)
            new = self.written.cpu().numpy().T[alive]
            answers[held[alive][:, None], made[alive][:, None] + numpy.arange(STEPS)] = new
            made[alive] += STEPS
            furthest[alive] += STEPS
            over = numpy.isin(new, self.ends).any(1) | (made[alive] >= most)
            held[alive[over]] = -1
            report(int(over.sum()))
        return [self._cut(row[:most]) for row in answers]

    def _cut(self, row: numpy.ndarray) -> list[int]:
        ended = numpy.flatnonzero(numpy.isin(row, self.ends))
        return row[: ended[0] + 1 if len(ended) else int((row >= 0).sum())].tolist()

    def _read(self, prompts: list[Sequence[int]], rows: list[int], heats: list[float]) -> None:
        """Keys and values of `prompts` into `rows`. The last token is read again by the first decode step."""
        at = torch.tensor(rows, device=self.device)
        self.tokens[at] = torch.tensor([prompt[-1] for prompt in prompts], device=self.device)
        self.places[at] = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
        self.heats[at] = torch.tensor(heats, device=self.device)[:, None]
        longest = max(map(len, prompts))
        size = max(PREFILL_TOKENS // longest, 1)
        for begin in range(0, len(prompts), size):
            part = prompts[begin : begin + size]
            padded = numpy.zeros((len(part), max(map(len, part))), dtype=numpy.int64)
            for row, prompt in zip(padded, part, strict=True):
                row[: len(prompt)] = prompt
            # Right padding under a causal mask cannot reach the tokens before it, and is overwritten before it is seen.
            found = self.model.model(torch.from_numpy(padded).to(self.device), use_cache=True).past_key_values
            for cache, own in zip(self.cache, found.layers, strict=True):
                cache[0][at[begin : begin + size], :, : padded.shape[1]] = own.keys
                cache[1][at[begin : begin + size], :, : padded.shape[1]] = own.values

    def _steps(self, length: int) -> None:
        """STEPS tokens of every row into `written`; no row looks further than `length` tokens."""
        span = min(-(-length // SPAN) * SPAN, self.length)
        if self.device.type != "cuda":
            for step in range(STEPS):
                self._step(span)
                self.written[step] = self.tokens
            return
        kind = span, self.drawn
        if kind not in self.graphs:
            self.graphs[kind] = self._captured(span)
        for step in range(STEPS):
            self.graphs[kind]()
            self.written[step] = self.tokens

    def _captured(self, span: int) -> Callable[[], None]:
        kept = [self.tokens.clone(), self.places.clone()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step(span)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step(span)
        self.tokens.copy_(kept[0])
        self.places.copy_(kept[1])
        return graph.replay

    def _step(self, span: int) -> None:
        """One more token of every row, in place."""
        angle = (self.places[:, None].float() * self.angles).repeat(1, 2)[:, None]
        cos, sin = angle.cos().to(self.cache.dtype), angle.sin().to(self.cache.dtype)
        seen = (torch.arange(span, device=self.device) <= self.places[:, None])[:, None, None]
        x = self.model.model.embed_tokens.weight[self.tokens]
        for layer, cache in zip(self.layers, self.cache, strict=True):
            query, key, value = (
                layer.project(self._norm(x, layer.before))
                .view(self.rows, -1, self.dim)
                .split([self.kv * self.group, self.kv, self.kv], 1)
            )
            cache[0][self.every, :, self.places] = _turn(key, cos, sin)
            cache[1][self.every, :, self.places] = value
            query = _turn(query, cos, sin).view(self.rows, self.kv, self.group, self.dim)
            scores = (query @ cache[0][:, :, :span].mT).float() * self.dim**-0.5
            attended = scores.masked_fill_(~seen, float("-inf")).softmax(-1).to(query.dtype) @ cache[1][:, :, :span]
            x = x + layer.out(attended.reshape(self.rows, -1))
            x = x + layer.mlp(self._norm(x, layer.after))
        logits = self.model.lm_head(self._norm(x, self.model.model.norm.weight)).float()
        if self.drawn:
            logits -= self.heats * torch.empty_like(logits).exponential_().clamp_min_(1e-20).log_()
        self.tokens.copy_(logits.argmax(-1))
        self.places.add_(1).clamp_(max=self.length - 1)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self.eps)


class _Layer:
    """A decoder layer's weights, those of one product joined."""

    def __init__(self, layer: Any):
        attention, mlp = layer.self_attn, layer.mlp
        self.before, self.after = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.joined = torch.cat([part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj)])
        self.gated = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        self.out, self.down = attention.o_proj, mlp.down_proj

    def project(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.joined)

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = F.linear(x, self.gated).chunk(2, -1)
        return self.down(F.silu(gate) * up)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin
