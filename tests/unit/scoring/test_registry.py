"""Scorers by name, and the docs' example of the reference engine."""

import re
import sys
from pathlib import Path

import pytest

from vllm_edsd.errors import UserError
from vllm_edsd.scoring.registry import OURS, make

PAGE = Path(__file__).parents[3] / "docs" / "reference-engine.md"
OPTIONS = {"evict": {"costs": [1.0, 1.1]}, "talon": {"budget": 3}}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package with these scorers' entry points."""

    def install(code, **entries):
        (tmp_path / "their_scorer.py").write_text(code)
        metadata = tmp_path / "their_scorer-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-scorer\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (metadata / "entry_points.txt").write_text("\n".join(["[vllm_edsd.scorers]", *lines]))
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("their_scorer", None)


@pytest.mark.parametrize("name", OURS)
def test_ours_are_made_by_name(name):
    assert type(make(name, **OPTIONS.get(name, {}))).__module__.startswith("vllm_edsd.scoring")


def test_an_unknown_name_lists_the_known():
    with pytest.raises(UserError, match=r"'blok'.*block, evict, k-seq, recursive, standard, talon"):
        make("blok")


def test_a_name_that_is_taken(package):
    package("", standard="their_scorer:Standard")
    with pytest.raises(UserError, match="uninstall"):
        make("block")


def test_a_class_that_is_no_scorer(package):
    package("class Thing: pass", thing="their_scorer:Thing")
    with pytest.raises(UserError, match="no subclass"):
        make("thing")


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(from transformers.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    exec(compile(code, str(PAGE), "exec"), {})
