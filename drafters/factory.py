"""Builds a drafter from its configuration or its checkpoint directory."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from vllm_edsd.drafters.config import DrafterConfig
from vllm_edsd.drafters.core import Drafter, DraftLayer
from vllm_edsd.drafters.eagle3.core import Eagle3Layer
from vllm_edsd.drafters.edsd.core import EdsdLayer
from vllm_edsd.drafters.normed import NormedDrafter
from vllm_edsd.errors import UserError

KINDS: dict[str, tuple[type[Drafter], type[DraftLayer]]] = {
    "edsd": (Drafter, EdsdLayer),
    "edsd-normed": (NormedDrafter, EdsdLayer),
    "eagle3": (Drafter, Eagle3Layer),
    "eagle3.1": (NormedDrafter, Eagle3Layer),
}
MAPS = ("d2t", "t2d")  # between draft and target vocabulary: needed where they differ


def build(config: DrafterConfig, draft_ids: torch.Tensor) -> Drafter:
    """A drafter with fresh weights. Raises UserError for an unknown kind."""
    if config.drafter not in KINDS:
        raise UserError(f"unknown drafter {config.drafter!r}; known: {', '.join(KINDS)}")
    drafter, layer = KINDS[config.drafter]
    return drafter(config, layer(config), draft_ids)


def shapes(config: DrafterConfig) -> dict[str, list[int]]:
    """Names and shapes of the weights that such a drafter is exported with; none are made. Raises UserError as `build`."""
    with torch.device("meta"):
        made = build(config, torch.arange(config.draft_vocab_size)).state_dict()
    mapped = config.draft_vocab_size != config.vocab_size
    return {name: list(weight.shape) for name, weight in made.items() if mapped or name not in MAPS}


def load(folder: Path) -> Drafter:
    """The float32 drafter of a checkpoint directory written by `vllm-edsd train`."""
    path = Path(folder) / "config.json"
    config = DrafterConfig.from_hf(json.loads(path.read_text()), str(path))
    weights = load_file(Path(folder) / "model.safetensors")
    ids = torch.arange(config.draft_vocab_size)
    drafter = build(config, ids + weights["d2t"] if "d2t" in weights else ids)
    maps = {"d2t": drafter.d2t, "t2d": drafter.t2d}
    drafter.load_state_dict({name: weight.float() for name, weight in weights.items() if name not in maps} | maps)
    return drafter
