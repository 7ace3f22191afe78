"""Drafters on disk: finding one by name or path, and refusing one that cannot serve its target before anything starts.

The checks read what a checkpoint states and pass over what it does not, so third-party EAGLE-3 heads are judged too.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vllm_edsd.config import validate
from vllm_edsd.drafters import registry
from vllm_edsd.drafters.config import SWITCHES, DrafterConfig
from vllm_edsd.drafters.stated import Stated
from vllm_edsd.drafters.target import TargetShape
from vllm_edsd.errors import UserError

BUNDLED = Path(__file__).parent / "bundled"
AGAIN = "weights and configuration are not of one export: fetch or export the drafter again"
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

    One that we exported must have all that its configuration describes. Raises UserError naming what differs, both values
    and the remedy.
    """
    config, shapes = read_config(folder), read_shapes(folder)
    place = str(Path(folder) / "config.json")
    stated = validate(Stated, config, place)
    if "edsd" in config:
        _check_export(folder, config, DrafterConfig.from_hf(config, place), shapes)
    else:
        _check_head(folder, stated, shapes)
    if target is not None:
        _check_target(folder, stated, config.get("edsd", {}), target)
    return config


def version(folder: Path) -> str:
    """The first 12 digits of the SHA-256 over a drafter's weights; "-" for what has none."""
    digest, files = hashlib.sha256(), sorted(Path(folder).glob("*.safetensors"))
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12] if files else "-"


def _find(drafter: str) -> Path | None:
    for folder in (BUNDLED / drafter, Path(drafter).expanduser()):
        if folder.is_dir():
            return folder.resolve()
    return None


def _check_export(folder: Path, config: dict[str, Any], made: DrafterConfig, shapes: dict[str, list[int]]) -> None:
    from vllm_edsd.drafters import factory  # torch, which nothing else here needs

    described = factory.shapes(made)
    for key in ("architectures", *SWITCHES.get(made.drafter, {})):
        wanted = made.to_hf()[key]
        if config.get(key) != wanted:
            raise UserError(
                f"drafter {folder}: {key} is {config.get(key)!r}, but a drafter of kind {made.drafter} has {wanted!r}; "
                f"{AGAIN}"
            )
    wrong = sorted(name for name in described.keys() | shapes.keys() if described.get(name) != shapes.get(name))
    if wrong:
        raise UserError(
            f"drafter {folder}: {wrong[0]} has shape {shapes.get(wrong[0])}, but config.json describes "
            f"{described.get(wrong[0])}; {AGAIN}"
        )


def _check_head(folder: Path, stated: Stated, shapes: dict[str, list[int]]) -> None:
    for name, axis, key in (
        ("lm_head.weight", 0, "draft_vocab_size"),
        ("lm_head.weight", 1, "hidden_size"),
        ("d2t", 0, "draft_vocab_size"),
    ):
        shape, size = shapes.get(name), getattr(stated, key)
        if shape is not None and size is not None and shape[axis : axis + 1] != [size]:
            raise UserError(f"drafter {folder}: {name} has shape {shape}, but config.json says {key} {size}; {AGAIN}")


def _check_target(folder: Path, stated: Stated, ours: dict[str, Any], target: TargetShape) -> None:
    made_for = f" (it was trained for {ours['target']})" if ours else ""
    width = stated.hidden_size if stated.target_hidden_size is None else stated.target_hidden_size
    depth = ours.get("target_num_hidden_layers")
    for what, value in (("hidden_size", width), ("vocab_size", stated.vocab_size), ("num_hidden_layers", depth)):
        has = getattr(target, what)
        if value is not None and has is not None and value != has:
            raise UserError(
                f"drafter {folder} was made for a target with {what} {value}, but {target.name} has {has}{made_for}; "
                "choose a drafter for this target, or train one with `vllm-edsd train`"
            )
    depth = target.num_hidden_layers
    wrong = [index for index in stated.layer_ids if depth is not None and not 0 <= index <= depth]
    if wrong:
        raise UserError(
            f"drafter {folder} reads target layer {wrong[0]}, but {target.name} has num_hidden_layers {depth}{made_for}; "
            "choose a drafter for this target, or train one with `vllm-edsd train`"
        )
