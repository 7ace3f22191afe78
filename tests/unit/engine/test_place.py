"""Where our workers can be used, and what is said where they cannot."""

import pytest

from vllm_edsd.engine import hooks, serve


@pytest.fixture(autouse=True)
def able(monkeypatch):
    """A place where nothing is in the way."""
    monkeypatch.setattr(serve, "is_cpu", lambda: True)
    monkeypatch.setattr(serve, "runner", lambda: ("V1", "V2 needs Triton"))


def test_nothing_is_in_the_way():
    plain = {"tensor_parallel_size": 2, "pipeline_parallel_size": 1, "worker_cls": "auto", "dtype": "bfloat16"}
    assert serve.place(plain).worker is None
    assert serve.place({}).worker is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"pipeline_parallel_size": 4}, "pipeline_parallel_size is 4"),
        ({"prefill_context_parallel_size": 2}, "prefill_context_parallel_size is 2"),
        ({"decode_context_parallel_size": 2}, "decode_context_parallel_size is 2"),
        ({"worker_cls": "mine.Worker"}, "--worker-cls is mine.Worker"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_are_in_the_way(arguments, told):
    assert serve.place(arguments).worker.startswith(told)


def test_another_backend(monkeypatch):
    monkeypatch.setattr(serve, "is_cpu", lambda: False)
    monkeypatch.setattr(serve, "backend", lambda: "cuda")
    monkeypatch.setattr(serve, "runner", lambda: ("V2", "vLLM's default"))
    told = serve.place({}).worker
    assert "backend here is cuda" in told and "CPU backend only" in told


def test_what_is_in_the_way_on_a_gpu(monkeypatch):
    monkeypatch.setattr(serve, "is_cpu", lambda: False)
    monkeypatch.setattr(serve, "backend", lambda: "cuda")
    assert "runner here is V1 (V2 needs Triton), and it needs V2" in serve.place({}).v2
    monkeypatch.setattr(serve, "runner", lambda: ("V2", "vLLM's default"))
    assert serve.place({"tensor_parallel_size": 2}).v2 is None
    assert serve.place({"pipeline_parallel_size": 2}).v2.startswith("pipeline_parallel_size is 2")
    assert serve.place({"worker_cls": "mine.Worker"}).v2.startswith("--worker-cls is mine.Worker")


def test_on_the_cpu_backend_the_place_for_gpus_is_not_there():
    assert "backend here is cpu" in serve.place({}).v2


def test_another_runner(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(serve, "is_cpu", lambda: True)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert "runner here is V2 (VLLM_USE_V2_MODEL_RUNNER=1)" in serve.place({}).worker
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    assert serve.place({}).worker is None


def test_a_changed_hook(monkeypatch):
    changed = hooks.Hook(hooks.PROPOSER, "SpecDecodeBaseProposer.propose", ("self", "draft"))
    monkeypatch.setattr(hooks, "ADAPT", (*hooks.ADAPT, changed))
    told = serve.place({}).worker
    assert "has changed" in told and f"{hooks.PROPOSER}.SpecDecodeBaseProposer.propose" in told
    assert "expected (self, draft)" in told
