"""The wire: openpi's WebSocket frames of msgpack with numpy arrays as maps, so that its stock client works.

An array is `{b"__ndarray__": True, b"data": bytes in C order, b"dtype": "<f4", b"shape": [...]}`, a numpy
scalar `{b"__npgeneric__": True, b"data": item, b"dtype": ...}`. Described from openpi-client 0.1.2's
behaviour; nothing here is pickled. `request` says what the messages hold."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np

KINDS = "biufSU"  # what may travel: no objects, no structs, no complex
MAX_CONTAINERS = 1 << 16  # an empty map is one byte on the wire and 64 in memory


class ProtocolError(ValueError):
    """Bytes that are not what the protocol allows; the message is one sentence."""


class BadRequest(ValueError):
    """A well-formed request that the policy cannot answer; the message names what does not fit."""


def pack(message: Any) -> bytes:
    """Dicts, lists, scalars, strings, bytes and numpy arrays to bytes."""
    return msgpack.packb(message, default=_encode)  # type: ignore[return-value]


def unpack(data: bytes) -> Any:
    """The inverse; arrays are read-only views of `data`. ProtocolError says what is wrong."""
    containers = 0

    def count(value: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > MAX_CONTAINERS:
            raise ProtocolError(
                f"a message may hold {MAX_CONTAINERS} maps and lists, and this one holds more"
            )
        return value

    try:
        return msgpack.unpackb(data, object_hook=lambda value: count(_decode(value)), list_hook=count)
    except ProtocolError:
        raise
    except Exception as error:  # noqa: BLE001  msgpack raises a dozen kinds for malformed input, all meaning the same here
        raise ProtocolError(f"the message is not msgpack: {error or type(error).__name__}") from None


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        _require_kind(value.dtype)
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        _require_kind(value.dtype)
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        try:
            data, shape, dtype = value[b"data"], value[b"shape"], _dtype(value[b"dtype"])
        except (KeyError, TypeError, ValueError):
            raise ProtocolError("an array lacks its data, a dtype or its shape") from None
        _require_kind(dtype)
        if not isinstance(data, bytes) or not isinstance(shape, list | tuple):
            raise ProtocolError("an array's data must be bytes and its shape a list")
        if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 16:
            raise ProtocolError("an array's shape must be up to 16 whole numbers")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ProtocolError(f"an array of {dtype} {tuple(shape)} cannot have {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape)
    if b"__npgeneric__" in value:
        try:
            dtype, item = _dtype(value[b"dtype"]), value[b"data"]
            _require_kind(dtype)
            if not isinstance(item, bool | int | float | str | bytes):
                raise TypeError("not a scalar")
            return dtype.type(item)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ProtocolError("a numpy scalar lacks its value or a dtype that fits it") from None
    return value


def _dtype(name: Any) -> np.dtype:
    if not isinstance(name, str):  # numpy takes None for float64
        raise TypeError("a dtype is text")
    return np.dtype(name)


def _require_kind(dtype: np.dtype) -> None:
    if dtype.kind not in KINDS:
        raise ProtocolError(f"arrays of {dtype} are not allowed: send numbers, booleans or text")
