"""What the target thinks of the training text, written once and read many times through memory maps.

For each data shard, `features-*.safetensors` holds, over the same token positions, `hidden`, `final` and `argmax` as
`online.py` has them. The head itself is in the target.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vllm_edsd.errors import UserError
from vllm_edsd.files import atomic
from vllm_edsd.training.batches import Indexed
from vllm_edsd.training.belonging import fingerprint
from vllm_edsd.training.online import Online
from vllm_edsd.training.samples import Sample, read_shard, shards


class Features:
    """Memory-mapped features of one data folder."""

    def __init__(self, folder: Path, count: int):
        self._files = [_tensors(folder / f"features-{index:05d}.safetensors") for index in range(count)]

    def read(self, items: Sequence[Indexed], columns: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """For each of `items` hidden [n, len(columns) * H], final [n, H], argmax [n]."""
        found = []
        for item in items:
            span = slice(item.begin, item.begin + len(item.sample.tokens))
            part = {name: tensor[span] for name, tensor in self._files[item.shard].items()}
            found.append(part | {"hidden": part["hidden"][:, list(columns)].flatten(1)})
        return found


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise UserError(f"feature file {path} is damaged ({error}); delete it and train again") from error


def size_in_bytes(positions: int, hidden_size: int, layers: int) -> int:
    """Disk that the features of so many token positions need."""
    return positions * (2 * hidden_size * (layers + 1) + 4)


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
        out = Path(folder) / f"features-{index:05d}.safetensors"
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
    with safe_open(path, "pt") as file:
        made = json.loads(file.metadata()["edsd"])
    for key, value in identity.items():
        if made.get(key, value) != value:  # files from before a key was recorded lack it
            raise UserError(
                f"{path.parent} has features of {key} {made.get(key)!r}, now {value!r}; give another `features` folder"
            )
