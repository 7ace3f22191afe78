import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vllm_edsd.drafters.checkpoint import resolve


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """The bundled EAGLE-3 drafter with weights of the same size that mean nothing."""
    folder = tmp_path / "noise"
    shutil.copytree(resolve("smollm2-eagle3"), folder)
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    for name, weight in weights.items():
        if weight.is_floating_point():
            weights[name] = (torch.randn(weight.shape) * weight.float().std()).to(weight.dtype)
    save_file(weights, folder / "model.safetensors")
    return folder
