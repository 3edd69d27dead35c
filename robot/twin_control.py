"""The control channel of a twin: HTTP on loopback, for tests and demos. It resets the scene, changes faults and tells the ground truth."""

from __future__ import annotations

import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from ..drivers.arm import DeviceError

if TYPE_CHECKING:
    from .twin import Station


class Server(ThreadingHTTPServer):
    daemon_threads = True
    token: str


def serve(station: Station) -> Server:
    """The control channel. The token keeps web pages that know the port from moving anything."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._answer(lambda order: {"state": lambda: station.world.state()}[order]())

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(min(length, 1 << 16)) or b"{}")

            def act(order: str) -> dict[str, Any]:
                if order == "reset":
                    return station.world.reset(int(body["seed"]))
                if order == "begin":
                    return station.world.begin()
                if order == "rest":
                    return station.world.rest()
                if order == "faults":
                    for device, faults in body.items():
                        station.set_faults(device, faults)
                    return {"ok": True}
                if order == "power-cycle":
                    station.power_cycle(str(body["device"]))
                    return {"ok": True}
                if order == "stop":
                    threading.Thread(target=station.stop).start()
                    return {"ok": True}
                raise KeyError(order)

            self._answer(act)

        def _answer(self, act: Any) -> None:
            token, _, order = self.path.strip("/").partition("/")
            if not secrets.compare_digest(token, server.token):
                return self._send(404, {"error": "no such thing"})
            try:
                self._send(200, act(order))
            except KeyError as error:
                self._send(
                    404,
                    {
                        "error": f"there is no {error}: GET state; POST reset, begin, rest, faults, power-cycle, stop"
                    },
                )
            except (DeviceError, ValueError, TypeError, TimeoutError) as error:
                self._send(400, {"error": str(error) or "the physics does not answer"})

        def _send(self, status: int, about: dict[str, Any]) -> None:
            body = json.dumps(about).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    server.token = secrets.token_urlsafe(9)
    threading.Thread(target=server.serve_forever, name="twin control", daemon=True).start()
    return server
