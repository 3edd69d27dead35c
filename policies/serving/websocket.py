"""The server's end of one connection: HTTP until it is a WebSocket (RFC 6455), then messages; bounded in
everything that the sender chooses.

Written for this server and not taken from a library because of what it must hold: the memory of all
unfinished messages together, the time that one may take, the work that small frames make, each for a sender
that means harm. A message is read into the one buffer that its arrays are views of, and copied nowhere."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from .frames import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame_head, unmask
from .http_messages import Answer, Head, head_of
from .sockets import keep_alive
from .writer import Writer

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
SCRATCH = 1 << 14  # bytes of heads and small messages; also the longest HTTP head
MAX_BODY = 1 << 16  # of an HTTP request
MAX_FRAGMENTS = 1024  # of one message
FRAMES_AT_ONCE = 16  # of one connection, then it is another's turn
CONTROLS = 64  # pings and pongs a second
GRACE_S = 10.0  # for a head or a message to arrive whole
LEAST_RATE = 256 << 10  # bytes/s, of messages that take longer than that
LEAVE_S = 2.0  # for the other side to close after us


class Peer(Protocol):
    """Who decides what is answered on one connection."""

    def asked(self, head: Head) -> Answer | None:
        """None lets in an upgrade, and lets the body of another request come."""
        ...

    def posted(self, head: Head, body: bytes) -> None:
        """An HTTP request is whole; it is answered by `Connection.respond`, now or later."""
        ...

    def opened(self) -> None:
        """It is a WebSocket now."""
        ...

    def received(self, message: memoryview | None, size: int) -> bool:
        """A message, None for one of text; False where no more are wanted until `Connection.go_on`. size:
        bytes that its memory counts for, until `Connection.release`."""
        ...

    def closed(self, reason: str) -> None: ...


class Room:
    """The memory that all connections' messages have together, and how many connections there are."""

    def __init__(self, max_bytes: int, max_connections: int) -> None:
        self.max_bytes, self.max_connections = max_bytes, max_connections
        self.held = 0
        self.connections: set[Connection] = set()

    def admit(self, connection: Connection) -> None:
        """Where there are too many, one that has said nothing yet makes place for it."""
        self.connections.add(connection)
        if len(self.connections) <= self.max_connections:
            return
        silent = [c for c in self.connections if c.is_silent and c is not connection]
        if silent:
            min(silent, key=lambda c: c.since).abort("another connection took its place")
        else:
            connection.respond(
                Answer(503, b"the server has as many connections as it takes: try again later")
            )

    def take(self, n: int) -> None:
        """Where it is more than there is, whoever has most unfinished loses it."""
        self.held += n
        while self.held > self.max_bytes:
            largest = max(self.connections, key=lambda c: c.unfinished, default=None)
            if largest is None or not largest.unfinished:
                return
            largest.fail(1013, "the server's memory for messages is full, and this one had most of it")

    def sweep(self) -> None:
        """To be called once a second: ends those who take too long."""
        now = asyncio.get_running_loop().time()
        for connection in list(self.connections):
            connection.look_at_the_clock(now)


