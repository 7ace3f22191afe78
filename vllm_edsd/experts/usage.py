"""How many experts a model's layers use, before and after a reduction."""

from collections.abc import Sequence

import torch


class Usage:
    """Sums over steps, by MoE layer: tokens, experts before, experts after, distinct before, distinct after, steps.

    Kept on the model's device and read from time to time, since reading waits for it. "Distinct" are a step's different
    experts, the weights that it must load.
    """

    def __init__(self, layers: Sequence[int], experts: int, device: torch.device):
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._experts = experts
        self._sums = torch.zeros(len(layers), 6, dtype=torch.float64, device=device)

    def count(self, layer: int, before: torch.Tensor, after: Sequence[torch.Tensor]) -> None:
        """A step of one layer: expert ids [tokens, K] of the whole model and, of each part
        of the step, [tokens_i, k_i]; no parts where nothing is cut."""
        used = sum(part.numel() for part in after) if after else before.numel()
        known = torch.tensor([before.shape[0], before.numel(), used], dtype=torch.float64, device=self._sums.device)
        distinct = self._distinct([before])
        row = [known, distinct, self._distinct(after) if after else distinct, torch.ones_like(distinct)]
        self._sums[self._places[layer]] += torch.cat(row)

    def _distinct(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        ids = torch.cat([part.flatten() for part in parts]).long()
        return torch.bincount(ids, minlength=self._experts).count_nonzero().double()[None]

    def read(self) -> dict[int, list[float]]:
        """The sums by layer."""
        sums = self._sums.tolist()
        return {layer: sums[place] for layer, place in self._places.items()}
