"""Drafters on disk: finding one by name or path, and refusing one that cannot serve its target before anything starts.

The checks read what a checkpoint states and pass over what it does not, so third-party EAGLE-3 heads are judged too.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vllm_edsd.drafters import registry
from vllm_edsd.drafters.target import TargetShape
from vllm_edsd.errors import UserError

BUNDLED = Path(__file__).parent / "bundled"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def bundled() -> list[str]:
    """Names of the drafters that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def resolve(drafter: str) -> Path:
    """The directory of a drafter given by bundled name or path. Raises UserError, listing the names, if there is none."""
    folder = _find(drafter)
    if folder is not None:
        return folder
    names = ", ".join(bundled()) or "none"
    if model_free(drafter):
        raise UserError(
            f"{drafter!r} is a model-free proposer, and a drafter with weights is needed here; give a bundled one ({names}) "
            "or the path of a directory"
        )
    raise UserError(
        f"drafter {drafter!r} is neither a bundled drafter ({names}), nor an existing directory, nor a model-free proposer "
        f"({', '.join(registry.names())}); give one of these names, or the path of a directory with config.json and "
        "model.safetensors (download a drafter from a hub first)"
    )


def model_free(drafter: str) -> bool:
    """Whether this names a model-free proposer; bundled drafters and directories of the same name come first."""
    return _find(drafter) is None and drafter in registry.names()


def read_config(folder: Path) -> dict[str, Any]:
    """A drafter's config.json. Raises UserError when it is missing or not a JSON object."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"drafter {folder} has no config.json; give one that `vllm-edsd train` wrote, or an EAGLE-3 head")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch or export the drafter again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}, not a JSON object; fetch or export the drafter again")
    return config


def read_shapes(folder: Path) -> dict[str, list[int]]:
    """Names and shapes of a drafter's weights, from safetensors headers alone.

    Raises UserError when there are none, when they are pickled, truncated or damaged.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for pattern in PICKLED for path in Path(folder).glob(pattern))
        if pickled:
            raise UserError(
                f"drafter {folder} has only pickled weights ({', '.join(pickled)}), which can run code when read; "
                "convert them to model.safetensors"
            )
        raise UserError(f"drafter {folder} has no model.safetensors; fetch or export the drafter again")
    shapes: dict[str, list[int]] = {}
    for file in files:
        try:
            # Opening compares the sizes that the header declares with the size of the file.
            with safe_open(file, framework="np") as weights:
                shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            size = file.stat().st_size
            raise UserError(
                f"{file} ({size} bytes) is truncated or damaged ({error}); fetch or export the drafter again"
            ) from None
    return shapes


def check(folder: Path, target: TargetShape | None = None) -> dict[str, Any]:
    """Checks a drafter's files and, with `target`, that the drafter was made for such a target; returns its config.json.

    Raises UserError naming what differs, both values and the remedy.
    """
    config = read_config(folder)
    _check_weights(folder, config, read_shapes(folder))
    if target is not None:
        _check_target(folder, config, target)
    return config


def version(folder: Path) -> str:
    """The first 12 digits of the SHA-256 over a drafter's weights; "-" for what has none."""
    digest, files = hashlib.sha256(), sorted(Path(folder).glob("*.safetensors"))
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12] if files else "-"


def layer_ids(config: dict[str, Any]) -> list[int]:
    """The target layers whose inputs a drafter reads; empty when it leaves the choice to vLLM."""
    nested = config.get("eagle_config") or {}
    ids = config.get("eagle_aux_hidden_state_layer_ids") or nested.get("eagle_aux_hidden_state_layer_ids")
    return list(ids or [])


def _find(drafter: str) -> Path | None:
    for folder in (BUNDLED / drafter, Path(drafter).expanduser()):
        if folder.is_dir():
            return folder.resolve()
    return None


def _check_weights(folder: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    rows = config.get("draft_vocab_size")
    for name in ("lm_head.weight", "d2t"):
        if rows is not None and name in shapes and shapes[name][0] != rows:
            raise UserError(
                f"drafter {folder}: {name} has {shapes[name][0]} rows, but config.json says draft_vocab_size {rows}; "
                "weights and configuration are not of one export: fetch or export the drafter again"
            )


def _check_target(folder: Path, config: dict[str, Any], target: TargetShape) -> None:
    ours = config.get("edsd") or {}
    made_for = f" (it was trained for {ours['target']})" if "target" in ours else ""
    stated = {
        "hidden_size": config.get("target_hidden_size", config.get("hidden_size")),
        "vocab_size": config.get("vocab_size"),
        "num_hidden_layers": ours.get("target_num_hidden_layers"),
    }
    for what, value in stated.items():
        has = getattr(target, what)
        if value is not None and has is not None and value != has:
            raise UserError(
                f"drafter {folder} was made for a target with {what} {value}, but {target.name} has {has}{made_for}; "
                "choose a drafter for this target, or train one with `vllm-edsd train`"
            )
    depth = target.num_hidden_layers
    wrong = [index for index in layer_ids(config) if depth is not None and not 0 <= index <= depth]
    if wrong:
        raise UserError(
            f"drafter {folder} reads target layer {wrong[0]}, but {target.name} has num_hidden_layers {depth}{made_for}; "
            "choose a drafter for this target, or train one with `vllm-edsd train`"
        )
