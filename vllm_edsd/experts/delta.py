"""What makes a dense checkpoint into the MoE carved from it: a few megabytes beside the dense weights."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vllm_edsd.errors import UserError
from vllm_edsd.experts.carve import Carving
from vllm_edsd.experts.student import MATRICES

FOLDER, FILE = "carving", "delta.safetensors"


@dataclasses.dataclass(frozen=True)
class Delta:
    """`order` int16 [L, I], `routers` bf16 [L, E, d]; `changes` bf16 by matrix: (A [L, r, in], B [L, out, r])."""

    order: torch.Tensor
    routers: torch.Tensor
    changes: dict[str, tuple[torch.Tensor, torch.Tensor]]
    shared: int
    top_k: int

    def merged(self, name: str, layer: int, weight: torch.Tensor) -> torch.Tensor:
        """The dense matrix `weight` of a layer, its neurons in carved order, changed: float32, shape of `weight`."""
        neurons = self.order[layer].long()
        ordered = (weight[:, neurons] if name == "down_proj" else weight[neurons]).float()
        down, up = self.changes[name]
        return ordered + up[layer].float() @ down[layer].float()


def of(moe: Any, carving: Carving, shared: int, top_k: int) -> Delta:
    """The delta of a distilled student."""
    mlps = [layer.mlp for layer in moe.model.layers]
    return Delta(
        order=carving.order.to(torch.int16),
        routers=torch.stack([mlp.router.detach() for mlp in mlps]).bfloat16(),
        changes={name: _factors([getattr(mlp, name) for mlp in mlps]) for name in MATRICES},
        shared=shared,
        top_k=top_k,
    )


def _factors(matrices: list) -> tuple[torch.Tensor, torch.Tensor]:
    down = torch.stack([matrix.down.detach() for matrix in matrices])
    up = torch.stack([matrix.up.detach() for matrix in matrices])
    return down.bfloat16(), up.bfloat16()


def write(delta: Delta, path: Path) -> None:
    """To a safetensors file that is being written beside its place."""
    tensors = {"order": delta.order, "routers": delta.routers}
    for name, (down, up) in delta.changes.items():
        tensors |= {f"{name}.down": down, f"{name}.up": up}
    save_file(tensors, path, metadata={"edsd": json.dumps({"shared": delta.shared, "top_k": delta.top_k})})


def read(path: Path) -> Delta:
    """Raises UserError for a missing or damaged file."""
    try:
        with safe_open(path, "pt") as file:
            shape = json.loads(file.metadata()["edsd"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        changes = {name: (tensors[f"{name}.down"], tensors[f"{name}.up"]) for name in MATRICES}
        return Delta(tensors["order"], tensors["routers"], changes, shape["shared"], shape["top_k"])
    except (SafetensorError, KeyError, TypeError, OSError) as error:
        raise UserError(f"carving {path} is missing or damaged ({error}); make it with: vllm-edsd experts carve") from error
