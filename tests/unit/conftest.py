"""Fake checkpoints: whole, tiny, and easy to spoil."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

HIDDEN, VOCABULARY, DRAFT_VOCABULARY, LAYERS = 64, 256, 96, 4


@pytest.fixture
def make_target(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Llama-like target's config.json; keywords override its keys."""

    def make(name: str = "target", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "intermediate_size": 128,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 512,
        }
        (folder / "config.json").write_text(json.dumps(config | changes))
        return folder

    return make


@pytest.fixture
def make_drafter(tmp_path: Path) -> Callable[..., Path]:
    """Writes an EAGLE-3 drafter for that target; keywords override keys of its config.json (None removes one)."""

    def make(name: str = "drafter", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = {
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "target_hidden_size": HIDDEN,
            "vocab_size": VOCABULARY,
            "draft_vocab_size": DRAFT_VOCABULARY,
            "eagle_aux_hidden_state_layer_ids": [1, 2, 3],
            "edsd": {"format": 1, "drafter": "eagle3", "target": "tiny", "target_num_hidden_layers": LAYERS},
        } | changes
        config = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))
        weights = {
            "fc.weight": torch.zeros(HIDDEN, 3 * HIDDEN, dtype=torch.bfloat16),
            "lm_head.weight": torch.zeros(DRAFT_VOCABULARY, HIDDEN, dtype=torch.bfloat16),
            "d2t": torch.zeros(DRAFT_VOCABULARY, dtype=torch.int64),
        }
        save_file(weights, folder / "model.safetensors")
        return folder

    return make
