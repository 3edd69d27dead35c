"""The wire: openpi's WebSocket frames of msgpack with numpy arrays as maps, so that its stock client works.

An array is `{b"__ndarray__": True, b"data": bytes in C order, b"dtype": "<f4", b"shape": [...]}`, a numpy
scalar `{b"__npgeneric__": True, b"data": item, b"dtype": ...}`. Described from openpi-client 0.1.2's
behaviour; nothing here is pickled. `request` says what the messages hold.

msgpack's own reader builds whatever it is sent before anybody can refuse it: a byte may become a hundred. So
messages are read here, by msgpack's specification, against limits that are counted as values are read.
Arrays are not copied."""

from __future__ import annotations

import math
import struct
from typing import Any

import msgpack
import numpy as np

KINDS = "biufSU"  # what may travel: no objects, no structs, no complex
MAX_ELEMENTS = 1 << 16  # values in a message, those inside maps and lists included; not those inside arrays
MAX_TEXT_BYTES = 1 << 20  # of a message's text together: a character may take four times its byte
MAX_DEPTH = 32
PAGE = 4096  # bytes that are copied count as one value each so many
MAX_DTYPE = 16  # characters

_NUMBERS = {
    0xCA: struct.Struct(">f"),
    0xCB: struct.Struct(">d"),
    0xCC: struct.Struct(">B"),
    0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"),
    0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"),
    0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"),
    0xD3: struct.Struct(">q"),
}
_DTYPES = {d.str: d for d in map(np.dtype, ("u1", "u2", "i2", "i4", "i8", "f2", "f4", "f8", "?"))}
_DTYPE_BYTES = {bytes([0xA0 | len(name)]) + name.encode(): dtype for name, dtype in _DTYPES.items()}
# (what it is, bytes of the length that follows)
_SIZED = {
    0xC4: ("bin", 1),
    0xC5: ("bin", 2),
    0xC6: ("bin", 4),
    0xD9: ("str", 1),
    0xDA: ("str", 2),
    0xDB: ("str", 4),
    0xDC: ("list", 2),
    0xDD: ("list", 4),
    0xDE: ("map", 2),
    0xDF: ("map", 4),
}
# an array's map after its first byte, as openpi's client and ours write it
_HEAD = b"\xc4\x0b__ndarray__\xc3\xc4\x04data"
_DTYPE, _SHAPE = b"\xc4\x05dtype", b"\xc4\x05shape"
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


class ProtocolError(ValueError):
    """Bytes that are not what the protocol allows; the message is one sentence."""


class TooManyElements(ProtocolError):
    """A message of more values than the reader was to read."""


class BadRequest(ValueError):
    """A well-formed request that the policy cannot answer; the message names what does not fit."""


class Expired(BadRequest):
    """The request's deadline passed, and it was not computed."""


class Unavailable(BadRequest):
    """The server does not compute this request, whatever it holds: a newer one took its place, or the server
    stops."""


def brief(value: Any) -> str:
    """A value as a sentence names it. The repr of what a stranger sends may be long, and take minutes to
    make."""
    if isinstance(value, str | bytes):
        return repr(value[:60])
    if value is None or isinstance(value, bool | int | float | np.number):
        return repr(value)
    return f"a {type(value).__name__}"


def pack(message: Any) -> bytes:
    """Dicts, lists, scalars, strings, bytes and numpy arrays to bytes."""
    return msgpack.packb(message, default=_encode)  # type: ignore[return-value]


class Packer:
    """`pack` into the same memory again and again."""

    def __init__(self) -> None:
        self._packer = msgpack.Packer(default=_encode, autoreset=False)

    def pack(self, message: Any) -> memoryview:
        """To be released before the next call."""
        self._packer.reset()
        self._packer.pack(message)
        return memoryview(self._packer.getbuffer())


def unpack(data: bytes | memoryview, most: int = MAX_ELEMENTS) -> Any:
    """The inverse; arrays are read-only, and views of `data` where they are large. Takes time and memory in
    proportion to `data`, whatever it holds. ProtocolError says what is wrong; TooManyElements that there are
    more than `most` values."""
    try:
        reader = _Reader(data, most)
        value = reader.value(0)
        if reader.at != len(reader.view):
            raise ProtocolError(
                f"the message is not msgpack: {len(reader.view) - reader.at} bytes follow its end"
            )
        return _whole(value)
    except ProtocolError:
        raise
    except (IndexError, struct.error):
        raise ProtocolError("the message is not msgpack: it ends too early") from None
    except UnicodeDecodeError:
        raise ProtocolError("the message is not msgpack: its text is not UTF-8") from None


