"""What is served: how many experts each MoE layer may use, and the repair module that goes with them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vllm_edsd.config import validate
from vllm_edsd.errors import UserError
from vllm_edsd.experts.hook import Hook
from vllm_edsd.files import atomic
from vllm_edsd.targets import require_target

PLAN = "plan.json"
HOOK = "hook.safetensors"
Mode = Literal["prefill", "all"]


class HookPlace(BaseModel):
    """Beside which layers' MoE blocks the repair module stands, and how wide it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: tuple[int, ...] = Field(min_length=1)
    rank: int = Field(ge=1)


class Plan(BaseModel):
    """A directory with `plan.json` and, where a hook was trained, `hook.safetensors`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="fingerprint of the target: its configuration and the sizes of its weights")
    mode: Mode = Field(description="what it was measured for: the prompts' tokens but the last, or all")
    num_hidden_layers: int = Field(ge=1)
    top_k: int = Field(ge=1, description="experts per token of the whole model")
    experts: dict[int, int] = Field(min_length=1, description="experts per token by layer")
    hook: HookPlace | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _possible(self) -> "Plan":
        for layer, count in self.experts.items():
            if not 1 <= count <= self.top_k:
                raise ValueError(f"layer {layer} has {count} experts; possible are 1 to {self.top_k}")
            if not 0 <= layer < self.num_hidden_layers:
                raise ValueError(f"layer {layer} is not one of {self.num_hidden_layers}")
        if self.hook and (unknown := sorted({*self.hook.layers} - self.experts.keys())):
            raise ValueError(f"the hook's layers {unknown} are no MoE layers of the plan")
        return self

    @property
    def share(self) -> float:
        """Experts per token of the plan over those of the whole model, 0..1."""
        return sum(self.experts.values()) / (self.top_k * len(self.experts))


def read(folder: Path) -> Plan:
    """Raises UserError for a directory that is no plan, or holds one that is damaged."""
    file = Path(folder) / PLAN
    if not file.is_file():
        raise UserError(f"{folder} is no plan: it has no {PLAN}; make one with: vllm-edsd experts plan")
    try:
        data = json.loads(file.read_text())
    except ValueError as error:  # not JSON, or not even text
        raise UserError(f"{file} is not valid JSON ({error}); make it again with: vllm-edsd experts plan") from None
    plan = validate(Plan, data, str(file))
    if plan.hook and not (Path(folder) / HOOK).is_file():
        raise UserError(f"{folder} names a hook and has no {HOOK}; train it again")
    return plan


def read_hooks(folder: Path, place: HookPlace, hidden: int) -> dict[int, Hook]:
    """The plan's hook for states of width `hidden`, by layer. Raises UserError for one that is damaged or does not fit."""
    file, shapes = Path(folder) / HOOK, {"down": (place.rank, hidden), "up": (hidden, place.rank)}
    hooks = {}
    try:
        tensors = load_file(file)
        for layer in place.layers:
            found = {name: tensors[f"{layer}.{name}"] for name in shapes}
            if wrong := [name for name, tensor in found.items() if tensor.shape != shapes[name]]:
                raise ValueError(f"layer {layer}: {wrong[0]} is {[*found[wrong[0]].shape]}")
            hooks[layer] = Hook(**found)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        told = " ".join(str(error).split())
        raise UserError(
            f"{file} is damaged or not for {hidden} dimensions at rank {place.rank} ({told}); train it again"
        ) from None
    return hooks


def write(plan: Plan, hooks: Mapping[int, Hook], folder: Path) -> None:
    """Writes the plan's directory, whole or not at all; `hooks` are those of `plan.hook`, by layer."""
    with atomic(folder) as partial:
        partial.mkdir()
        (partial / PLAN).write_text(plan.model_dump_json(indent=2) + "\n")
        if hooks:
            tensors = {
                f"{layer}.{name}": tensor.detach().contiguous()
                for layer, hook in hooks.items()
                for name, tensor in hook.state_dict().items()
            }
            save_file(tensors, partial / HOOK, metadata={"format": "pt"})


def fingerprint(folder: Path) -> str:
    """Of a plan and its hook: what tells two settings of the same model apart."""
    digest = hashlib.sha256()
    plan = read(folder)
    digest.update(plan.model_dump_json(exclude={"provenance"}).encode())
    if plan.hook:
        digest.update((Path(folder) / HOOK).read_bytes())
    return digest.hexdigest()[:16]


def check(plan: Plan, folder: Path, target: Path) -> None:
    """Raises UserError where there is no target, where the plan was made for another model, layer count or number of
    experts per token, and where its hook is damaged."""
    from transformers import AutoConfig

    from vllm_edsd.fingerprint import model_fingerprint

    require_target(target)
    config = AutoConfig.from_pretrained(target)
    check_sizes(plan, folder, target, config)
    if plan.model != model_fingerprint(target):
        raise UserError(f"plan {folder} was made for another model than {target}; plan anew with: vllm-edsd experts profile")
    if plan.hook:
        read_hooks(folder, plan.hook, config.hidden_size)


def check_sizes(plan: Plan, folder: Path, target: Path | str, config: Any) -> None:
    """Raises UserError where `config`, transformers' of `target`, has another layer count or number of experts per token."""
    for name, found in (("num_hidden_layers", config.num_hidden_layers), ("top_k", top_k(config))):
        if getattr(plan, name) != found:
            raise UserError(
                f"plan {folder} is for a model with {name} {getattr(plan, name)}, and {target} has {found}; plan anew"
            )


def top_k(config: Any) -> int | None:
    """Experts per token of a transformers configuration; None where it is no MoE's."""
    return getattr(config, "num_experts_per_tok", None)
