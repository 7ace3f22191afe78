"""Where and how a bench was run, so that its figures can be made again."""

import hashlib
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoTokenizer

import vllm_edsd
from vllm_edsd.compat import vllm_version


def describe(target: Path, prompts: Path | None) -> dict[str, Any]:
    """Machine, versions, command, target with its template, and the prompt file."""
    template = AutoTokenizer.from_pretrained(target).chat_template
    return {
        "machine": machine(),
        "versions": {
            "vllm": vllm_version(),
            "vllm_edsd": vllm_edsd.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "openai")},
        },
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "target": str(target),
        "template": {"sha256": hashlib.sha256(str(template).encode()).hexdigest()},
        "prompts": {"file": prompts.name, "sha256": hashlib.sha256(prompts.read_bytes()).hexdigest()} if prompts else None,
    }


def machine() -> dict[str, Any]:
    """Processor, cores, memory, accelerator, operating system, and the load it had to begin with."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return {
        "processor": names[0].split(":", 1)[1].strip() if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }
