import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from vllm_edsd.engine.admin import PATH, Admin

TOKEN = "0123456789abcdef"
RIGHT = {"Authorization": f"Bearer {TOKEN}"}


class Engine:
    """Two ranks that accept any drafter but EDSD's."""

    def __init__(self):
        self.calls = []

    async def collective_rpc(self, method, timeout=None, args=()):
        self.calls.append((method, *args))
        if args and args[0].endswith("smollm2-edsd"):
            return [{"error": "architectures differ"}] * 2
        return [{"drafter": "x", "state": "serving"}] * 2


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setenv("EDSD_ADMIN_TOKEN", TOKEN)
    other = Route("/other", lambda request: PlainTextResponse("served"))
    app = Starlette(routes=[other], middleware=[Middleware(Admin)])
    app.state.engine_client = Engine()
    return TestClient(app)


def test_other_pages_are_left_alone(client):
    assert client.get("/other").text == "served"
    assert client.get(PATH + "/more").status_code == 404


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": b"Bearer \xe9"}]
)
def test_without_the_token_the_engine_is_not_asked(client, headers):
    for answer in (
        client.get(PATH, headers=headers),
        client.post(PATH, headers=headers, json={"drafter": "smollm2-eagle3"}),
    ):
        assert answer.status_code == 401
        assert TOKEN not in answer.text
    assert client.app.state.engine_client.calls == []


def test_the_drafter_is_shown_and_changed(client):
    assert client.get(PATH, headers=RIGHT).json()["state"] == "serving"
    answer = client.post(PATH, headers=RIGHT, json={"drafter": "smollm2-eagle3"})
    assert answer.status_code == 200
    method, folder = client.app.state.engine_client.calls[-1]
    assert method == "load_drafter"
    assert folder.endswith("bundled/smollm2-eagle3")


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"content": b"{"}, 400, "drafter"),
        ({"json": ["smollm2-eagle3"]}, 400, "NAME_OR_PATH"),
        ({"json": {"drafter": 3}}, 400, "NAME_OR_PATH"),
        ({"json": {"drafter": "no-such"}}, 400, "no-such"),
        ({"json": {"drafter": "smollm2-edsd"}}, 409, "architectures"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_reason(client, body, status, told):
    answer = client.post(PATH, headers=RIGHT, **body)
    assert answer.status_code == status
    assert told in answer.json()["error"]["message"]


def test_other_methods_are_refused(client):
    assert client.delete(PATH, headers=RIGHT).status_code == 405
