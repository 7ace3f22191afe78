"""Files that are whole or absent: written beside their place, then renamed."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
from safetensors import SafetensorError

from vllm_edsd.errors import UserError

WRITING = "Error while serializing: "  # how safetensors begins when it tells what the disk said


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renames it to `path` on success, removes it on any failure.

    Works for a file and for a directory (an existing directory at `path` is replaced: see `replaceable`). The file is
    flushed to disk before the rename. What a killed process left is removed. Raises UserError when the disk is full or the
    place is not writable.
    """
    path = Path(path).resolve()
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        yield beside
        _finish(beside)
        if beside.is_dir() and path.is_dir():
            retired = path.with_name(f".{path.name}.{os.getpid()}.retired")
            path.rename(retired)
            beside.rename(path)
            shutil.rmtree(retired)
        else:
            beside.rename(path)
    except (OSError, SafetensorError) as error:
        if isinstance(error, SafetensorError) and not str(error).startswith(WRITING):
            raise  # of a file that was read
        reason = getattr(error, "strerror", None) or str(error).removeprefix(WRITING)
        raise UserError(
            f"cannot write {path}: {reason}. Free disk space or choose a writable place; "
            "nothing half-written was left behind."
        ) from error
    finally:
        _remove(beside)


def replaceable(path: Path, mark: str) -> Path:
    """`path`, resolved, where a directory may be written: there is nothing, an empty one, or one of ours with a file `mark`.

    Raises UserError for anything else, which `atomic` would delete.
    """
    path = Path(path).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise UserError(f"cannot write {path}: it is no directory; give a directory's name")
    if path.is_dir() and any(path.iterdir()) and not (path / mark).is_file():
        raise UserError(
            f"cannot write {path}: the directory would be replaced, and it holds files that are not ours (there is no "
            f"{mark}); give a new directory, such as {path / 'new'}"
        )
    return path


def _sweep(path: Path) -> None:
    """Removes what writers of `path` left that were killed."""
    partial = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.partial")
    for left in path.parent.iterdir():
        found = partial.fullmatch(left.name)
        # In a container the process that was killed had the same number.
        if found and (int(found[1]) == os.getpid() or not psutil.pid_exists(int(found[1]))):
            _remove(left)


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
