"""Algorithms know neither vLLM nor Ray: only `vllm_edsd/engine/` and the vLLM side of `drafters/` import them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOREIGN = {"vllm", "ray"}


def sources():
    return [path for room in ("vllm_edsd", "drafters", "kernels") for path in (ROOT / room).rglob("*.py")]


def allowed(path):
    return path.is_relative_to(ROOT / "vllm_edsd" / "engine") or path.name == "vllm_model.py"


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_vllm_stays_in_its_rooms(path):
    assert allowed(path) or not FOREIGN & set(imported(path))


def test_the_check_can_fail():
    assert "vllm" in set(imported(ROOT / "vllm_edsd" / "engine" / "offline.py"))


@pytest.mark.parametrize("room", ["drafters", "kernels"])
def test_mapped_rooms_import_nothing(room):
    """transformers probes for a package called `kernels`: an import there would break it from this directory."""
    assert not list(imported(ROOT / room / "__init__.py"))
