"""What the server says on one connection: health and models over HTTP, replies over WebSocket, in the order
of the requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..request import Request
from .access import Access, is_loopback
from .dispatcher import MAX_BATCH, STOPPING, Dispatcher
from .http_messages import Answer, Head
from .metrics import Metrics
from .models import Models, NoModel, Refused
from .protocol import BadRequest, ProtocolError, TooManyElements, pack, unpack
from .websocket import Connection
from .wire import MAX_ERROR_CHARACTERS

log = logging.getLogger("ulna.serving")

AT_ONCE = 512  # values of a message that the event loop itself reads; more are read beside it
PIPELINE = 8  # requests of one connection that are not answered yet
BATCH = "batch"  # the one key of a request that is many
UNSENDABLE = "the policy's answer cannot be sent; the server's log says why"


class Host(Protocol):
    """The server, as its conversations need it."""

    @property
    def models(self) -> Models: ...

    @property
    def access(self) -> Access: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def dispatcher(self) -> Dispatcher: ...

    @property
    def decoder(self) -> Executor: ...

    async def load(self, name: str, folder: str) -> dict[str, Any]: ...


@dataclass(eq=False)
class _Slot:
    """A request in its place."""

    size: int
    began: float
    reply: bytes | str | None = None
    is_sent: bool = False
    """Already, by the worker."""


class Conversation:
    """A `websocket.Peer`. name: of its session, no other's."""

    def __init__(self, host: Host, connection: Connection, name: str) -> None:
        self.host, self.connection, self.name = host, connection, name
        self._model = ""
        self._slots: deque[_Slot] = deque()
        self._previous_ms: float | None = None
        self._decoding = False
        self._sessions = 0  # that it has had at once
        self._opened: float | None = None
        self._requests, self._errors = 0, 0
        self._tasks: set[asyncio.Task[None]] = set()

    # HTTP

    def asked(self, head: Head) -> Answer | None:
        metrics, access = self.host.metrics, self.host.access
        if head.path == "/healthz":
            return Answer(200, b"OK\n")
        if head.path == "/readyz":
            return _sentence(503, STOPPING) if self.host.dispatcher.stopping else Answer(200, b"OK\n")
        refusal = access.refuse(self.connection.address, head.headers.get("authorization"))
        if refusal is not None:
            metrics.refuse("key" if refusal.status == 403 else "too many keys")
            if refusal.status == 403:
                log.warning("%s was refused: %s", self.connection.address, refusal.sentence)
            return _sentence(refusal.status, refusal.sentence)
        if self.host.dispatcher.stopping:
            return _sentence(503, STOPPING)
        if head.is_upgrade:
            self._model = head.path.strip("/")
            try:
                self.host.models[self._model]
            except NoModel as error:
                metrics.refuse("model")
                return _sentence(404, str(error))
            return None
        if head.path == "/metrics" and head.method == "GET":
            text = metrics.text(self.host.models.metadata())
            return Answer(200, text, "text/plain; version=0.0.4; charset=utf-8")
        if head.path == "/models":
            return self._asked_models(head)
        if head.path == "/":
            return _sentence(426, "this is a policy server: speak WebSocket with it, at ws://HOST:PORT/MODEL")
        return _sentence(404, "there is /healthz, /readyz, /metrics, /models, and WebSocket at /MODEL")

    def _asked_models(self, head: Head) -> Answer | None:
        if head.method == "GET":
            found = {name: m.to_json() for name, m in self.host.models.metadata().items()}
            return Answer(200, json.dumps(found).encode() + b"\n", "application/json")
        if head.method != "POST":
            return _sentence(405, "models are listed by GET and loaded by POST")
        if self.host.access.is_open and not is_loopback(self.connection.address):
            return _sentence(403, "without keys only this machine may load models: serve with --key-file")
        if "origin" in head.headers or head.headers.get("content-type") != "application/json":
            # what a page in a browser of this machine could be made to send
            return _sentence(415, "send Content-Type: application/json, and not from a page")
        return None

    def posted(self, head: Head, body: bytes) -> None:
        try:
            wanted = json.loads(body)
            name, folder = wanted["name"], wanted["path"]
            if not isinstance(name, str) or not isinstance(folder, str):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            self.connection.respond(_sentence(400, 'send {"name": NAME, "path": FOLDER}'))
            return
        self._spawn(self._load(name, folder))

    async def _load(self, name: str, folder: str) -> None:
        try:
            loaded = await self.host.load(name, folder)
        except (Refused, ValueError) as error:
            self.connection.respond(_sentence(409, str(error)))
            return
        self.connection.respond(Answer(200, json.dumps(loaded).encode() + b"\n", "application/json"))

    # WebSocket

    def opened(self) -> None:
        self._opened = asyncio.get_running_loop().time()
        self.connection.send(pack(self.host.models[self._model].metadata.to_json()))

    def received(self, message: memoryview | None, size: int) -> bool:
        self._requests += 1
        slot = _Slot(size, time.monotonic())
        self._slots.append(slot)
        if message is None:
            self._refuse(slot, ProtocolError("the server wants binary msgpack messages, not text"))
        else:
            try:
                self._ask(slot, unpack(message, AT_ONCE))
            except TooManyElements:
                self._decoding = True
                self._spawn(self._decode(slot, message))
            except ProtocolError as error:
                self._refuse(slot, error)
        return not self._decoding and len(self._slots) < PIPELINE

    def closed(self, reason: str) -> None:
        for task in self._tasks:
            task.cancel()
        for slot in self._slots:
            self.connection.release(slot.size)
        self._slots.clear()
        for session in (self.name, *(f"{self.name}/{i}" for i in range(self._sessions))):
            self.host.dispatcher.forget(session)
        if self._opened is not None:
            seconds = asyncio.get_running_loop().time() - self._opened
            log.info(
                "%s at /%s: %d requests, %d errors in %.0f s; %s",
                *(self.connection.address, self._model, self._requests, self._errors, seconds, reason),
            )

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _decode(self, slot: _Slot, message: memoryview) -> None:
        """In another thread, so that others are served meanwhile."""
        loop = asyncio.get_running_loop()
        try:
            request = await loop.run_in_executor(self.host.decoder, unpack, message)
        except ProtocolError as error:
            self._refuse(slot, error)
        else:
            self._ask(slot, request)
        finally:
            self._decoding = False
        self._go_on()

    def _ask(self, slot: _Slot, message: Any) -> None:
        try:
            if isinstance(message, Mapping) and set(message) == {BATCH}:
                self._ask_many(slot, message[BATCH])
                return
            request = Request.from_wire(message)  # so that no policy is asked what none could read
        except ProtocolError as error:
            self._refuse(slot, error)
            return
        self.host.dispatcher.put(
            self.name,
            message,
            self._model,
            _seconds(request),
            lambda result: self._answer(slot, result),
            lambda reply: self._answer_directly(slot, reply),
        )

    def _ask_many(self, slot: _Slot, messages: Any) -> None:
        """openpi's batch: a list of requests, answered by one reply whose arrays have an axis more."""
        if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_BATCH:
            raise ProtocolError(f"{BATCH} is a list of 1 to {MAX_BATCH} requests")
        requests = [Request.from_wire(message) for message in messages]
        results: list[Any] = [None] * len(requests)
        self._sessions = max(self._sessions, len(requests))
        left = len(requests)

        def answered(i: int, result: Any) -> None:
            nonlocal left
            results[i] = result
            left -= 1
            if not left:
                errors = [r for r in results if isinstance(r, BadRequest | ProtocolError)]
                self._answer(slot, errors[0] if errors else _stacked(results))

        for i, (message, request) in enumerate(zip(messages, requests, strict=True)):
            self.host.dispatcher.put(
                f"{self.name}/{i}",
                message,
                self._model,
                _seconds(request),
                lambda result, i=i: answered(i, result),
            )

    def _answer(self, slot: _Slot, result: Mapping[str, Any] | BadRequest | ProtocolError) -> None:
        if slot.is_sent:
            self._reply(slot, b"")
            self.connection.writer.finish()
            return
        if isinstance(result, Exception):
            self._reply(slot, str(result)[:MAX_ERROR_CHARACTERS])
            return
        try:
            reply = self._packed(result)
        except (TypeError, ValueError, OverflowError):
            if not self._errors:  # once a connection
                log.exception("the policy's answer cannot be sent")
            self._reply(slot, UNSENDABLE)
            return
        self._reply(slot, reply)
        self._previous_ms = (time.monotonic() - slot.began) * 1e3

    def _answer_directly(self, slot: _Slot, result: Mapping[str, Any]) -> None:
        """In the worker's thread, where no answer is due before this one; what is not sent so, `_answer`
        sends. The loop would have to wake first, which takes as long as all else that is done for a small
        answer."""
        try:
            is_next = self._slots[0] is slot
        except IndexError:  # the connection is closed
            return
        if is_next:
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                slot.is_sent = self.connection.writer.message_directly(self._packed(result))
        if slot.is_sent:
            self._previous_ms = (time.monotonic() - slot.began) * 1e3

    def _packed(self, result: Mapping[str, Any]) -> bytes:
        timing = dict(result["server_timing"])
        if self._previous_ms is not None:
            timing["prev_total_ms"] = self._previous_ms
        return pack({**result, "server_timing": timing})

    def _refuse(self, slot: _Slot, error: ProtocolError) -> None:
        self.host.metrics.error("protocol")
        self._reply(slot, str(error)[:MAX_ERROR_CHARACTERS])

    def _reply(self, slot: _Slot, reply: bytes | str) -> None:
        """In its place: a stock client takes the next message for the answer to its oldest request."""
        slot.reply = reply
        self._errors += isinstance(reply, str)
        full = len(self._slots) >= PIPELINE
        while self._slots and (ready := self._slots[0].reply) is not None:
            first = self._slots.popleft()
            if not first.is_sent:
                self.connection.send(ready)
            self.connection.release(first.size)
        if full:
            self._go_on()

    def _go_on(self) -> None:
        if not self._decoding and len(self._slots) < PIPELINE:
            self.connection.go_on()


def _seconds(request: Request) -> float | None:
    return None if request.deadline_ms is None else request.deadline_ms / 1e3


def _sentence(status: int, sentence: str) -> Answer:
    return Answer(status, f"{sentence}\n".encode())


def _stacked(replies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One reply of B: arrays and numbers `(B, ...)`, what else there is in lists, the last's timing."""
    stacked: dict[str, Any] = {}
    for key, first in replies[0].items():
        values = [reply.get(key) for reply in replies]
        if key in ("policy_timing", "server_timing"):
            stacked[key] = values[-1]
        elif isinstance(first, str) and len(set(map(str, values))) == 1:
            stacked[key] = first
        elif isinstance(first, np.ndarray | np.generic | int | float):
            try:
                stacked[key] = np.stack([np.asarray(v) for v in values])
            except (TypeError, ValueError):
                stacked[key] = values
        else:
            stacked[key] = values
    return stacked
