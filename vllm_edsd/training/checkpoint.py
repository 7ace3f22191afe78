"""Training checkpoints as safetensors: weights, optimiser state and step; a resumed run takes the identical next step."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vllm_edsd.drafters.core import Drafter
from vllm_edsd.errors import UserError
from vllm_edsd.files import atomic
from vllm_edsd.training.masks import Mask
from vllm_edsd.training.recipe import by_key

MOMENTS = ("exp_avg", "exp_avg_sq")
RECENT = "mask.recent"


def save(path: Path, drafter: Drafter, optimizer: torch.optim.AdamW, mask: Mask, step: int, identity: dict) -> None:
    """Writes the state after `step` steps, whole or not at all."""
    tensors = {f"weight.{name}": tensor for name, tensor in drafter.state_dict().items()}
    for name, parameter in drafter.named_parameters():
        for moment in MOMENTS:
            if parameter in optimizer.state:
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    if len(mask.recent):
        tensors[RECENT] = mask.recent
    with atomic(path) as partial:
        save_file(tensors, partial, metadata={"edsd": json.dumps({"step": step, "identity": identity}, sort_keys=True)})


def restore(path: Path, drafter: Drafter, optimizer: torch.optim.AdamW, mask: Mask, identity: dict) -> int:
    """Restores what `save` wrote and returns the number of steps taken; 0 when there is no checkpoint.

    Raises UserError for a damaged checkpoint or one of another recipe, naming the first key that differs.
    """
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["edsd"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise UserError(f"checkpoint {path} is damaged ({error}); delete it to start over") from error
    made, wanted = by_key(header["identity"]), by_key(identity)
    for key in sorted(made.keys() | wanted.keys()):
        if made.get(key) != wanted.get(key):
            raise UserError(
                f"checkpoint {path} was made with {key} = {made.get(key)!r}, now {wanted.get(key)!r}; "
                "give another --out, or delete the checkpoint to start over"
            )
    drafter.load_state_dict({name[7:]: tensor for name, tensor in tensors.items() if name.startswith("weight.")})
    for name, parameter in drafter.named_parameters():
        moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
        optimizer.state[parameter] = {"step": torch.tensor(float(header["step"])), **moments}
    mask.recent = tensors.get(RECENT, mask.recent).to(mask.recent.device)
    return int(header["step"])
