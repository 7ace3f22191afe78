"""Training checkpoints as safetensors: weights, optimiser state and step; a resumed run takes the identical next step."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vllm_edsd.drafters.core import Drafter
from vllm_edsd.errors import UserError
from vllm_edsd.files import atomic

MOMENTS = ("exp_avg", "exp_avg_sq")


def save(path: Path, drafter: Drafter, optimizer: torch.optim.AdamW, step: int, identity: dict) -> None:
    """Writes the state after `step` steps, whole or not at all."""
    tensors = {f"weight.{name}": tensor for name, tensor in drafter.state_dict().items()}
    for name, parameter in drafter.named_parameters():
        for moment in MOMENTS:
            if parameter in optimizer.state:
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    with atomic(path) as partial:
        save_file(tensors, partial, metadata={"edsd": json.dumps({"step": step, "identity": identity}, sort_keys=True)})


def restore(path: Path, drafter: Drafter, optimizer: torch.optim.AdamW, identity: dict) -> int:
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
    for key in identity.keys() | header["identity"].keys():
        if header["identity"].get(key) != identity.get(key):
            raise UserError(
                f"checkpoint {path} was made with {key} = {header['identity'].get(key)!r}, now {identity.get(key)!r}; "
                "give another --out, or delete the checkpoint to start over"
            )
    drafter.load_state_dict({name[7:]: tensor for name, tensor in tensors.items() if name.startswith("weight.")})
    for name, parameter in drafter.named_parameters():
        moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
        optimizer.state[parameter] = {"step": torch.tensor(float(header["step"])), **moments}
    return int(header["step"])
