import pytest

notices = pytest.importorskip("vllm_edsd.engine.notices")


@pytest.fixture
def told(monkeypatch):
    lines = []
    monkeypatch.setattr(notices.logger, "warning", lambda message, *values: lines.append(message % values))
    return lines


def test_a_request_is_named_once_until_it_is_finished(told):
    found = notices.Notices("request %s: odd", now=lambda: 0.0)
    found.tell(["a", "b", "a"])
    found.tell(["a"])
    assert told == ["request a: odd", "request b: odd"]
    found.forget(["a", "b", "never seen"])
    assert not found.told
    found.tell(["a"])
    assert told[2:] == ["request a: odd"]


def test_beyond_the_limit_requests_are_counted_and_told_later(told):
    clock = [0.0]
    found = notices.Notices("request %s: odd", now=lambda: clock[0])
    found.tell(f"r{n}" for n in range(notices.MOST + 3))
    assert len(told) == notices.MOST
    clock[0] = notices.SECONDS
    found.tell(["late", "later"])
    assert told[notices.MOST :] == ["request late: odd (3 more requests since the last such line)", "request later: odd"]
