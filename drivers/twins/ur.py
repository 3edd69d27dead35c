"""A UR e-Series controller on TCP: RTDE version 2 (30004), dashboard server (29999), program ports (30002,
30003).

From Universal Robots' RTDE guide. The ports are fixed in every client, so two twins on one machine take two
loopback addresses: 127.0.0.2, 127.0.0.3 … One thread serves every connection and steps the controller 500
times a second.

`python -m ulna.drivers.twins.ur` runs one in a process of its own, described by `from_json` (see `process`);
it answers `{"host": …}`."""

from __future__ import annotations

import re
import selectors
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..arm import DeviceError
from . import process
from .faults import set_faults
from .plant import Plant
from .ur_controller import STEP_S, TYPES, Controller, URFaults

RTDE, DASHBOARD, PROGRAM_PORTS = 30004, 29999, (30002, 30003)
FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "INT32": "i",
    "UINT32": "I",
    "UINT64": "Q",
    "DOUBLE": "d",
    "VECTOR3D": "3d",
    "VECTOR6D": "6d",
    "VECTOR6INT32": "6i",
}
MOST_WAITING = 1 << 20  # bytes that a client may leave unread before it is dropped


@dataclass
class _Recipe:
    names: list[str]
    layout: struct.Struct  # after the byte with the recipe's number


@dataclass
class _Client:
    socket: socket.socket
    port: int
    inbox: bytes = b""
    outbox: bytes = b""
    due: deque[tuple[float, bytes]] = field(default_factory=deque)
    output: tuple[int, _Recipe] | None = None
    every: int = 1  # steps of the controller
    inputs: dict[int, _Recipe] = field(default_factory=dict)
    started: bool = False


