"""The client's end of one connection to a server: whole messages, each within a deadline, no thread of its
own. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import ssl
import struct
import time
from urllib.parse import urldefrag

import numpy as np
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI
from websockets.frames import Frame, Opcode
from websockets.protocol import CONNECTING, OPEN
from websockets.uri import parse_uri

from .sockets import keep_alive

MAX_REPLY_BYTES = 64 << 20
PIECE = 1 << 16  # bytes that are read at once


class ChannelError(ConnectionError):
    """There is no connection, or there is none any more; the message is one sentence.

    passing: whether it may be another time that it is tried."""

    def __init__(self, sentence: str, passing: bool = False) -> None:
        super().__init__(sentence)
        self.passing = passing


class Late(ChannelError):
    """The deadline passed; the connection is closed, so that a late answer is not taken for the next one."""


class NotTaken(Late):
    """It passed before the other side had taken the message."""


class Channel:
    """Connects to `url`, `ws://HOST:PORT/MODEL` or `wss://`, by `deadline`, a time of `time.monotonic`.

    key: to be sent as a bearer's. ca_file: certificates to trust beside the computer's own. A server whose
    certificate nobody signed is named by its SHA-256 fingerprint: `wss://HOST:PORT#AB:CD:...`."""

    def __init__(
        self, url: str, deadline: float, key: str | None = None, ca_file: str | os.PathLike[str] | None = None
    ) -> None:
        address, fingerprint = urldefrag(url)
        try:
            uri = parse_uri(address)
        except (InvalidURI, ValueError):
            raise ChannelError(f"{url!r} is not a server address: use ws://HOST:PORT") from None
        self.url = address
        try:
            plain = socket.create_connection((uri.host, uri.port), timeout=_left(deadline))
        except (OSError, UnicodeError) as error:
            raise ChannelError(
                f"no policy server answers at {address} ({error or 'timeout'}): start one with "
                "`ulna serve CHECKPOINT --port PORT`",
                passing=True,
            ) from None
        self._socket: socket.socket = plain
        keep_alive(plain)
        try:
            if uri.secure:
                self._socket = _tls(plain, uri.host, fingerprint, ca_file, address)
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
            self._buffer = np.empty(0, np.uint8)  # of the frames that are sent
            self._protocol = ClientProtocol(uri, max_size=MAX_REPLY_BYTES)
            self._frames: list[Frame] = []
            self._messages: list[bytes | str] = []
            self._shake_hands(key, deadline)
        except BaseException:
            self._socket.close()
            raise

    def __del__(self) -> None:
        if hasattr(self, "_socket"):
            self._socket.close()

    def send(self, data: bytes | memoryview, deadline: float) -> None:
        """One message. Late, where the other side takes none of it."""
        self._look()
        try:
            self._socket.settimeout(_left(deadline))
            self._socket.sendall(self._frame(data))
        except TimeoutError:
            self.close()
            raise NotTaken(f"the server at {self.url} took no message in time") from None
        except OSError:
            self._say_why()

    def receive(self, deadline: float) -> bytes | str:
        """The next message, whole by the deadline, or Late."""
        while not self._messages:
            self._pump(deadline)
        return self._messages.pop(0)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._protocol.state is OPEN:
                self._protocol.send_close(1000)
                self._socket.settimeout(0.2)
                self._flush()
        self._socket.close()

    def _shake_hands(self, key: str | None, deadline: float) -> None:
        protocol = self._protocol
        request = protocol.connect()
        if key is not None:
            request.headers["Authorization"] = f"Bearer {key}"
        protocol.send_request(request)
        try:
            while protocol.state is CONNECTING:  # what comes with the answer may end it again
                self._pump(deadline)
                if (error := protocol.handshake_exc) is not None:
                    raise error
        except (ChannelError, InvalidHandshake, EOFError) as error:
            if isinstance(error, InvalidStatus) and error.response.body:
                sentence = bytes(error.response.body).decode("utf-8", "replace").strip()
                raise ChannelError(
                    f"the server at {self.url} refused the connection: {sentence:.300}",
                    passing=error.response.status_code == 503,
                ) from None
            reason = error or type(error).__name__
            raise ChannelError(
                f"what answers at {self.url} is no policy server: {reason}"
                + ("" if self.url.startswith("wss:") else " (of one with --tls the address is wss://)"),
                passing=isinstance(error, EOFError | ChannelError),
            ) from None

    def _pump(self, deadline: float) -> None:
        """Wait for what arrives next, and answer what the protocol answers by itself."""
        try:
            self._socket.settimeout(_left(deadline))
            self._flush()
            data = self._socket.recv(PIECE)
            if time.monotonic() > deadline:  # however much drips in
                raise TimeoutError
        except TimeoutError:
            self.close()
            raise Late(f"the server at {self.url} did not answer in time") from None
        except OSError:
            data = b""
        self._take(data)

    def _look(self) -> None:
        """Whether the other side closed meanwhile, or asked for a sign of life."""
        while not self._messages and self._poll.poll(0):
            self._socket.settimeout(0)
            try:
                data = self._socket.recv(PIECE)
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            except OSError:
                data = b""
            self._take(data)
            with contextlib.suppress(OSError):  # sending says so, too
                self._flush()
        if self._messages:
            self.close()
            raise ChannelError(f"the server at {self.url} sent garbage: nobody asked for it")

    def _say_why(self) -> None:
        """Sending failed; the server may have said why before it closed."""
        deadline = time.monotonic() + 0.5
        while not self._messages:
            self._pump(deadline)

    def _take(self, data: bytes) -> None:
        protocol = self._protocol
        if data:
            protocol.receive_data(data)
        else:
            protocol.receive_eof()
        for event in protocol.events_received():
            if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._frames.append(event)
                if event.fin:
                    whole = b"".join(bytes(f.data) for f in self._frames)
                    text = self._frames[0].opcode is Opcode.TEXT
                    self._messages.append(whole.decode("utf-8", "replace") if text else whole)
                    self._frames = []
        if self._messages or (protocol.state is OPEN and protocol.parser_exc is None):
            return
        if protocol.handshake_exc is not None or (protocol.close_rcvd is None and data):
            if protocol.parser_exc is not None and protocol.handshake_exc is None:
                self.close()
                raise ChannelError(f"the server at {self.url} sent garbage: {protocol.parser_exc}")
            return
        with contextlib.suppress(OSError):
            self._flush()
        self._socket.close()
        raise _closed(self.url, protocol)

    def _frame(self, data: bytes | memoryview) -> memoryview:
        """A binary message as a client sends it, masked by four random bytes (RFC 6455 §5.3); in the same
        memory each time."""
        n, mask = len(data), os.urandom(4)
        head = struct.pack("!BB", 0x82, 0x80 | (n if n < 126 else 126 if n < 1 << 16 else 127))
        head += b"" if n < 126 else struct.pack("!H" if n < 1 << 16 else "!Q", n)
        head += mask
        # so that the body lies where words are quick
        begin = 16 - len(head)
        if len(self._buffer) < 16 + n:
            self._buffer = np.empty(16 + n + n // 4, np.uint8)
        frame = self._buffer[: 16 + n]
        frame[begin:16] = np.frombuffer(head, np.uint8)
        body, source, whole = frame[16:], np.frombuffer(data, np.uint8), n & ~3
        if whole:
            words, key = source[:whole].view(np.uint32), np.frombuffer(mask, np.uint32)
            np.bitwise_xor(words, key, out=body[:whole].view(np.uint32))
        for i in range(whole, n):
            body[i] = source[i] ^ mask[i & 3]
        return memoryview(frame)[begin:]

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._socket.sendall(data)


def _closed(url: str, protocol: ClientProtocol) -> ChannelError:
    close = protocol.close_rcvd
    if close is not None and close.code == 1009:
        return ChannelError(f"the server at {url} refused the message: it is too large")
    if close is not None and close.code in (1002, 1003, 1007, 1008, 1013):
        return ChannelError(f"the server at {url} closed the connection: {close.reason or close.code}")
    return ChannelError(f"the server at {url} closed the connection: it stopped or died", passing=True)


def _left(deadline: float) -> float:
    """Seconds; never none, which would mean not to wait at all."""
    return max(deadline - time.monotonic(), 0.001)


def _tls(
    plain: socket.socket,
    host: str,
    fingerprint: str,
    ca_file: str | os.PathLike[str] | None,
    url: str,
) -> socket.socket:
    """ChannelError where the server is not the one that is meant."""
    pinned = fingerprint.replace(":", "").lower()
    if pinned and (len(pinned) != 64 or set(pinned) - set("0123456789abcdef")):
        raise ChannelError(
            f"#{fingerprint:.80} is no SHA-256 fingerprint: copy what `ulna serve --tls` shows"
        )
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ChannelError(f"the certificates in {ca_file} cannot be read: {error}") from None
    if pinned:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        secure = context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise ChannelError(
            f"the certificate of {url} is not trusted ({error.verify_message}): add the fingerprint that the "
            "server shows, wss://HOST:PORT#FINGERPRINT, or name the file of its authority in SSL_CERT_FILE"
        ) from None
    except (OSError, ssl.SSLError) as error:
        raise ChannelError(
            f"{url} does not speak TLS ({error}): of a server without --tls the address is ws://",
            passing=True,
        ) from None
    given = hashlib.sha256(secure.getpeercert(binary_form=True) or b"").hexdigest()
    if pinned and given != pinned:
        secure.close()
        raise ChannelError(
            f"{url} shows another certificate, {given[:16]}…, than the {pinned[:16]}… that is named: it was "
            "made anew, or this is another server"
        )
    return secure
