"""Any Hugging Face causal language model, over trees: a 4-D mask, positions by depth, and a KV cache that is cut back."""

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from vllm_edsd.errors import UserError
from vllm_edsd.reference.model import Model, Session
from vllm_edsd.scoring.draft import first_true, lineage

MASKED = ("eager", "sdpa")  # the attention implementations that heed a 4-D mask


class HuggingFace(Model):
    """Wraps a loaded model, on its device and in its dtype.

    UserError for one that cannot verify trees: recurrent layers, no position ids, or an attention that ignores masks.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config(decoder=True)
        name, attention = type(model).__name__, config._attn_implementation
        if attention not in MASKED:
            raise UserError(
                f"{name} was loaded with attn_implementation={attention!r}: load it with one of {', '.join(MASKED)}"
            )
        recurrent = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if recurrent or "position_ids" not in inspect.signature(model.forward).parameters:
            what = f"has layers of type {', '.join(sorted(recurrent))}" if recurrent else "takes no position_ids"
            raise UserError(f"{name} {what}: the reference engine needs a transformer whose tokens see what a mask says")
        self.model, self.vocabulary = model.eval(), config.vocab_size
        self.window = getattr(config, "sliding_window", None)

    def start(self, rows: int) -> Session:
        return _CachedSession(self, rows)


class _CachedSession(Session):
    """The cache holds the text, padded to the longest row, then the slots fed since the last commit."""

    def __init__(self, owner: HuggingFace, rows: int) -> None:
        self.owner = owner
        self.cache: Any = DynamicCache()
        self.text = torch.zeros(rows, 0, dtype=torch.bool, device=owner.model.device)
        self.parents = torch.zeros(rows, 0, dtype=torch.long, device=owner.model.device)

    @torch.inference_mode()
    def feed(self, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        self.parents = torch.cat([self.parents, parents], 1)
        lines = lineage(self.parents)[:, -tokens.shape[1] :]
        visible = torch.cat([self.text[:, None].expand(-1, tokens.shape[1], -1), lines], 2)
        positions = visible.sum(2) - 1
        if self.owner.window is not None and int(positions.max()) >= self.owner.window:
            raise UserError(
                f"a text outgrows the sliding window of {self.owner.window} tokens: give shorter prompts or fewer tokens"
            )
        mask = torch.zeros(visible.shape, dtype=self.owner.model.dtype, device=visible.device)
        mask = mask.masked_fill(~visible, torch.finfo(mask.dtype).min)[:, None]
        return self.owner.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        ).logits

    @torch.inference_mode()
    def commit(self, slots: torch.Tensor) -> None:
        chosen = (torch.arange(self.parents.shape[1], device=slots.device) == slots[..., None]).any(1)
        kept = torch.cat([self.text, chosen], 1)
        # A path runs from lower to higher slots: what is kept stays in the order of the text.
        order = first_true(kept)
        for layer in self.cache.layers:
            index = order[:, None, :, None]
            layer.keys = layer.keys.take_along_dim(index, 2)
            layer.values = layer.values.take_along_dim(index, 2)
        self.text = kept.gather(1, order)
        self.parents = self.parents[:, :0]

    @torch.inference_mode()
    def select(self, rows: torch.Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.text, self.parents = self.text[rows], self.parents[rows]
