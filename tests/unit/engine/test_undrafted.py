"""Steps without a draft go the plain way."""

from types import SimpleNamespace

import pytest

from vllm_edsd.engine.undrafted import ease


@pytest.mark.parametrize(("drafts", "verified"), [([0, 0], False), ([0, 2], True), ([1], True)])
def test_only_steps_with_a_draft_are_verified(drafts, verified):
    metadata = SimpleNamespace(num_draft_tokens=drafts)
    runner = SimpleNamespace(_prepare_inputs=lambda given: (given, metadata, 3))
    ease(runner)
    assert runner._prepare_inputs("indices") == ("indices", metadata if verified else None, 3)
