"""The control channel of a twin: HTTP on loopback, for tests and demos. It resets the scene, changes faults
and gives the ground truth."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...drivers import web
from ...drivers.arm import DeviceError
from ...drivers.web_access import Access

PAGE, ASSETS = "twin.html", web.assets(Path(__file__).parent / "assets")
# what an order raises that asks for what cannot be done
REFUSALS = (DeviceError, ValueError, TypeError, TimeoutError, ArithmeticError, LookupError, AttributeError)

# takes the JSON object of the request, returns the one to answer with, or None
Order = Callable[[dict[str, Any]], Mapping[str, Any] | None]


def serve(questions: Mapping[str, Order], orders: Mapping[str, Order]) -> tuple[web.Server, str]:
    """(The server of the channel, which runs until it is closed; its URL). Requests are `GET URL/question`
    and `POST URL/order`; the URL itself is a page with a hand at the arm.

    KeyError, DeviceError, ValueError, TypeError and TimeoutError of an order are answered as a sentence with
    status 400. The token in the URL keeps web pages that know the port from moving anything."""
    token = secrets.token_urlsafe(9)
    overview = f"GET {', '.join(questions)}; POST {', '.join(orders)}"

    async def answer(request: Request) -> Response:
        name = request.path_params["name"]
        if not web.is_token(request.path_params["token"], token):
            return web.error("no such thing", 404)
        if request.method == "GET" and (name or PAGE) in ASSETS:
            return web.asset(ASSETS[name or PAGE])
        act = (orders if request.method == "POST" else questions).get(name)
        if act is None:
            return web.error(f"there is no {name!r}: {overview}", 404)
        try:
            body = await web.read_json(request)
            return JSONResponse(await run_in_threadpool(act, body) or {"ok": True})
        except web.BadBody as error:
            return web.error(str(error), error.status)
        except KeyError as error:
            return web.error(f"{name} needs {error}", 400)
        except REFUSALS as error:
            return web.error(str(error) or "the physics does not answer", 400)

    app = Starlette(
        routes=[Route("/{token}/{name:path}", answer, methods=["GET", "POST"])],
        middleware=[Middleware(web.Guard, refusal=Access("twin", token, loopback=True).stranger)],
    )
    listening = web.listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/{token}"
    server = web.Server(app, listening)
    server.start("twin control")
    return server, url
