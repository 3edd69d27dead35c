"""The policy server: openpi's protocol in front, one inference thread behind.

The event loop only moves bytes, so health checks and other clients are answered while a policy thinks. A bad
message costs its sender one error; nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from ..request import Request, ServedPolicy
from .protocol import BadRequest, ProtocolError, pack, unpack
from .wire import MAX_ERROR_CHARACTERS, MAX_MESSAGE_BYTES, ServerError, Wire

log = logging.getLogger("ulna.serving")


class PolicyServer:
    """Serves one policy at `ws://host:port`. Port 0 picks a free one; `port` tells which once it runs.

    wires: other projects' protocols, served beside."""

    def __init__(
        self,
        policy: ServedPolicy,
        host: str = "127.0.0.1",
        port: int = 8000,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        wires: Sequence[Wire] = (),
    ) -> None:
        self.policy, self.host, self.port = policy, host, port
        self.max_message_bytes, self.wires = max_message_bytes, wires
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="inference")

    @property
    def url(self) -> str:
        return f"ws://{self.host}:{self.port}"

    def run(self, ready: Any = lambda url: None) -> None:
        """Serve until SIGINT or SIGTERM. `ready(url)` is called once connections are accepted."""

        async def main() -> None:
            stopped = asyncio.Event()
            loop = asyncio.get_running_loop()
            for s in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(s, stopped.set)
            async with self._running():
                ready(self.url)
                await stopped.wait()

        try:
            asyncio.run(main())
        finally:
            self._worker.shutdown(wait=True, cancel_futures=True)

    @contextlib.contextmanager
    def background(self) -> Iterator[PolicyServer]:
        """Serve from a thread for the length of a `with` block."""
        loop = asyncio.new_event_loop()
        started = threading.Event()
        failures: list[BaseException] = []
        stop = asyncio.Event()

        async def main() -> None:
            try:
                async with self._running():
                    started.set()
                    await stop.wait()
            except BaseException as error:  # noqa: BLE001  handed to the caller's thread
                failures.append(error)
                started.set()

        def thread() -> None:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(main())
            loop.close()

        runner = threading.Thread(target=thread, name="policy-server", daemon=True)
        runner.start()
        started.wait()
        if failures:
            runner.join()
            raise failures[0]
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            runner.join()
            self._worker.shutdown(wait=True, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(await self._start())
            for wire in self.wires:
                await stack.enter_async_context(wire.running(self.submit))
            yield

    async def submit(
        self,
        session: str,
        request: Mapping[str, Any],
        *,
        model: str = "",
        deadline_s: float | None = None,
    ) -> Mapping[str, Any]:
        """A wire's `Submit`."""
        Request.from_wire(request)
        loop = asyncio.get_running_loop()
        reply, _ = await loop.run_in_executor(self._worker, self._infer, dict(request))
        return reply

    async def _start(self) -> Server:
        try:
            server = await serve(
                self._session,
                self.host,
                self.port,
                compression=None,
                max_size=self.max_message_bytes,
                # one request at a time; else a client could have 16 large ones waiting in memory
                max_queue=1,
                process_request=_health,
                close_timeout=2,
            )
        except OSError as error:
            advice = "choose a --host and --port of this machine"
            if error.errno == errno.EADDRINUSE:
                advice = "is a server running there already? Choose another --port"
            raise ServerError(
                f"cannot listen on {self.host}:{self.port} ({error.strerror or error}): {advice}"
            ) from error
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _session(self, connection: ServerConnection) -> None:
        try:
            await connection.send(pack(self.policy.metadata.to_json()))
            previous_ms: float | None = None
            async for message in connection:
                began = time.monotonic()
                reply = await self._answer(message, previous_ms)
                await connection.send(reply)
                if isinstance(reply, bytes):
                    previous_ms = (time.monotonic() - began) * 1e3
        except ConnectionClosed as error:
            if error.sent is not None and error.sent.code == 1009:
                log.warning("a client sent more than %d bytes in one message", self.max_message_bytes)

    async def _answer(self, message: str | bytes, previous_ms: float | None) -> bytes | str:
        """A reply, or the one sentence that a stock client raises as its error."""
        began = time.monotonic()
        try:
            request = _request(message)
            loop = asyncio.get_running_loop()
            answer, infer_ms = await loop.run_in_executor(self._worker, self._infer, request)
        except (ProtocolError, BadRequest) as error:
            return str(error)[:MAX_ERROR_CHARACTERS]
        except Exception:
            log.exception("the policy failed")
            return "the policy failed on this observation; the server's log says why"
        timing = {"infer_ms": (time.monotonic() - began) * 1e3}
        if previous_ms is not None:
            timing["prev_total_ms"] = previous_ms
        try:
            return pack({**answer, "policy_timing": {"infer_ms": infer_ms}, "server_timing": timing})
        except (TypeError, ValueError, OverflowError):
            log.exception("the policy's answer cannot be sent")
            return "the policy's answer cannot be sent; the server's log says why"

    def _infer(self, request: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """The policy's reply, and how long it thought, ms."""
        began = time.monotonic()
        reply = self.policy.infer(request)
        return reply, (time.monotonic() - began) * 1e3


def _request(message: str | bytes) -> dict[str, Any]:
    if isinstance(message, str):
        raise ProtocolError("the server wants binary msgpack messages, not text")
    request = unpack(message)
    Request.from_wire(request)  # so that no policy is asked what none could read
    return request


def _health(connection: ServerConnection, request: HttpRequest) -> Response | None:
    if request.path == "/healthz":
        return connection.respond(HTTPStatus.OK, "OK\n")
    return None
