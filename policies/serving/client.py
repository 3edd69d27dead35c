"""The policy client: what the control computer imports of the policies. No torch."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import connect

from ...datasets.features import ACTION
from .metadata import Metadata
from .protocol import ProtocolError, pack, unpack


class PolicyServerError(ConnectionError):
    """The server is not there, died, answered with an error or with garbage; the message is one sentence."""


class PolicyClient:
    """One connection to a policy server; a `ServedPolicy`. Not for two threads at once.

    metadata: what the server said of its policy; the defaults where it said nothing of it."""

    def __init__(self, url: str, timeout_s: float = 30.0, connect_timeout_s: float = 5.0) -> None:
        self.url = url if "://" in url else f"ws://{url}"
        self.timeout_s = timeout_s
        self._exit = contextlib.ExitStack()
        deadline = time.monotonic() + connect_timeout_s
        while True:
            try:
                opening = connect(
                    self.url,
                    compression=None,
                    max_size=None,
                    proxy=None,  # a policy server is on the robot's own network
                    open_timeout=max(deadline - time.monotonic(), 0.1),
                    close_timeout=1,
                )
                self._socket = self._exit.enter_context(opening)
                _bound_sending(self._socket.socket, timeout_s)
                break
            except InvalidURI:
                raise PolicyServerError(f"{url!r} is not a server address: use ws://HOST:PORT") from None
            except InvalidHandshake as error:
                raise PolicyServerError(f"what answers at {self.url} is no policy server: {error}") from None
            except (OSError, TimeoutError, EOFError) as error:
                if time.monotonic() + 0.2 > deadline:
                    raise PolicyServerError(
                        f"no policy server answers at {self.url} ({error or 'timeout'}): start one with "
                        "`ulna serve CHECKPOINT --port PORT`"
                    ) from None
                time.sleep(0.2)
        try:
            self.metadata = self._introduction()
        except PolicyServerError:
            self.close()
            raise

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The server's reply to one request; see `ServedPolicy`. PolicyServerError in one sentence where it
        gives none, or one without finite `actions` of the width that its metadata promises."""
        try:
            self._socket.send(pack(dict(request)))
        except ConnectionClosed as error:
            raise self._closed(error) from None
        reply = self._receive()
        if not isinstance(reply, dict):
            raise PolicyServerError(
                f"the server at {self.url} answered with a {type(reply).__name__}, not a map"
            )
        actions = reply.get("actions")
        if (
            not isinstance(actions, np.ndarray)
            or actions.ndim != 2
            or actions.dtype.kind != "f"
            or not len(actions)
        ):
            raise PolicyServerError(f"the server at {self.url} answered without an array of actions")
        action = self.metadata.features.get(ACTION)  # a server that is not Ulna's does not tell
        if action is not None and actions.shape[1] != action.shape[0]:
            raise PolicyServerError(
                f"the server at {self.url} answered with {actions.shape[1]} action dimensions, "
                f"not {action.shape[0]}"
            )
        if not np.isfinite(actions).all():
            raise PolicyServerError(f"the server at {self.url} answered with actions that are not finite")
        return reply

    def close(self) -> None:
        self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _introduction(self) -> Metadata:
        message = self._receive()
        if not isinstance(message, dict):
            raise PolicyServerError(
                f"what answers at {self.url} is no policy server: it did not introduce itself"
            )
        try:
            return Metadata.from_json(message)
        except ValueError as error:
            raise PolicyServerError(
                f"the server at {self.url} describes its policy in a way that is not Ulna's: {error}"
            ) from None

    def _receive(self) -> Any:
        try:
            data = self._socket.recv(timeout=self.timeout_s)
        except TimeoutError:
            self.close()  # a late answer must not be taken for the next one
            raise PolicyServerError(
                f"the server at {self.url} did not answer within {self.timeout_s:g} s"
            ) from None
        except ConnectionClosed as error:
            raise self._closed(error) from None
        if isinstance(data, str):
            raise PolicyServerError(f"the server at {self.url} says: {data.strip() or 'nothing'}")
        try:
            return unpack(data)
        except ProtocolError as error:
            raise PolicyServerError(f"the server at {self.url} sent garbage: {error}") from None

    def _closed(self, error: ConnectionClosed) -> PolicyServerError:
        if isinstance(error.__cause__, BlockingIOError):
            return PolicyServerError(f"the server at {self.url} took no message for {self.timeout_s:g} s")
        if error.rcvd is not None and error.rcvd.code == 1009:
            return PolicyServerError(f"the server at {self.url} refused the message: it is too large")
        return PolicyServerError(f"the server at {self.url} closed the connection: it stopped or died")


def _bound_sending(connection: socket.socket, timeout_s: float) -> None:
    """Without it, sending to a frozen server blocks for ever once the kernel's buffers are full.

    In the kernel, not by `settimeout`: that would bound the wait for replies too, and before websockets 17 an
    idle connection would break."""
    whole = int(timeout_s)
    timeval = struct.pack("@ll", whole, max(int((timeout_s - whole) * 1e6), 1))  # zero would mean no bound
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
