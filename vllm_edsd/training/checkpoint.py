"""A drafter's training checkpoints; a resumed run takes the identical next step."""

from pathlib import Path

from torch.optim import Optimizer

from vllm_edsd.drafters.core import Drafter
from vllm_edsd.training import state
from vllm_edsd.training.masks import Mask
from vllm_edsd.training.recipe import by_key

RECENT = "mask.recent"


def save(path: Path, drafter: Drafter, optimizers: list[Optimizer], mask: Mask, step: int, identity: dict) -> None:
    """Writes the state after `step` steps, whole or not at all."""
    tensors = {f"weight.{name}": tensor for name, tensor in drafter.state_dict().items()}
    for optimizer in optimizers:
        tensors |= state.moments(optimizer, dict(drafter.named_parameters()))
    if len(mask.recent):
        tensors[RECENT] = mask.recent
    state.write(path, tensors, step, identity)


def restore(path: Path, drafter: Drafter, optimizers: list[Optimizer], mask: Mask, identity: dict) -> int:
    """Restores what `save` wrote and returns the number of steps taken; 0 when there is no checkpoint.

    Raises UserError for a damaged checkpoint or one of another recipe, naming the first key that differs.
    """
    found = state.read(path)
    if found is None:
        return 0
    state.require_same(path, by_key(found.identity), by_key(identity))
    drafter.load_state_dict(found.weights)
    for optimizer in optimizers:
        state.restore_moments(optimizer, dict(drafter.named_parameters()), found)
    mask.recent = found.tensors.get(RECENT, mask.recent).to(mask.recent.device)
    return found.step
