"""What the target thinks of the training text, written once and read many times through memory maps.

For each data shard, `features-*.safetensors` holds, over the same token positions, `hidden`, `final` and `argmax` as
`online.py` has them. The head itself is in the target.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vllm_edsd.errors import UserError
from vllm_edsd.files import atomic
from vllm_edsd.tensor_files import notes, opened
from vllm_edsd.training.batches import Indexed
from vllm_edsd.training.belonging import fingerprint
from vllm_edsd.training.online import Online
from vllm_edsd.training.samples import Sample, length, read_shard, shards


class Features:
    """Memory-mapped features of one data folder."""

    def __init__(self, folder: Path, count: int):
        self._files = [_tensors(_file(folder, index)) for index in range(count)]

    def read(self, items: Sequence[Indexed], columns: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """For each of `items` hidden [n, len(columns) * H], final [n, H], argmax [n]."""
        found = []
        for item in items:
            span = slice(item.begin, item.begin + len(item.sample.tokens))
            part = {name: tensor[span] for name, tensor in self._files[item.shard].items()}
            found.append(part | {"hidden": part["hidden"][:, list(columns)].flatten(1)})
        return found


def _file(folder: Path, index: int) -> Path:
    return Path(folder) / f"features-{index:05d}.safetensors"


def _open(path: Path) -> AbstractContextManager[Any]:
    return opened(path, "feature file", "delete it and train again")


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def size_in_bytes(positions: int, hidden_size: int, layers: int) -> int:
    """Disk that the features of so many token positions need."""
    return positions * (2 * hidden_size * (layers + 1) + 4)


def require_room(data: Path, folder: Path, hidden_size: int, layers: int) -> None:
    """Raises UserError where the disk has no room for the features of `data` that `folder` lacks."""
    lacking = [path for index, path in enumerate(shards(data)) if not _file(folder, index).exists()]
    needed = size_in_bytes(sum(length(path, "tokens") for path in lacking), hidden_size, layers)
    place = Path(folder).absolute()
    free = shutil.disk_usage(next(near for near in (place, *place.parents) if near.exists())).free
    if needed > free:
        raise UserError(
            f"hidden states still to be written need {needed / 2**30:.1f} GiB in {folder}, and {free / 2**30:.1f} GiB are "
            "free there; free some, give another `features` folder, or leave it out: the target then runs beside the drafter"
        )


def collect(
    target_path: Path,
    data: Path,
    folder: Path,
    layers: tuple[int, ...],
    device: torch.device,
    report: Callable[[int], None],
) -> Features:
    """Runs the target over every shard that has no features yet; `report(positions)` after each batch of them.

    Raises UserError if the folder was made with other layers, another target or other data.
    """
    paths = shards(data)
    identity = {"layers": list(layers), "target": Path(target_path).name, "data": Path(data).name}
    marks = fingerprint(target_path)
    model = None
    for index, path in enumerate(paths):
        out = _file(folder, index)
        made = identity | {"fingerprint": marks, "shard": hashlib.sha256(path.read_bytes()).hexdigest()[:12]}
        if out.exists():
            _same(out, made)
            continue
        model = model or Online(target_path, layers, device)
        found = _features(model, read_shard(path), report)
        with atomic(out) as partial:
            save_file(found, partial, metadata={"edsd": json.dumps(made)})
    return Features(Path(folder), len(paths))


def _features(model: Online, samples: Sequence[Sample], report: Callable[[int], None]) -> dict[str, torch.Tensor]:
    """Of all positions of a shard, in order."""
    starts = list(itertools.accumulate((len(sample.tokens) for sample in samples), initial=0))
    out: dict[str, torch.Tensor] = {}
    for place, part in model.states(samples):
        for name, tensor in part.items():
            if name not in out:
                out[name] = torch.empty(starts[-1], *tensor.shape[1:], dtype=tensor.dtype)
            out[name][starts[place] : starts[place + 1]] = tensor
        report(len(part["final"]))
    return out


def _same(path: Path, identity: dict) -> None:
    with _open(path) as file:
        made = notes(file)
    for key, value in identity.items():
        if made.get(key, value) != value:  # files from before a key was recorded lack it
            raise UserError(
                f"{path.parent} has features of {key} {made.get(key)!r}, now {value!r}; give another `features` folder"
            )
