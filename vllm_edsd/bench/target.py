"""The target of a bench, as a directory."""

from collections.abc import Callable
from pathlib import Path

from vllm_edsd.errors import UserError
from vllm_edsd.targets import default_target

WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def find_target(target: str | None, report: Callable[[str], None]) -> Path:
    """The directory of `target`: a path, a hub id (downloaded if need be), or the bundled target for None.

    Raises UserError when there is no such directory or model.
    """
    if target is None:
        return default_target(report)
    path = Path(target).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"target {path} has no config.json; give a Hugging Face checkpoint's directory")
        return path
    if path.is_absolute() or target.startswith((".", "~")) or target.count("/") != 1:
        raise UserError(
            f"target {target} does not exist; give a checkpoint's directory, a hub id, or none for the bundled one"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(target, allow_patterns=WANTED))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"target {target} is no directory here and cannot be had from the hub ({reason})") from error
