"""Reading safetensors files: one that is damaged, or another's, is told with what to do about it."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vllm_edsd.errors import UserError


@contextlib.contextmanager
def opened(path: Path, what: str, remedy: str) -> Iterator[Any]:
    """The open file, whose tensors are PyTorch's.

    Raises UserError with `what` the file is, its path and the `remedy` where it cannot be read, or lacks what is read.
    """
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{what} {path} is damaged or of another kind ({error}); {remedy}") from error


def notes(file: Any) -> dict[str, Any]:
    """What we wrote into the metadata of a file that is open. Raises ValueError where there is nothing of ours."""
    found = file.metadata() or {}
    if "edsd" not in found:
        raise ValueError("nothing in it says that vllm-edsd wrote it")
    return json.loads(found["edsd"])
