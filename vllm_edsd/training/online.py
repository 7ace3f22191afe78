"""What the target thinks of a text, by the target itself in this process, each time it is asked for.

Over the text's n token positions: `hidden` bf16 [n, layers, H] (input of each captured layer), `final` bf16 [n, H] (normed
last state: the head's input) and `argmax` int32 [n] (the target's greedy next token; -1 within the prompt, where nothing is
trained).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from vllm_edsd.training.batches import Indexed
from vllm_edsd.training.losses import blocks
from vllm_edsd.training.samples import Sample

CHUNK_TOKENS = {"cpu": 4096, "cuda": 32_768}  # run through at once, padding counted


class Online:
    """The target in transformers: bf16, as it is served. `layers[i]` is the input of target layer i."""

    def __init__(self, path: Path, layers: Sequence[int], device: torch.device):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, device_map=device).eval()
        self.layers = tuple(layers)
        self.device = device

    def read(self, items: Sequence[Indexed], columns: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """For each of `items` hidden [n, len(columns) * H], final [n, H], argmax [n]."""
        found = dict(self.states([item.sample for item in items]))
        for part in found.values():
            part["hidden"] = part["hidden"][:, list(columns)].flatten(1)
        return [found[place] for place in range(len(items))]

    @torch.no_grad()
    def states(self, samples: Sequence[Sample]) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """The place of each of `samples` and what the target thinks of it, those of like length together."""
        places = sorted(range(len(samples)), key=lambda place: len(samples[place].tokens))
        while places:
            taken = _take(places, samples, CHUNK_TOKENS[self.device.type])
            rows = torch.zeros(len(taken), len(samples[taken[0]].tokens), dtype=torch.long)
            for row, place in zip(rows, taken, strict=True):
                row[: len(samples[place].tokens)] = samples[place].tokens
            # Right padding under a causal mask cannot reach the tokens before it: no attention mask is needed.
            result = self.model.model(rows.to(self.device), output_hidden_states=True, use_cache=False)
            hidden = torch.stack([result.hidden_states[layer] for layer in self.layers], dim=2)
            final = result.last_hidden_state
            argmax = self._greedy(final, [(samples[place].answer, len(samples[place].tokens)) for place in taken])
            for row, place in enumerate(taken):
                size = len(samples[place].tokens)
                yield place, {"hidden": hidden[row, :size], "final": final[row, :size], "argmax": argmax[row, :size]}

    def _greedy(self, final: torch.Tensor, answers: Sequence[tuple[int, int]]) -> torch.Tensor:
        """int32 [B, L]: the head's first choices at states [B, L, H] in each row's answer, a begin and an end; else -1."""
        places = torch.arange(final.shape[1], device=self.device)
        begins, ends = torch.tensor(answers, device=self.device).T[..., None]
        wanted = (begins <= places) & (places < ends)
        states = final[wanted]
        chosen = [self.model.lm_head(states[rows]).argmax(-1) for rows in blocks(states)]
        argmax = torch.full(wanted.shape, -1, dtype=torch.int32, device=self.device)
        argmax[wanted] = torch.cat(chosen).int()
        return argmax


def _take(places: list[int], samples: Sequence[Sample], most: int) -> list[int]:
    """The longest of `places`, which are sorted by length, that fit `most` tokens, padding counted; one at least."""
    taken = [places.pop()]
    while places and len(samples[taken[0]].tokens) * (len(taken) + 1) <= most:
        taken.append(places.pop())
    return taken
