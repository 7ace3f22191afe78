"""`/edsd/drafter` on the server: which drafter is in use (GET), and other weights for it (POST), behind a token.

It is there only where EDSD_ADMIN_TOKEN is set; `vllm serve --middleware` takes the class.
"""

import hmac
import os
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_edsd.drafters.checkpoint import resolve
from vllm_edsd.errors import UserError
from vllm_edsd.serving import ADMIN_TOKEN

PATH = "/edsd/drafter"
SECONDS = 300.0  # for the engine's answer: it finishes its step first


class Admin:
    """ASGI middleware; everything that is not for it goes on to the server."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH:
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        answer = (
            await self._answer(request) if _allowed(request) else _refusal(401, f"give the token of {ADMIN_TOKEN} as bearer")
        )
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> JSONResponse:
        engine = request.app.state.engine_client
        if request.method == "GET":
            states = await engine.collective_rpc("drafter_state", timeout=SECONDS)
        elif request.method == "POST":
            try:
                folder = resolve(await _drafter(request))
            except UserError as error:
                return _refusal(400, str(error))
            states = await engine.collective_rpc("load_drafter", timeout=SECONDS, args=(str(folder),))
        else:
            return _refusal(405, f"{request.method} is not for {PATH}; GET or POST")
        # All ranks see the same drafts, so they say the same.
        state = states[0]
        return _refusal(409, state["error"]) if "error" in state else JSONResponse(state)


async def _drafter(request: Request) -> str:
    try:
        body: Any = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("drafter"), str):
        raise UserError('the body must be JSON like {"drafter": "NAME_OR_PATH"}')
    return body["drafter"]


def _allowed(request: Request) -> bool:
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {os.environ[ADMIN_TOKEN]}".encode())


def _refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": status}}, status)