class URTwin:
    """host: address to listen on. faults: read in every period. Use `start` and `stop`, or `with`."""

    def __init__(
        self, plant: Plant, host: str = "127.0.0.2", faults: URFaults | None = None, seed: int = 0
    ) -> None:
        if len(plant.names) < 6:
            raise DeviceError(f"a UR has six joints, the plant has {len(plant.names)}")
        self.host, self.faults = host, faults or URFaults()
        self.controller = Controller(plant, self.faults)
        self._rng = np.random.default_rng(seed)
        self._selector: selectors.BaseSelector | None = None
        self._listeners: list[socket.socket] = []
        self._clients: list[_Client] = []
        self._stopping, self._reset = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen and run. DeviceError: the ports are taken."""
        self._selector = selectors.DefaultSelector()
        self._listen()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="UR twin", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread:
            self._stopping.set()
            self._thread.join()
            self._thread = None
        self._hang_up()
        if self._selector:
            self._selector.close()
            self._selector = None

    def power_cycle(self) -> None:
        self._reset.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _listen(self) -> None:
        assert self._selector
        for port in (RTDE, DASHBOARD, *PROGRAM_PORTS):
            listener = socket.socket()
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((self.host, port))
                listener.listen()
            except OSError as error:
                listener.close()
                self._hang_up()
                raise DeviceError(
                    f"cannot listen on {self.host}:{port} ({error.strerror}): choose another host, such as "
                    "127.0.0.3"
                ) from None
            listener.setblocking(False)
            self._listeners.append(listener)
            self._selector.register(listener, selectors.EVENT_READ, port)

    def _hang_up(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        for listener in self._listeners:
            if self._selector:
                self._selector.unregister(listener)
            listener.close()
        self._listeners = []

    def _run(self) -> None:
        assert self._selector
        steps, due = 0, time.monotonic()
        self.controller.reset(due)
        while not self._stopping.is_set():
            if self.faults.unplugged == bool(self._listeners):
                self._plug()
            for key, _ in self._selector.select(max(due - time.monotonic(), 0.0)):
                if isinstance(key.data, int):
                    self._accept(key.fileobj, key.data)  # type: ignore[arg-type]
                else:
                    self._receive(key.data)
            now = time.monotonic()
            if now < due:
                continue
            due = max(due + STEP_S, now - 0.1)  # a machine that slept does not make up for more than that
            if self._reset.is_set():
                self._reset.clear()
                self.controller.reset(now)
            self.controller.step(now)
            steps += 1
            for client in list(self._clients):
                if client.port == RTDE:
                    self._publish(client, steps, now)

    def _plug(self) -> None:
        if self.faults.unplugged:
            self._hang_up()
            return
        try:
            self._listen()
        except DeviceError as error:  # somebody took the ports meanwhile
            print(error, file=sys.stderr)
            self.faults.unplugged = True

    def _accept(self, listener: socket.socket, port: int) -> None:
        assert self._selector
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = _Client(connection, port)
        self._clients.append(client)
        self._selector.register(connection, selectors.EVENT_READ, client)
        if port == DASHBOARD:
            self._send(client, b"Connected: Universal Robots Dashboard Server\n")

    def _drop(self, client: _Client) -> None:
        assert self._selector
        if client in self._clients:
            self._clients.remove(client)
            self._selector.unregister(client.socket)
            client.socket.close()

    def _send(self, client: _Client, data: bytes) -> None:
        client.outbox += data
        try:
            n = client.socket.send(client.outbox)
        except BlockingIOError:
            n = 0
        except OSError:
            return self._drop(client)
        client.outbox = client.outbox[n:]
        if len(client.outbox) > MOST_WAITING:
            self._drop(client)

    def _receive(self, client: _Client) -> None:
        try:
            data = client.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            return self._drop(client)
        client.inbox += data
        if client.port == RTDE:
            self._packages(client)
        elif client.port == DASHBOARD:
            *lines, client.inbox = client.inbox.split(b"\n")
            for line in lines:
                self._send(client, self.controller.dashboard(line.decode(errors="replace")).encode() + b"\n")
        elif whole := re.match(rb"\s*def .*?\nend[ \t\r]*\n", client.inbox, re.DOTALL):
            self.controller.upload(whole[0].decode(errors="replace"))
            client.inbox = client.inbox[whole.end() :]

    # RTDE

    def _packages(self, client: _Client) -> None:
        while len(client.inbox) >= 3:
            size, kind = struct.unpack(">HB", client.inbox[:3])
            if size < 3:
                return self._drop(client)
            if len(client.inbox) < size:
                return
            body, client.inbox = client.inbox[3:size], client.inbox[size:]
            try:
                self._package(client, chr(kind), body)
            except (struct.error, UnicodeDecodeError):
                return self._drop(client)  # as the controller does with what it cannot read

    def _package(self, client: _Client, kind: str, body: bytes) -> None:
        if kind == "V":
            self._reply(client, kind, bytes([struct.unpack(">H", body)[0] == 2]))
        elif kind == "v":
            self._reply(client, kind, struct.pack(">4I", 5, 12, 2, 1101534))
        elif kind == "O":
            hz = struct.unpack(">d", body[:8])[0]
            client.every = max(1, round(1 / (STEP_S * hz))) if hz > 0 else 1
            recipe, types = _recipe(body[8:])
            client.output = (1, recipe) if recipe else None
            self._reply(client, kind, bytes([recipe is not None]) + types)
        elif kind == "I":
            recipe, types = _recipe(body)
            number = len(client.inputs) + 1 if recipe else 0
            if recipe:
                client.inputs[number] = recipe
            self._reply(client, kind, bytes([number]) + types)
        elif kind in "SP":
            client.started = kind == "S" and client.output is not None
            self._reply(client, kind, bytes([client.started or kind == "P"]))
        elif kind == "U" and body[0] in client.inputs:
            recipe = client.inputs[body[0]]
            values = recipe.layout.unpack(body[1:])
            if len(values) == len(recipe.names):  # registers; wrenches and vectors do not steer anything here
                self.controller.inputs.update(zip(recipe.names, values, strict=True))
            self.controller.received_at = time.monotonic()

    def _reply(self, client: _Client, kind: str, body: bytes) -> None:
        self._send(client, struct.pack(">HB", len(body) + 3, ord(kind)) + body)

    def _publish(self, client: _Client, steps: int, now: float) -> None:
        if client.started and client.output and steps % client.every == 0 and not self.faults.stalled:
            number, recipe = client.output
            values = [v for name in recipe.names for v in self.controller.value(name)]
            body = bytes([number]) + recipe.layout.pack(*values)
            late = self.faults.late_s if self._rng.random() < self.faults.late else 0.0
            due = now + self.faults.delay_s + late
            if client.due:
                due = max(due, client.due[-1][0])  # TCP: nothing overtakes
            client.due.append((due, struct.pack(">HB", len(body) + 3, ord("U")) + body))
        data = b""
        while client.due and client.due[0][0] <= now:
            data += client.due.popleft()[1]
        if data or client.outbox:
            self._send(client, data)


def _recipe(names_text: bytes) -> tuple[_Recipe | None, bytes]:
    """The recipe for names separated by commas (ur_rtde ends with one, too), None when a name is unknown; and
    the answer, their types."""
    names = [name for name in names_text.decode().split(",") if name]
    types = [TYPES.get(name, "NOT_FOUND") for name in names]
    answer = ",".join(types).encode()
    if "NOT_FOUND" in types:
        return None, answer
    return _Recipe(names, struct.Struct(">" + "".join(FORMATS[t] for t in types))), answer


def from_json(description: Mapping[str, Any]) -> URTwin:
    """A twin, not started, of `{"plant", "host", "faults", "seed"}`; all but the first may be left out."""
    faults = URFaults()
    set_faults(faults, description.get("faults", {}))
    return URTwin(
        Plant(Path(description["plant"])),
        description.get("host", "127.0.0.2"),
        faults,
        description.get("seed", 0),
    )


if __name__ == "__main__":
    sys.exit(process.run(from_json, lambda twin: {"host": twin.host}))
