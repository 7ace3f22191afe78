"""What the target thinks of the training text, written once and read many times through memory maps.

For each data shard, `features-*.safetensors` holds, over the same token positions: `hidden` bf16 [N, layers, H] (input of
each captured layer), `final` bf16 [N, H] (normed last state: the head's input) and `argmax` int32 [N] (the target's greedy
next token; -1 within prompts, where nothing is trained). The head itself is in the target.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vllm_edsd.errors import UserError
from vllm_edsd.files import atomic
from vllm_edsd.training.belonging import fingerprint
from vllm_edsd.training.samples import shards

CHUNK_TOKENS = 4096


class Features:
    """Memory-mapped features of one data folder, addressed by shard and position."""

    def __init__(self, folder: Path, count: int):
        self._files = [_tensors(folder / f"features-{index:05d}.safetensors") for index in range(count)]

    def read(self, shard: int, begin: int, end: int, columns: Sequence[int]) -> dict[str, torch.Tensor]:
        """Positions begin..end of a shard: hidden [n, len(columns) * H], final [n, H], argmax [n]."""
        part = {name: tensor[begin:end] for name, tensor in self._files[shard].items()}
        part["hidden"] = part["hidden"][:, list(columns)].flatten(1)
        return part


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
        model = model or _Target(target_path, layers, device)
        with safe_open(path, "pt") as file:
            tokens, starts, answers = (file.get_tensor(name) for name in ("tokens", "starts", "answers"))
        with atomic(out) as partial:
            save_file(model.features(tokens, starts, answers, report), partial, metadata={"edsd": json.dumps(made)})
    return Features(Path(folder), len(paths))


def _same(path: Path, identity: dict) -> None:
    with safe_open(path, "pt") as file:
        made = json.loads(file.metadata()["edsd"])
    for key, value in identity.items():
        if made.get(key, value) != value:  # files from before a key was recorded lack it
            raise UserError(
                f"{path.parent} has features of {key} {made.get(key)!r}, now {value!r}; give another `features` folder"
            )


class _Target:
    """The target in transformers: bf16, as it is served."""

    def __init__(self, path: Path, layers: tuple[int, ...], device: torch.device):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, device_map=device).eval()
        self.layers = layers
        self.device = device

    @torch.inference_mode()
    def features(
        self, tokens: torch.Tensor, starts: torch.Tensor, answers: torch.Tensor, report: Callable[[int], None]
    ) -> dict[str, torch.Tensor]:
        count, config = len(tokens), self.model.config
        out = {
            "hidden": torch.empty(count, len(self.layers), config.hidden_size, dtype=torch.bfloat16),
            "final": torch.empty(count, config.hidden_size, dtype=torch.bfloat16),
            "argmax": torch.full((count,), -1, dtype=torch.int32),
        }
        spans = list(zip(starts[:-1].tolist(), (starts[:-1] + answers).tolist(), starts[1:].tolist(), strict=True))
        spans.sort(key=lambda span: span[2] - span[0])
        while spans:
            batch = _take(spans)
            longest = max(end - begin for begin, _, end in batch)
            rows = torch.zeros(len(batch), longest, dtype=torch.long)
            for row, (begin, _, end) in zip(rows, batch, strict=True):
                row[: end - begin] = tokens[begin:end]
            # Right padding under a causal mask cannot reach the tokens before it: no attention mask is needed.
            result = self.model.model(rows.to(self.device), output_hidden_states=True, use_cache=False)
            for row, (begin, answer, end) in enumerate(batch):
                for column, layer in enumerate(self.layers):
                    out["hidden"][begin:end, column] = result.hidden_states[layer][row, : end - begin].cpu()
                final = result.last_hidden_state[row, : end - begin]
                out["final"][begin:end] = final.cpu()
                out["argmax"][answer:end] = self.model.lm_head(final[answer - begin :]).argmax(-1).int().cpu()
                report(end - begin)
        return out


def _take(spans: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The longest spans (begin, answer, end) that fit one batch, padding counted; one at least."""
    batch = [spans.pop()]
    longest = batch[0][2] - batch[0][0]
    while spans and longest * (len(batch) + 1) <= CHUNK_TOKENS:
        batch.append(spans.pop())
    return batch
