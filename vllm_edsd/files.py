"""Files that are whole or absent: written beside their place, then renamed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vllm_edsd.errors import UserError


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renames it to `path` on success, removes it on any failure.

    Works for a file and for a directory (an existing directory at `path` is replaced). The file is flushed to disk
    before the rename. Raises UserError when the disk is full or the place is not writable.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        _finish(beside)
        if beside.is_dir() and path.is_dir():
            retired = path.with_name(f".{path.name}.{os.getpid()}.retired")
            path.rename(retired)
            beside.rename(path)
            shutil.rmtree(retired)
        else:
            beside.rename(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}. Free disk space or choose a writable place; "
            "nothing half-written was left behind."
        ) from error
    finally:
        _remove(beside)


def _finish(path: Path) -> None:
    """Flushes to disk and gives files the usual mode: safetensors writes 0600."""
    mask = os.umask(0)
    os.umask(mask)
    files = [child for child in path.rglob("*") if child.is_file()] if path.is_dir() else [path]
    for file in files:
        file.chmod(0o666 & ~mask)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
