import os

import pytest

from vllm_edsd.errors import UserError
from vllm_edsd.files import atomic


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


def test_a_full_disk_is_told(tmp_path):
    with pytest.raises(UserError, match="No space left"), atomic(tmp_path / "file") as partial:
        partial.write_text("half")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
