"""The bytes of GR00T's wire: msgpack with numpy arrays in it, in the two ways that its clients have.

N1.5 and N1.6 send `{"__ndarray_class__": true, "as_npy": the bytes of an .npy file}`, others
`{b"nd": true, b"type": "<f4", b"kind": "", b"shape": [...], b"data": bytes}`, as the package msgpack-numpy
does. N1's `torch.save` is a pickle and is not read. Source: NVIDIA/Isaac-GR00T's `gr00t/policy/server_client`
and `gr00t/eval/service`; inspect-robots-unitree-g1 0.1.1."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from .protocol import KINDS, ProtocolError

MAX_ELEMENTS = 1 << 16  # of all maps and lists of a message: an array is one
NPY = b"\x93NUMPY"


def unpack(data: bytes) -> tuple[Any, bool]:
    """(the message, whether its arrays are msgpack-numpy's). ProtocolError says what is wrong."""
    elements, others = 0, False

    def count(value: Any) -> Any:
        nonlocal elements
        elements += len(value) + 1
        if elements > MAX_ELEMENTS:
            raise ProtocolError(f"a message may hold {MAX_ELEMENTS} values, and this one holds more")
        return value

    def decode(value: dict[Any, Any]) -> Any:
        nonlocal others
        count(value)
        if "__ndarray_class__" in value:
            return _npy(value.get("as_npy"))
        if b"nd" in value or "nd" in value:
            others = True
            return _numpy({k.decode() if isinstance(k, bytes) else k: v for k, v in value.items()})
        return value

    try:
        message = msgpack.unpackb(
            data,
            object_hook=decode,
            list_hook=count,
            max_ext_len=0,
            max_array_len=MAX_ELEMENTS,
            max_map_len=MAX_ELEMENTS,
        )
    except ProtocolError:
        raise
    except Exception as error:  # noqa: BLE001  msgpack raises a dozen kinds for malformed input, all meaning the same here
        raise ProtocolError(f"the message is not msgpack: {error or type(error).__name__}") from None
    return message, others


def pack(message: Any, others: bool = False) -> bytes:
    """The inverse. others: write arrays as msgpack-numpy does."""

    def encode(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            raise TypeError(f"a {type(value).__name__} cannot be sent")
        if others:
            kind = {b"kind": b"", b"shape": value.shape, b"data": value.tobytes()}
            return {b"nd": True, b"type": value.dtype.str, **kind}
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": buffer.getvalue()}

    return msgpack.packb(message, default=encode)  # type: ignore[return-value]


def _npy(data: Any) -> np.ndarray:
    """The array of an .npy file in memory: its header is read, its data only looked at, so that no header
    makes an array that is not there."""
    if not isinstance(data, bytes) or not data.startswith(NPY):
        raise ProtocolError("an array is the bytes of an .npy file, and this is none")
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError("unknown version")
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
    except Exception as error:  # noqa: BLE001  what Python's parser raises, which the header goes through
        raise ProtocolError(f"an array's header is broken: {type(error).__name__}") from None
    return _array(data[file.tell() :], dtype, shape, "F" if fortran else "C")


def _numpy(value: Mapping[str, Any]) -> Any:
    try:
        dtype = np.dtype(_text(value["type"]))
        if value["nd"] is not True:
            return _array(value["data"], dtype, (), "C")[()]
        if value.get("kind"):
            raise ProtocolError("arrays of objects and structs are not read: send numbers")
        return _array(value["data"], dtype, tuple(value["shape"]), "C")
    except ProtocolError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, SyntaxError):
        raise ProtocolError("an array lacks its data, a dtype or its shape") from None


def _text(value: Any) -> str:
    """numpy takes None for float64, and lists for structs."""
    return value.decode() if isinstance(value, bytes) else str.__str__(value)


def _array(data: Any, dtype: np.dtype, shape: Any, order: Any) -> np.ndarray:
    if dtype.kind not in KINDS:
        raise ProtocolError(f"arrays of {dtype} are not allowed: send numbers, booleans or text")
    if len(shape) > 16 or not all(type(n) is int and n >= 0 for n in shape):
        raise ProtocolError("an array's shape is up to 16 whole numbers")
    if not isinstance(data, bytes) or not dtype.itemsize or math.prod(shape) * dtype.itemsize != len(data):
        raise ProtocolError(f"an array of {dtype} {tuple(shape)} has other bytes than that")
    return np.frombuffer(data, dtype).reshape(shape, order=order)
