"""Fake checkpoints: whole, tiny, and easy to spoil."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vllm_edsd.drafters import factory
from vllm_edsd.drafters.config import DrafterConfig

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
    """Writes an EAGLE-3 drafter for that target, with weights of nil that fit; keywords override keys of its config.json
    (None removes one)."""

    def make(name: str = "drafter", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        plain = DrafterConfig(
            drafter="eagle3",
            target="tiny",
            hidden_size=HIDDEN,
            intermediate_size=128,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            max_position_embeddings=512,
            vocab_size=VOCABULARY,
            draft_vocab_size=DRAFT_VOCABULARY,
            target_num_hidden_layers=LAYERS,
            layers=(1, 2, 3),
        )
        shape = plain.model_copy(update={key: value for key, value in changes.items() if key in DrafterConfig.model_fields})
        if ids := changes.get("eagle_aux_hidden_state_layer_ids"):
            shape = shape.model_copy(update={"layers": tuple(ids)})
        config = {key: value for key, value in (plain.to_hf() | changes).items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))
        types = {"d2t": torch.int64, "t2d": torch.bool}
        weights = {
            name: torch.zeros(size, dtype=types.get(name, torch.bfloat16)) for name, size in factory.shapes(shape).items()
        }
        save_file(weights, folder / "model.safetensors")
        return folder

    return make
