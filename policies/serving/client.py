"""The policy client: what the control computer imports of the policies. No torch."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from ...datasets.features import ACTION
from .access import read_keys
from .channel import Channel, ChannelError, Late, NotTaken
from .metadata import Metadata, difference
from .protocol import Packer, ProtocolError, unpack

KEY_FILE = "ULNA_KEY_FILE"  # in the environment: where the key is, for whoever gives none
EXTENSION, DEADLINE = "_rt", "deadline_ms"
PAUSES = (0.05, 0.1, 0.2, 0.5)  # s, between attempts to connect again; the last one from then on


class PolicyServerError(ConnectionError):
    """The server is not there, died, answered with an error or with garbage; the message is one sentence."""


class PolicyClient:
    """One connection to a policy server; a `ServedPolicy`. Not for two threads at once.

    url: `ws://HOST:PORT`, with `/MODEL` where several are served; `wss://` for TLS, see `Channel`. timeout_s:
    of one request, from its beginning to the last byte of its reply. key: by default the first of the file
    that ULNA_KEY_FILE names. checkpoint: the content hash that every reply must be of; by default one may
    take the place of another that understands the same. reconnect_s: for how long a lost connection is tried
    again.

    metadata: what the server said of its policy; the defaults where it said nothing of it."""

    def __init__(
        self,
        url: str,
        timeout_s: float = 30.0,
        connect_timeout_s: float = 5.0,
        *,
        key: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        checkpoint: str | None = None,
        reconnect_s: float = 3.0,
    ) -> None:
        self.url = url if "://" in url else f"ws://{url}"
        self.timeout_s, self.reconnect_s = timeout_s, reconnect_s
        self._ca_file, self._checkpoint = ca_file, checkpoint
        self._key = key or self._key_of_environment()
        self._packer = Packer()
        self._channel: Channel | None = None
        self.metadata = Metadata()
        self._connect(connect_timeout_s)

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The server's reply to one request; see `ServedPolicy`. PolicyServerError in one sentence where it
        gives none within `timeout_s`, or one without finite `actions` of the width that its metadata
        promises."""
        deadline = time.monotonic() + self.timeout_s
        with self._packer.pack(self._with_deadline(request)) as data:
            reply = self._exchange(data, deadline)
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
        self._require_checkpoint(reply.get("checkpoint"))
        return reply

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _key_of_environment() -> str | None:
        file = os.environ.get(KEY_FILE)
        try:
            return read_keys(file)[0] if file else None
        except ValueError as error:
            raise PolicyServerError(f"{KEY_FILE}: {error}") from None

    def _with_deadline(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """So that the server does not compute what nobody waits for. A stranger's server is told nothing that
        it may not know."""
        message = dict(request)
        extension = message.get(EXTENSION, {})
        if self.metadata.features and isinstance(extension, Mapping) and DEADLINE not in extension:
            message[EXTENSION] = {**extension, DEADLINE: self.timeout_s * 1e3}
        return message

    def _exchange(self, data: memoryview, deadline: float) -> Any:
        """The answer to one message. A lost connection is made again and the message sent again, once: a
        request changes nothing at the server."""
        for again in (True, False):
            if self._channel is None:
                self._connect(min(self.reconnect_s, deadline - time.monotonic()), deadline)
            channel = self._channel
            assert channel is not None
            try:
                channel.send(data, deadline)
                return self._decoded(channel.receive(deadline))
            except ChannelError as error:
                self.close()
                if isinstance(error, Late):
                    verb = "took no message for" if isinstance(error, NotTaken) else "did not answer within"
                    raise PolicyServerError(f"the server at {self.url} {verb} {self.timeout_s:g} s") from None
                if not (again and error.passing):
                    raise PolicyServerError(str(error)) from None
                lost = error
                try:
                    self._connect(min(self.reconnect_s, deadline - time.monotonic()), deadline)
                except PolicyServerError as gone:
                    raise PolicyServerError(f"{lost}; {gone}") from None
        raise AssertionError  # the second attempt returned or raised

    def _connect(self, timeout_s: float, answered_by: float = math.inf) -> None:
        """answered_by: when the request is late that the connection is for, a time of `time.monotonic`."""
        deadline = time.monotonic() + timeout_s
        first, attempt = not self.metadata.features and self._channel is None, 0
        while True:
            try:
                channel = Channel(self.url, deadline, self._key, self._ca_file)
                break
            except ChannelError as error:
                pause = PAUSES[min(attempt, len(PAUSES) - 1)]
                attempt += 1
                if not error.passing or time.monotonic() + pause > deadline:
                    raise PolicyServerError(str(error)) from None
            time.sleep(pause)
        self._channel = channel
        try:
            metadata = self._introduction(channel, min(answered_by, time.monotonic() + self.timeout_s))
            self._require_checkpoint(metadata.checkpoint)
            if not first and (changed := difference(self.metadata, metadata)):
                raise PolicyServerError(
                    f"the server at {self.url} came back with another policy: {changed[1]}, where this run "
                    f"began with {changed[0]}"
                )
        except PolicyServerError:
            self.close()
            raise
        self.metadata = metadata

    def _introduction(self, channel: Channel, deadline: float) -> Metadata:
        try:
            message = self._decoded(channel.receive(deadline))
        except Late:
            raise PolicyServerError(
                f"the server at {self.url} did not answer within {self.timeout_s:g} s"
            ) from None
        except ChannelError as error:
            raise PolicyServerError(str(error)) from None
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

    def _require_checkpoint(self, checkpoint: object) -> None:
        if self._checkpoint is not None and checkpoint != self._checkpoint:
            raise PolicyServerError(
                f"the server at {self.url} answers with the checkpoint {str(checkpoint)[:8]}, and this run "
                f"is of {self._checkpoint[:8]}"
            )

    def _decoded(self, data: bytes | str) -> Any:
        if isinstance(data, str):
            raise PolicyServerError(f"the server at {self.url} says: {data.strip() or 'nothing'}")
        try:
            return unpack(data)
        except ProtocolError as error:
            raise PolicyServerError(f"the server at {self.url} sent garbage: {error}") from None
