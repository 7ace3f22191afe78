"""Rows of equal length from packed samples: what calibration, distillation and evaluation read."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from vllm_edsd.errors import UserError
from vllm_edsd.training.samples import Sample, read_samples


def pack(samples: Iterable[Sample], length: int) -> torch.Tensor:
    """int64 [rows, length]: the samples one after the other, cut into rows; the rest that fills no row is left out."""
    tokens = torch.cat([sample.tokens for sample in samples]).long()
    return tokens[: len(tokens) // length * length].view(-1, length)


def read_rows(folders: Sequence[Path], length: int, held_out: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to train on and rows held out, [n, length] each, from folders that `vllm-edsd regen` wrote.

    Held out are whole greedy or sampled answers of the last samples of a seeded order, so no text is in both. Raises
    UserError when there is too little.
    """
    samples = [sample for folder in folders for sample in read_samples(folder)]
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [samples[place] for place in order]
    kept, need = len(shuffled), held_out * length
    while kept and need > 0:
        kept -= 1
        need -= len(shuffled[kept].tokens)
    training, evaluation = shuffled[:kept], shuffled[kept:]
    rows = pack(training, length) if training else torch.empty(0, length)
    if not len(rows) or need > 0:
        places = ", ".join(str(folder) for folder in folders)
        raise UserError(
            f"{places}: too few tokens for {held_out} held-out rows of {length}; regenerate more, or hold out fewer"
        )
    generator = torch.Generator().manual_seed(seed)
    return rows[torch.randperm(len(rows), generator=generator)], pack(evaluation, length)[:held_out]
