import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open

from vllm_edsd.errors import UserError
from vllm_edsd.files import atomic, replaceable


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    place = tmp_path / "file"
    place.write_text("old")
    with pytest.raises(ValueError, match="interrupted"), atomic(place) as partial:
        partial.write_text("half")
        raise ValueError("interrupted")
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_a_directory_replaces_another(tmp_path):
    place = tmp_path / "folder"
    for text in ("one", "two"):
        with atomic(place) as partial:
            partial.mkdir()
            (partial / "file").write_text(text)
    assert (place / "file").read_text() == "two"
    assert list(tmp_path.iterdir()) == [place]


def test_usual_mode(tmp_path):
    with atomic(tmp_path / "file") as partial:
        partial.write_text("")
        partial.chmod(0o600)
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


FULL = [
    OSError(28, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("full", FULL, ids=["Python", "safetensors"])
def test_a_full_disk_is_told(full, tmp_path):
    with (
        pytest.raises(UserError, match=r"cannot write .*file: .*No space left.* Free disk space"),
        atomic(tmp_path / "file") as partial,
    ):
        partial.write_text("half")
        raise full
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_that_is_read_is_no_full_disk(tmp_path):
    (tmp_path / "damaged").write_bytes(b"half")
    with pytest.raises(SafetensorError), atomic(tmp_path / "file"):
        safe_open(tmp_path / "damaged", "pt")


def test_what_a_killed_writer_left_is_removed(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from vllm_edsd.files import atomic
with atomic(Path({str(tmp_path / "folder")!r})) as partial:
    partial.mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    process.wait()
    assert [path.name for path in tmp_path.iterdir()] == [f".folder.{process.pid}.partial"]
    others = [f".folder.{os.getppid()}.partial", f".other.{process.pid}.partial", ".folder.mine.partial"]
    for name in (*others, f".folder.{os.getpid()}.partial"):
        (tmp_path / name).touch()
    with atomic(tmp_path / "folder") as partial:
        partial.mkdir()
    assert {path.name for path in tmp_path.iterdir()} == {"folder", *others}


def test_a_link_is_followed(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    with atomic(tmp_path / "link") as partial:
        partial.mkdir()
        (partial / "file").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "far" / "file").exists()


def test_a_directory_of_ours_or_an_empty_one_may_be_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert replaceable(Path(), "mark") == replaceable(Path("absent/.."), "mark") == tmp_path
    (tmp_path / "mark").touch()
    (tmp_path / "other").touch()
    assert replaceable(Path(), "mark") == tmp_path
    assert replaceable(tmp_path / "new" / "place", "mark") == tmp_path / "new" / "place"


def test_what_is_the_users_may_not_be_replaced(tmp_path):
    (tmp_path / "photo").touch()
    with pytest.raises(
        UserError, match=r"files that are not ours \(there is no mark\); give a new directory, such as .*/new$"
    ):
        replaceable(tmp_path, "mark")
    with pytest.raises(UserError, match="photo: it is no directory; give"):
        replaceable(tmp_path / "photo", "mark")
