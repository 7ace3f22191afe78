"""The drafters that come with the package."""

import json

import pytest
import torch

from vllm_edsd.drafters import checkpoint, factory

LARGEST = 25_000_000
NAMES = {"smollm2-edsd": "edsd-normed", "smollm2-eagle3": "eagle3"}


def test_both_are_there():
    assert checkpoint.bundled() == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_small_loadable_and_of_the_kind_it_says(name):
    folder = checkpoint.resolve(name)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= LARGEST
    drafter = factory.load(folder)
    assert drafter.config.drafter == NAMES[name]
    assert all(torch.isfinite(weight).all() for weight in drafter.parameters())


def test_same_data_and_budget():
    first, second = (json.loads((checkpoint.resolve(name) / "provenance.json").read_text()) for name in NAMES)
    assert first["data"]["fingerprint"] == second["data"]["fingerprint"]
    assert first["trained_tokens"] == second["trained_tokens"] >= 1_000_000
    assert first["steps"] == second["steps"]
    assert abs(first["parameters"] / second["parameters"] - 1) < 0.01
    different = {key for key in first["recipe"] if first["recipe"][key] != second["recipe"][key]}
    # intermediate_size makes their parameters equal; EAGLE-3 has its own training, EDSD its curriculum.
    assert different <= {"drafter", "layers", "intermediate_size", "curriculum", "start"}
