"""What is written on one connection, by the loop that it belongs to and, where that is quicker, by another
thread: whole messages, in one order."""

from __future__ import annotations

import asyncio
import os
import threading

from .frames import BINARY, frame_head

SMALL = 1 << 14  # bytes that are rather copied together than written in pieces


class Writer:
    """All that is written on `transport` goes this way. Everything is for the loop but `write_directly`."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._fd = transport.get_extra_info("socket").fileno()
        self._is_plain = transport.get_extra_info("sslcontext") is None
        self._lock = threading.Lock()  # of all that follows
        self._is_free = False  # for another thread: nothing waits in the transport
        self._is_closed = False
        self._rest = b""  # of what another thread began

    def write(self, *data: bytes) -> None:
        with self._lock:
            whole = [self._rest, *data] if self._rest else data
            self._rest = b""
            if sum(map(len, whole)) < SMALL:
                self._transport.write(b"".join(whole))
            else:
                self._transport.writelines(whole)
            self._look()

    def message(self, data: bytes) -> None:
        """A WebSocket message of bytes."""
        self.write(frame_head(BINARY, len(data)), data)

    def message_directly(self, data: bytes) -> bool:
        """The same from any thread, without the loop, which need not wake for it; then call `finish` within
        the loop. False, and nothing is written, where only the loop can: something is still being written,
        it is TLS, or it is over."""
        with self._lock:
            if not self._is_free:
                return False
            frame = frame_head(BINARY, len(data)) + data
            try:
                written = os.write(self._fd, frame)
            except OSError:  # no room now, or nobody there: the loop knows what to do
                return False
            self._rest = frame[written:]
            self._is_free = not self._rest
            return True

    def finish(self) -> None:
        """Write the rest of what `message_directly` began."""
        if self._rest and not self._transport.is_closing():
            self.write()

    def look(self) -> None:
        """What waited in the transport may be gone."""
        with self._lock:
            self._look()

    def close(self) -> None:
        """Before the connection is closed, and its number another's: nobody else writes from now on."""
        with self._lock:
            self._is_free, self._is_closed = False, True

    def _look(self) -> None:
        is_idle = not self._rest and not self._transport.get_write_buffer_size()
        self._is_free = self._is_plain and not self._is_closed and is_idle
