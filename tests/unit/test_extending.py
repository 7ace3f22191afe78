"""The packages of docs/extending.md, installed and asked for by name."""

import sys

import numpy as np
import pytest
import torch

from vllm_edsd.config import ServeConfig
from vllm_edsd.drafters import registry as proposers
from vllm_edsd.place import Place
from vllm_edsd.policy import registry as policies
from vllm_edsd.policy.base import Drafting
from vllm_edsd.reference.engine import Engine, Sampling
from vllm_edsd.reference.growth import Plan
from vllm_edsd.reference.table import Table
from vllm_edsd.scoring import registry as scorers
from vllm_edsd.serving import engine_arguments


@pytest.fixture(autouse=True)
def installed(extending, monkeypatch):
    monkeypatch.syspath_prepend(extending)
    yield
    for module in extending.glob("*.py"):
        sys.modules.pop(module.stem, None)


def test_without_its_package_a_name_is_unknown(monkeypatch, extending):
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(extending)])
    assert "echo" not in proposers.names()
    assert "sure" not in policies.names()
    assert "lookup" not in scorers.known()


def test_the_proposer_drafts():
    echo = proposers.load("echo")()
    text = np.array([5, 7, 9, 2, 7, 1, 3, 7], np.int32)
    assert echo.propose(text, 2) == [1, 3]
    assert echo.propose(text, 9) == [1, 3, 7]
    assert echo.propose(text[:3], 9) == echo.propose(text[:1], 9) == []


def test_the_proposer_is_served_by_name():
    found = engine_arguments(ServeConfig(drafter="echo"), None, None)
    assert found["speculative_config"]["method"] == "custom_class"
    assert found["additional_config"] == {"edsd": {"proposer": "echo"}}


def test_the_policy_cuts_and_stops():
    sure = policies.make("sure", 3)
    requests = ["a", "b"]
    assert sure.start(requests)
    drafting = Drafting.begin(requests)
    drafting.add(np.array([0.9, 0.4]), np.zeros(2))
    assert sure.proceed(drafting)
    drafting.add(np.array([np.nan, 0.9]), np.zeros(2))
    assert not sure.proceed(drafting)
    assert sure.cut(drafting).tolist() == [1, 0]
    assert not sure.start([f"r{number}" for number in range(9)])


def test_the_policy_is_served_by_name(make_drafter):
    found = engine_arguments(ServeConfig(drafter=str(make_drafter()), policy="sure"), None, Place())
    assert found["additional_config"]["edsd"]["policy"] == "sure"


def test_the_scorer_follows_the_target():
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    engine = Engine(Table(logits), Table(logits), scorers.make("lookup"), Plan((1, 1)), Sampling())
    found = engine.generate([[0]] * 100_000, 2, torch.Generator().manual_seed(0))
    chances = logits.double().softmax(-1)
    for first in range(2):
        rows = found.tokens[:, 0] == first
        assert rows.double().mean() == pytest.approx(float(chances[0, first]), abs=0.006)
        assert found.tokens[rows, 1].double().mean() == pytest.approx(float(chances[first, 1]), abs=0.006)
    assert found.accepted.sum() > 0
