"""The control channel of a twin: HTTP on loopback, for tests and demos. It resets the scene, changes faults
and tells the ground truth."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from ...drivers.arm import DeviceError

if TYPE_CHECKING:
    from .station import Station


MOST = 1 << 16  # bytes of an order


class Server(ThreadingHTTPServer):
    daemon_threads = True
    token: str


def serve(station: Station) -> Server:
    """The control channel. The token keeps web pages that know the port from moving anything."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._answer({"state": lambda _: station.world.state()})

        def do_POST(self) -> None:
            self._answer(
                {
                    "reset": lambda body: station.world.reset(int(body["seed"])),
                    "begin": lambda _: station.world.begin(),
                    "rest": lambda _: station.world.rest(),
                    "faults": self._set_faults,
                    "power-cycle": lambda body: station.power_cycle(str(body["device"])),
                    "stop": lambda _: threading.Thread(target=station.stop).start(),
                }
            )

        def _set_faults(self, body: dict[str, Any]) -> None:
            for device, faults in body.items():
                station.set_faults(device, faults)

        def _answer(self, orders: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]]) -> None:
            token, _, order = self.path.strip("/").partition("/")
            length = self.headers.get("Content-Length") or "0"
            if not length.isdecimal() or int(length) > MOST:
                self.close_connection = True
                return self._send(413, {"error": f"an order has at most {MOST} bytes"})
            sent = self.rfile.read(int(length))  # of a wrong token, too: the next request begins behind it
            if not secrets.compare_digest(token.encode(), server.token.encode()):
                return self._send(404, {"error": "no such thing"})
            if order not in orders:
                known = "GET state; POST reset, begin, rest, faults, power-cycle, stop"
                return self._send(404, {"error": f"there is no {order!r}: {known}"})
            try:
                body = json.loads(sent or b"{}")
                if not isinstance(body, dict):
                    raise TypeError("the body must be a JSON object")
                self._send(200, orders[order](body) or {"ok": True})
            except KeyError as error:
                self._send(400, {"error": f"{order} needs {error}"})
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