class _Reader:
    """Reads one message from its first byte on; `at` is the next one."""

    __slots__ = ("at", "left", "most", "text_left", "view")

    def __init__(self, data: bytes | memoryview, most: int) -> None:
        self.view = memoryview(data).toreadonly()
        self.at, self.left, self.most, self.text_left = 0, most, most, MAX_TEXT_BYTES

    def value(self, depth: int) -> Any:
        """The next value; bytes are views of the message, for whoever keeps them to copy."""
        view, at = self.view, self.at
        kind = view[at]
        self.at = at + 1
        self.left -= 1
        if self.left < 0:
            self._spend(0)
        if kind < 0x80:
            return kind
        if kind >= 0xE0:
            return kind - 0x100
        if kind >= 0xC0:
            return self._long(kind, at + 1, depth)
        if kind >= 0xA0:
            return self._text(kind & 0x1F)
        return self._map(kind & 0x0F, depth) if kind < 0x90 else self._list(kind & 0x0F, depth)

    def _long(self, kind: int, at: int, depth: int) -> Any:
        """The value of this kind, whose rest begins at `at`."""
        if (number := _NUMBERS.get(kind)) is not None:
            self.at = at + number.size
            return number.unpack_from(self.view, at)[0]
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if (sized := _SIZED.get(kind)) is not None:
            what, length = sized
            self.at = at + length
            size = int.from_bytes(self._next(at, length), "big")
            if what == "bin":
                return self._bytes(size)
            if what == "str":
                return self._text(size)
            return self._list(size, depth) if what == "list" else self._map(size, depth)
        if kind == 0xC1:
            raise ProtocolError("the message is not msgpack: no value begins with the byte c1")
        raise ProtocolError("the message holds a msgpack extension type, and this protocol has none")

    def _spend(self, elements: int) -> None:
        self.left -= elements
        if self.left < 0:
            raise TooManyElements(
                f"a message may hold {self.most} values, maps and lists included, and this one holds more: "
                "send numbers as numpy arrays"
            )

    def _next(self, at: int, size: int) -> memoryview:
        if at + size > len(self.view):
            raise IndexError
        return self.view[at : at + size]

    def _bytes(self, size: int) -> memoryview:
        taken = self._next(self.at, size)
        self.at += size
        return taken

    def _text(self, size: int) -> str:
        self.text_left -= size
        if self.text_left < 0:
            raise ProtocolError(f"a message may hold {MAX_TEXT_BYTES} bytes of text, and this one holds more")
        at = self.at
        self.at = end = at + size
        if end > len(self.view):
            raise IndexError
        return str(self.view[at:end], "utf-8")

    def _list(self, size: int, depth: int) -> list[Any]:
        self._descend(size, depth)
        return [self._copied(self.value(depth + 1)) for _ in range(size)]

    def _map(self, size: int, depth: int) -> Any:
        self._descend(size, depth)
        if size == 4 and (array := self._plain_array()) is not None:
            return array
        found: dict[Any, Any] = {}
        for _ in range(size):
            key = self.value(depth + 1)
            if type(key) is not str:
                if type(key) is not memoryview:
                    raise ProtocolError(
                        f"the message is not msgpack as it is spoken here: keys are text, not {brief(key)}"
                    )
                key = bytes(key)
            found[key] = self.value(depth + 1)
        if b"__ndarray__" in found:
            return _decoded_array(found)  # what it is made of is left where it is
        for key, value in found.items():
            if type(value) is memoryview:
                found[key] = self._copied(value)
        return _decoded_scalar(found) if b"__npgeneric__" in found else found

    def _plain_array(self) -> np.ndarray | None:
        """The array that begins here as clients write it: keys in their order, a common dtype, a length of
        each side below 65536; three times quicker than as a map. None, and nothing read, where it is not so,
        or where it is wrong."""
        view, began = self.view, self.at
        at = began + len(_HEAD)
        if view[began:at] != _HEAD or not 0xC4 <= view[at] <= 0xC6:
            return None
        begin = at + 1 + (1 << view[at] - 0xC4)
        end = begin + int.from_bytes(view[at + 1 : begin], "big")
        at = end + len(_DTYPE)
        if view[end:at] != _DTYPE:  # nor where the message ends before
            return None
        named = at + 1 + (view[at] & 0x1F)
        dtype = _DTYPE_BYTES.get(bytes(view[at:named]))
        at = named + len(_SHAPE)
        if dtype is None or view[named:at] != _SHAPE or view[at] & 0xF0 != 0x90:
            return None
        sides, at = view[at] & 0x0F, at + 1
        shape: list[int] = []
        for _ in range(sides):
            kind = view[at]
            if kind < 0x80:
                shape.append(kind)
                at += 1
            elif kind == 0xCC:
                shape.append(view[at + 1])
                at += 2
            elif kind == 0xCD:
                shape.append(view[at + 1] << 8 | view[at + 2])
                at += 3
            else:
                return None
        if math.prod(shape) * dtype.itemsize != end - begin:
            return None
        self.at = at
        self._spend(3 + sides)
        return _array(view[begin:end], dtype, shape)

    def _descend(self, size: int, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise ProtocolError(f"a message may be {MAX_DEPTH} maps and lists deep, and this one is deeper")
        if size > len(self.view) - self.at:
            raise IndexError

    def _copied(self, value: Any) -> Any:
        if type(value) is memoryview:
            self._spend(len(value) // PAGE)
            return bytes(value)
        return value


def _whole(value: Any) -> Any:
    return bytes(value) if type(value) is memoryview else value


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        _require_kind(value.dtype)
        data = np.ascontiguousarray(value).reshape(-1)
        return {
            b"__ndarray__": True,
            b"data": memoryview(data.view(np.uint8)) if data.nbytes else b"",
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        _require_kind(value.dtype)
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _decoded_array(value: dict[Any, Any]) -> np.ndarray:
    try:
        data, shape, dtype = value[b"data"], value[b"shape"], _dtype(value[b"dtype"])
    except (KeyError, TypeError, ValueError):
        raise ProtocolError("an array lacks its data, a dtype or its shape") from None
    _require_kind(dtype)
    if type(data) is not memoryview or not isinstance(shape, list):
        raise ProtocolError("an array's data must be bytes and its shape a list")
    if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 16:
        raise ProtocolError("an array's shape must be up to 16 whole numbers")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ProtocolError(f"an array of {dtype} {tuple(shape)} cannot have {len(data)} bytes")
    return _array(data, dtype, shape)


def _decoded_scalar(value: dict[Any, Any]) -> Any:
    try:
        dtype, item = _dtype(value[b"dtype"]), value[b"data"]
        _require_kind(dtype)
        if not isinstance(item, bool | int | float | str | bytes):
            raise TypeError("not a scalar")
        return dtype.type(item)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ProtocolError("a numpy scalar lacks its value or a dtype that fits it") from None


def _array(data: memoryview, dtype: np.dtype, shape: list[int]) -> np.ndarray:
    try:
        # numpy makes no empty array of a buffer
        array = np.frombuffer(data, dtype).reshape(shape) if len(data) else np.empty(shape, dtype)
    except ValueError:
        raise ProtocolError(f"no array of {dtype} has the shape {tuple(shape)}") from None
    if len(data) < PAGE or not array.flags.aligned:
        array = array.copy()  # torch wants it aligned, and a small view would keep the whole message
        array.flags.writeable = False
    return array


def _dtype(name: Any) -> np.dtype:
    if not isinstance(name, str) or len(name) > MAX_DTYPE:  # numpy takes None for float64
        raise TypeError("a dtype is text")
    dtype = _DTYPES.get(name) or np.dtype(name)
    if not dtype.itemsize:  # any number of them would be no bytes
        raise TypeError("items have bytes")
    return dtype


def _require_kind(dtype: np.dtype) -> None:
    if dtype.kind not in KINDS:
        raise ProtocolError(f"arrays of {dtype} are not allowed: send numbers, booleans or text")
