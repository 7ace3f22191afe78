"""A training run's state as one safetensors file: weights, moments, the step, and what identifies the run."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.optim import Optimizer

from vllm_edsd.errors import UserError
from vllm_edsd.files import atomic
from vllm_edsd.tensor_files import notes, opened

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # AdamW's two, and Muon's


@dataclasses.dataclass(frozen=True)
class State:
    """What a file holds: tensors by `weight.NAME`, a moment and a name, or a name of the writer's own."""

    step: int
    identity: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """By name, without the prefix."""
        return {name.removeprefix("weight."): value for name, value in self.tensors.items() if name.startswith("weight.")}


def write(path: Path, tensors: Mapping[str, torch.Tensor], step: int, identity: dict[str, Any]) -> None:
    """Writes the state after `step` steps, whole or not at all."""
    with atomic(path) as partial:
        header = json.dumps({"step": step, "identity": identity}, sort_keys=True)
        save_file(dict(tensors), partial, metadata={"edsd": header})


def read(path: Path) -> State | None:
    """None where there is no file. Raises UserError for a damaged one."""
    if not path.exists():
        return None
    with opened(path, "checkpoint", "delete it to start over") as file:
        header = notes(file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return State(int(header["step"]), header["identity"], tensors)


def require_same(path: Path, made: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError that names the first key in which the run of the checkpoint differs from this one."""
    for key in sorted(made.keys() | wanted.keys()):
        if made.get(key) != wanted.get(key):
            raise UserError(
                f"checkpoint {path} was made with {key} = {made.get(key)!r}, now {wanted.get(key)!r}; "
                "give another --out, or delete the checkpoint to start over"
            )


def moments(optimizer: Optimizer, named: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """The optimiser's moments of the parameters that it has moved, to be written."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter in named.items()
        if parameter in optimizer.state
        for moment in MOMENTS
        if moment in optimizer.state[parameter]
    }


def restore_moments(optimizer: Optimizer, named: Mapping[str, torch.nn.Parameter], state: State) -> None:
    """Sets the moments and the step count of those of the parameters `named` that `optimizer` moves."""
    moved = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in named.items():
        if parameter in moved:
            keys = {moment: f"{moment}.{name}" for moment in MOMENTS}
            found = {moment: state.tensors[key].to(parameter.device) for moment, key in keys.items() if key in state.tensors}
            optimizer.state[parameter] = {"step": torch.tensor(float(state.step)), **found}
