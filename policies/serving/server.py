"""The policy server: openpi's protocol in front, one inference worker behind.

The event loop only moves bytes, so health checks and other clients are answered while a policy thinks. A bad
message costs its sender one error; nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import signal
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..request import ServedPolicy
from .access import Access
from .conversation import Conversation
from .dispatcher import Dispatcher
from .metrics import Metrics
from .models import Models, Refused
from .websocket import Connection, Room
from .wire import MAX_MESSAGE_BYTES, ServerError, Wire

log = logging.getLogger("ulna.serving")

MAX_HELD_BYTES = 256 << 20  # of all messages that are read or not answered yet
MAX_CONNECTIONS = 256
DRAIN_S = 30.0  # for what was accepted before the server was told to stop
WATCH_S = 1.0
SWITCH_S = 0.0005  # how long a thread may keep the interpreter while the loop wants it


class PolicyServer:
    """Serves policies at `ws://host:port/NAME`, the first of them at every name's absence. Port 0 picks a
    free one; `port` tells which once it runs.

    access: who is let in. tls: of the certificate to show; without it messages and keys can be read on the
    way. watch: load a model again when its folder changes. wires: other projects' protocols, beside."""

    def __init__(
        self,
        policy: ServedPolicy | Models,
        host: str = "127.0.0.1",
        port: int = 8000,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        *,
        max_held_bytes: int = MAX_HELD_BYTES,
        max_connections: int = MAX_CONNECTIONS,
        access: Access | None = None,
        tls: ssl.SSLContext | None = None,
        watch: bool = False,
        wires: Sequence[Wire] = (),
    ) -> None:
        self.models = policy if isinstance(policy, Models) else Models({"policy": policy})
        self.host, self.port = host, port
        self.max_message_bytes, self.watch = max_message_bytes, watch
        self.access, self.tls, self.wires = access or Access(), tls, wires
        self.metrics = Metrics()
        self.dispatcher = Dispatcher(self.models, self.metrics)
        self.room = Room(max_held_bytes, max_connections)
        self.metrics.watch_connections(lambda: len(self.room.connections), lambda: self.room.held)
        self._conversations = 0
        # decoding what is large, and loading: beside the loop, one at a time
        self.decoder = ThreadPoolExecutor(1, thread_name_prefix="decoding")
        self.loader = ThreadPoolExecutor(1, thread_name_prefix="loading")

    @property
    def policy(self) -> ServedPolicy:
        """What is served where no name is asked for."""
        return self.models[""]

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'ws' if self.tls is None else 'wss'}://{host}:{self.port}"

    def run(self, ready: Callable[[str], object] = lambda url: None) -> None:
        """Serve until SIGINT or SIGTERM, then answer what was accepted; a second signal stops at once.
        `ready(url)` is called once connections are accepted."""
        sys.setswitchinterval(SWITCH_S)
        gc.collect()
        gc.freeze()  # so that collections need not look at all that is loaded

        async def main() -> None:
            stopped, at_once = asyncio.Event(), asyncio.Event()
            loop = asyncio.get_running_loop()

            def stop() -> None:
                (at_once if stopped.is_set() else stopped).set()

            for s in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(s, stop)
            async with self._serving():
                ready(self.url)
                await stopped.wait()
                await self._drain(at_once)

        try:
            asyncio.run(main())
        finally:
            self._close()

    @contextlib.contextmanager
    def background(self) -> Iterator[PolicyServer]:
        """Serve from a thread for the length of a `with` block."""
        loop = asyncio.new_event_loop()
        started = threading.Event()
        failures: list[BaseException] = []
        stop = asyncio.Event()

        async def main() -> None:
            try:
                async with self._serving():
                    started.set()
                    await stop.wait()
                    await self._drain(asyncio.Event())
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
            self._close()
            raise failures[0]
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            runner.join()
            self._close()

    def stop_accepting(self) -> None:
        """New requests and connections are refused with a sentence, `/readyz` says so. Within the loop."""
        self.dispatcher.stopping = True

    async def load(self, name: str, folder: str) -> dict[str, Any]:
        """Load a model and let it take its place; see `Models.load`."""
        loop = asyncio.get_running_loop()
        try:
            metadata = await loop.run_in_executor(self.loader, self.models.load, name, folder)
        except Exception as error:
            self.metrics.swap(name, False)
            log.warning("%s", error)
            raise
        self.metrics.swap(name, True)
        log.info("%s is %s %s now", name, metadata.recipe or "?", metadata.checkpoint[:8])
        return {"name": name, **metadata.to_json()}

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(
                self._connection,
                self.host,
                self.port,
                ssl=self.tls,
                ssl_handshake_timeout=None if self.tls is None else 10,
                backlog=128,
            )
        except OSError as error:
            advice = "choose a --host and --port of this machine"
            if error.errno == errno.EADDRINUSE:
                advice = "is a server running there already? Choose another --port"
            raise ServerError(
                f"cannot listen on {self.host}:{self.port} ({error.strerror or error}): {advice}"
            ) from error
        self.port = listener.sockets[0].getsockname()[1]
        self.dispatcher.start()
        tasks = [loop.create_task(self._sweep())]
        if self.watch:
            tasks.append(loop.create_task(self._watch()))
        try:
            async with contextlib.AsyncExitStack() as stack:
                for wire in self.wires:
                    await stack.enter_async_context(
                        wire.running(self.dispatcher.submit, lambda: self.policy.metadata)
                    )
                yield
        finally:
            listener.close()
            for task in tasks:
                task.cancel()
            for connection in list(self.room.connections):
                connection.abort("the server stopped")
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # for what aborted connections have to say

    async def _drain(self, at_once: asyncio.Event) -> None:
        """Answer what was accepted, unless told to stop at once; then say goodbye."""
        self.stop_accepting()
        drained = asyncio.ensure_future(self.dispatcher.drain())
        hurry = asyncio.ensure_future(at_once.wait())
        await asyncio.wait([drained, hurry], timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
        for task in (drained, hurry):
            task.cancel()
        self.dispatcher.give_up()
        for connection in list(self.room.connections):
            connection.fail(1001, "the server stopped")
        for _ in range(20):  # for clients to read it
            if not self.room.connections or at_once.is_set():
                break
            await asyncio.sleep(0.02)

    def _connection(self) -> Connection:
        self._conversations += 1
        return Connection(
            self.room,
            self.max_message_bytes,
            lambda connection: Conversation(self, connection, str(self._conversations)),
        )

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.room.sweep()
            self.dispatcher.sweep()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_S)
            for name in await loop.run_in_executor(self.loader, self.models.changed):
                with contextlib.suppress(Refused):  # it is logged, and what was served is served on
                    await self.load(name, self.models.source(name))

    def _close(self) -> None:
        self.dispatcher.close()
        self.decoder.shutdown(wait=False, cancel_futures=True)
        self.loader.shutdown(wait=False, cancel_futures=True)
