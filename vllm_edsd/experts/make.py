"""A dense target carved, distilled and written as an MoE checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vllm_edsd.errors import UserError
from vllm_edsd.experts import delta as deltas
from vllm_edsd.experts.carve import carve
from vllm_edsd.experts.checkpoint import assemble, copy_tokenizer
from vllm_edsd.experts.distil import Progress, distil
from vllm_edsd.experts.quality import likelihood
from vllm_edsd.experts.recipe import CarveRecipe
from vllm_edsd.experts.rows import read_rows
from vllm_edsd.experts.student import student
from vllm_edsd.files import atomic
from vllm_edsd.training.export import environment
from vllm_edsd.training.samples import fingerprint


def make(recipe: CarveRecipe, out: Path, say: Callable[[str], None], shown: Callable[[Progress], None]) -> None:
    """Writes the checkpoint, with the delta (`carving/delta.safetensors`) and its provenance in it, to directory `out`.

    The distillation's checkpoint is kept beside `out`. Raises UserError for a target that is not Llama-like, data that is
    too little, or a checkpoint of another recipe.
    """
    from transformers import AutoModelForCausalLM

    dense: Any = AutoModelForCausalLM.from_pretrained(recipe.target, dtype=torch.float32)
    if dense.config.model_type != "llama":
        raise UserError(f"target {recipe.target} is of type {dense.config.model_type}; only llama is carved")
    routed = dense.config.intermediate_size - recipe.shared
    if routed <= 0 or routed % recipe.experts:
        raise UserError(f"shared {recipe.shared} leaves {routed} neurons, which do not divide into experts {recipe.experts}")
    rows, held_out = read_rows(recipe.data, recipe.row, recipe.held_out_rows, recipe.seed)
    say(f"{len(rows)} rows of {recipe.row} tokens; counting neurons on {min(len(rows), recipe.calibration_rows)}")
    carving = carve(dense, rows[: recipe.calibration_rows], recipe.experts, recipe.shared, recipe.seed)
    dense = dense.to(torch.bfloat16)
    moe: Any = AutoModelForCausalLM.from_pretrained(recipe.target, dtype=torch.bfloat16)
    trained = recipe.distilled_top_k or recipe.top_k
    moe = student(moe, carving, recipe.shared, trained, recipe.rank, recipe.seed)
    marks = [fingerprint(folder) for folder in recipe.data]
    identity = recipe.model_dump(mode="json", exclude={"target", "data", "checkpoint_every"}) | {"data": marks}
    distil(dense, moe, rows, recipe, out.with_name(out.name + ".checkpoint.safetensors"), identity, shown)
    delta = deltas.of(moe, carving, recipe.shared, recipe.top_k)
    whole = assemble(dense, delta)
    scores = {"dense": likelihood(dense, held_out)}
    for k in sorted({recipe.top_k, recipe.top_k // 2, 1} - {0}, reverse=True):
        scores[f"k={k}"] = likelihood(_at(whole, k), held_out)
    say("held-out NLL per token: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    provenance = {
        **environment(),
        "recipe": recipe.model_dump(mode="json"),
        "data": [f"sha256:{mark}" for mark in marks],
        "rows": len(rows),
        "held_out": {"rows": len(held_out), "nll_per_token": scores},
    }
    write(_at(whole, recipe.top_k), delta, recipe.target, out, provenance)


def write(moe: Any, delta: deltas.Delta, dense: Path, out: Path, provenance: dict[str, Any]) -> None:
    """A checkpoint with the dense target's tokenizer, whole or not at all."""
    with atomic(out) as partial:
        moe.save_pretrained(partial)
        copy_tokenizer(dense, partial)
        # vLLM loads every safetensors file that lies beside the weights.
        (partial / deltas.FOLDER).mkdir()
        deltas.write(delta, partial / deltas.FOLDER / deltas.FILE)
        (partial / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


def _at(moe: Any, k: int) -> Any:
    """The same model with `k` experts per token."""
    for layer in moe.model.layers:
        layer.mlp.gate.top_k = k
    return moe
