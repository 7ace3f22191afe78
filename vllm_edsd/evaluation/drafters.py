"""Drafters to be judged, loaded into this process."""

from collections.abc import Sequence
from pathlib import Path

import torch

from vllm_edsd.drafters import factory
from vllm_edsd.drafters.checkpoint import check, resolve
from vllm_edsd.drafters.core import Drafter
from vllm_edsd.drafters.target import read_target
from vllm_edsd.errors import UserError


def folders(names: Sequence[str], target: Path) -> dict[str, Path]:
    """The directories of drafters given by bundled name or path.

    Raises UserError for one that is absent, damaged, made for another target or not exported by this project, and for one
    that is named twice.
    """
    found: dict[str, Path] = {}
    for name in names:
        folder = resolve(name)
        if folder in found.values():
            raise UserError(f"drafter {name!r} is named twice; give each once")
        config = check(folder, read_target(target))
        if "edsd" not in config:
            raise UserError(
                f"drafter {folder} was not exported by `vllm-edsd train` (its config.json has no `edsd`), and only such are "
                "judged without a server; measure it on one: vllm-edsd bench --drafter eagle3=" + str(folder)
            )
        found[name] = folder
    return found


def load(folder: Path, device: torch.device) -> Drafter:
    """The float32 drafter of a directory that `folders` found."""
    return factory.load(folder).to(device).eval()
