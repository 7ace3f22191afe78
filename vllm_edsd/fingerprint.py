"""What a cost profile holds for: target, drafter, machine, versions."""

import hashlib
from pathlib import Path

import torch
from transformers import AutoConfig

import vllm_edsd
from vllm_edsd.bench.environment import machine
from vllm_edsd.compat import vllm_version


def fingerprint(target: str | None, drafter: Path, dtype: str | None) -> dict[str, str]:
    """By name; models by their configuration and the sizes of their weights. `target` may be a hub id.

    `dtype` auto is the target's own. What is None is left out.
    """
    here = machine()
    known: dict[str, str] = {}
    if target is not None:
        known["target"] = model_fingerprint(Path(target)) if Path(target).is_dir() else target
    if dtype == "auto" and target is not None:
        known["dtype"] = str(AutoConfig.from_pretrained(target).dtype).removeprefix("torch.")
    elif dtype is not None:
        known["dtype"] = dtype
    return known | {
        "drafter": model_fingerprint(drafter),
        "machine": f"{here['processor']}, {here['cores']} cores",
        "vllm": str(vllm_version()),
        "torch": torch.__version__,
        "vllm_edsd": vllm_edsd.__version__,
    }


def model_fingerprint(folder: Path) -> str:
    """Of a checkpoint's configuration and the sizes of its weights."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
    return digest.hexdigest()[:16]
