"""What end-to-end tests share: the bundled target, made once."""

from pathlib import Path

import pytest

from vllm_edsd.targets import default_target


@pytest.fixture(scope="session")
def target() -> Path:
    """SmolLM2-135M-Instruct in the user's cache."""
    return default_target()