class Connection(asyncio.BufferedProtocol):
    """peer: makes who answers on it. writer: what is written on it."""

    def __init__(self, room: Room, max_message: int, peer: Callable[[Connection], Peer]) -> None:
        self.room, self.max_message = room, max_message
        self.address = "?"
        self.unfinished = 0  # bytes of the message that is being read
        self.since = 0.0  # when it was made
        self._peer = peer(self)
        self._scratch = bytearray(SCRATCH)
        self._start, self._end = 0, 0  # of what is not read yet in it
        self._read: Callable[[], bool] = self._read_head
        self._head: Head | None = None
        self._payload: np.ndarray | None = None
        self._filled, self._clear = 0, 0  # bytes of it that are there, and that are unmasked
        self._frame: tuple[bool, int, bytes] = (True, 0, b"")  # whether it is the last, opcode, mask
        self._parts: list[np.ndarray] = []
        self._opcode = 0
        self._since: float | None = None  # when what is unfinished began
        self._stuck: float | None = None  # since when the other side reads no replies
        self._leaving: float | None = None
        self._waiting = False
        self._reading = True
        self._controls = 0
        self._reason = "it went away"

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport
        self._loop = asyncio.get_running_loop()
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else "?"
        keep_alive(transport.get_extra_info("socket"))
        self.writer = Writer(transport)
        transport.set_write_buffer_limits(high=1 << 20)
        self.since = self._since = self._loop.time()
        self.room.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.writer.close()
        self.room.connections.discard(self)
        self._drop_message()
        self._payload = None
        self._peer.closed(self._reason)

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:
        if self._in_payload():
            return memoryview(self._payload)[self._filled :]  # type: ignore[arg-type]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._scratch):
            self._scratch[: self._end - self._start] = self._scratch[self._start : self._end]
            self._start, self._end = 0, self._end - self._start
            if self._end == len(self._scratch):  # full of frames that wait for their turn
                self._grow(SCRATCH)
        return memoryview(self._scratch)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._leaving is not None:
            self._start = self._end = 0
            self._payload = None
            return
        if self._in_payload():
            self._filled += nbytes
            self._unmask()
            self._hold(nbytes)
        else:
            self._end += nbytes
        if not self._waiting and self._leaving is None:
            self._go()

    def _in_payload(self) -> bool:
        """Whether what arrives next belongs to the frame that has begun."""
        return self._payload is not None and self._filled < len(self._payload)

    def _grow(self, n: int) -> None:
        self._scratch = self._scratch + bytes(n)  # a new one: the loop may hold a view of the old

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._stuck = self._loop.time()
        self._waiting = True
        self._want(False)

    def resume_writing(self) -> None:
        self._stuck = None
        self.go_on()

    def look_at_the_clock(self, now: float) -> None:
        """End what takes too long."""
        self._controls = 0
        if self._leaving is not None:
            if now - self._leaving > LEAVE_S:
                self._transport.abort()
        elif self._stuck is not None and now - self._stuck > GRACE_S:
            self.abort("it did not read its replies")
        elif self._since is None or self._waiting:
            return
        elif now - self._since > GRACE_S + self.unfinished / LEAST_RATE:
            if self._read == self._read_frame:
                self.fail(1008, "the message took too long to arrive")
            else:
                self.respond(Answer(408, b"the request took too long to arrive"))

    @property
    def is_silent(self) -> bool:
        """Whether it has not even said what it wants."""
        return self._head is None

    def abort(self, reason: str) -> None:
        """End it without a word."""
        self._reason = reason
        self.room.connections.discard(self)
        self.writer.close()
        self._transport.abort()

    def send(self, data: bytes | str) -> None:
        """One message."""
        if self._leaving is not None or self._transport.is_closing():
            return
        if isinstance(data, str):
            text = data.encode()
            self.writer.write(frame_head(TEXT, len(text)), text)
        else:
            self.writer.message(data)

    def respond(self, answer: Answer) -> None:
        """Answer an HTTP request, and close."""
        self.writer.write(answer.encoded())
        self._leave(f"HTTP {answer.status}")

    def fail(self, code: int, reason: str) -> None:
        """Say why, and close."""
        if self._leaving is None:
            self.writer.write(close_frame(code, reason))
            self._leave(reason)

    def release(self, size: int) -> None:
        """A message is answered; its memory is free."""
        self.room.held -= size

    def go_on(self) -> None:
        """Messages are wanted again."""
        if self._waiting and self._stuck is None:
            self._waiting = False
            self._since = None if self._since is None else self._loop.time()
            self._loop.call_soon(self._go)

    def _leave(self, reason: str) -> None:
        """Nothing is read any more but thrown away until the other side has read us and closes, since closing
        on unread bytes would take from it what we said."""
        self._reason, self._leaving = reason, self._loop.time()
        self.writer.close()
        self._drop_message()
        self._payload, self._start, self._end = None, 0, 0
        if self._transport.can_write_eof():
            with contextlib.suppress(OSError):  # the other side is gone already
                self._transport.write_eof()
        else:  # TLS
            self._transport.close()
        self._want(True)

    def _drop_message(self) -> None:
        self.room.held -= self.unfinished
        self.unfinished, self._parts = 0, []

    def _hold(self, n: int) -> None:
        self.unfinished += n
        self.room.take(n)

    def _go(self) -> None:
        """Read what has arrived, a few frames; the rest in the loop's next round."""
        if self._waiting or self._leaving is not None or self._transport.is_closing():
            return
        for _ in range(FRAMES_AT_ONCE):
            if not self._read():
                break
            if self._waiting or self._leaving is not None:
                break
        else:
            self._want(False)
            self._loop.call_soon(self._go)
            return
        if self._leaving is not None:
            return
        self._want(not self._waiting)
        if self._since is None and (self.unfinished or self._start < self._end or self._payload is not None):
            self._since = self._loop.time()

    def _want(self, reading: bool) -> None:
        if reading != self._reading and not self._transport.is_closing():
            self._reading = reading
            (self._transport.resume_reading if reading else self._transport.pause_reading)()

    # each of these reads one thing, and says whether there may be another

    def _read_head(self) -> bool:
        end = self._scratch.find(b"\r\n\r\n", self._start, self._end)
        if end < 0:
            if self._end - self._start >= SCRATCH:
                self.respond(Answer(431, b"the head of the request is too long"))
            return False
        head = head_of(bytes(self._scratch[self._start : end]))
        self._start = end + 4
        if head is None:
            self.respond(Answer(400, b"this is no HTTP request: connect to ws://HOST:PORT"))
            return False
        self._head = head
        answer = self._peer.asked(head)
        if answer is None and head.is_upgrade:
            return self._upgrade(head)
        length = head.headers.get("content-length", "0")
        if answer is None and not (length.isascii() and length.isdigit() and len(length) < 9):
            answer = Answer(400, b"the request does not say how long it is")
        if answer is None and (int(length) > MAX_BODY or "transfer-encoding" in head.headers):
            answer = Answer(413, b"the request is too long, or comes in pieces")
        if answer is not None:
            self.respond(answer)
            return False
        self._read = self._read_body
        return True

    def _upgrade(self, head: Head) -> bool:
        key = head.headers.get("sec-websocket-key", "")
        try:
            fits = len(base64.b64decode(key, validate=True)) == 16
        except (binascii.Error, ValueError):
            fits = False
        if head.method != "GET" or not fits or head.headers.get("sec-websocket-version") != "13":
            self.respond(Answer(426, b"this server speaks WebSocket version 13"))
            return False
        accept = base64.b64encode(hashlib.sha1(key.encode() + GUID).digest())
        self.writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        self._read, self._since = self._read_frame, None
        self._peer.opened()
        return True

    def _read_body(self) -> bool:
        assert self._head is not None
        length = int(self._head.headers.get("content-length", "0"))
        if self._end - self._start < length:
            if length > len(self._scratch) - self._start:
                self._grow(length)
            return False
        body = bytes(self._scratch[self._start : self._start + length])
        self._start += length
        self._since = None
        self._read = lambda: False
        self._peer.posted(self._head, body)
        return False

    def _read_frame(self) -> bool:
        if self._payload is None and not self._begin_frame():
            return False
        payload = self._payload
        if payload is None or self._filled < len(payload):
            return False
        self._payload = None
        last, opcode, _ = self._frame
        if opcode >= CLOSE:
            self._since = None if not self._parts else self._since
            self._drop_control(len(payload))
            return self._control(opcode, payload.tobytes())
        self._parts.append(payload)
        if not last:
            if len(self._parts) > MAX_FRAGMENTS:
                self.fail(1008, f"a message may come in {MAX_FRAGMENTS} pieces")
                return False
            return True
        whole = self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts)
        size, self._parts, self.unfinished, self._since = self.unfinished, [], 0, None
        self.writer.look()
        if not self._peer.received(memoryview(whole) if self._opcode == BINARY else None, size):
            self._waiting = True
        return True

    def _begin_frame(self) -> bool:
        """Read a frame's head, and what there is of its payload."""
        scratch, at, n = self._scratch, self._start, self._end - self._start
        if n < 2:
            return False
        first, second = scratch[at], scratch[at + 1]
        size, length = 2, second & 0x7F
        if length >= 126:
            size = 4 if length == 126 else 10
            if n < size:
                return False
            length = int.from_bytes(scratch[at + 2 : at + size], "big")
        if n < size + 4 and second & 0x80:
            return False
        last, opcode = bool(first & 0x80), first & 0x0F
        if not second & 0x80 or first & 0x70 or opcode not in (0, TEXT, BINARY, CLOSE, PING, PONG):
            self.fail(1002, "this is no WebSocket frame of a client's")
            return False
        if opcode >= CLOSE:
            if length > 125 or not last:
                self.fail(1002, "a control frame is short and whole")
                return False
        elif (opcode == 0) != bool(self._parts):
            self.fail(1002, "a message begins before the last one has ended, or goes on without a beginning")
            return False
        elif length + self.unfinished > self.max_message:
            self.fail(1009, f"a message may have {self.max_message} bytes, and this one has more")
            return False
        elif opcode:
            self._opcode = opcode
        self._frame = last, opcode, bytes(scratch[at + size : at + size + 4])
        at += size + 4
        # not filled with zeros: memory that has not arrived is not taken
        self._payload = np.empty(length, np.uint8)
        taken = self._filled = min(length, self._end - at)
        self._payload[:taken] = np.frombuffer(scratch, np.uint8, taken, at) if taken else 0
        self._start, self._clear = at + taken, 0
        self._unmask()
        self._hold(taken)
        return self._leaving is None

    def _unmask(self) -> None:
        """What has arrived, so that no message is a long piece of work at its end."""
        payload = self._payload
        assert payload is not None
        end = self._filled if self._filled == len(payload) else self._filled & ~3
        if end > self._clear:
            unmask(payload[self._clear : end], self._frame[2])
            self._clear = end

    def _drop_control(self, n: int) -> None:
        self.unfinished -= n
        self.room.held -= n

    def _control(self, opcode: int, payload: bytes) -> bool:
        self._controls += 1
        if self._controls > CONTROLS:
            self.fail(1008, "too many pings")
            return False
        if opcode == PING:
            self.writer.write(frame_head(PONG, len(payload)), payload)
        elif opcode == CLOSE:
            self.writer.write(frame_head(CLOSE, len(payload[:2])), payload[:2])
            self._leave("closed by the client")
            return False
        return True
