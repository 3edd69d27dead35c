"""The envelope of an exported policy: what its file says of itself, and how a changed byte is noticed. No
torch, no onnx.

An ONNX file is a protobuf message, and of a repeated field the last bytes of a file may be one more entry:
the digest of all bytes before it stands there."""

from __future__ import annotations

import hashlib

METADATA, STATS, SAMPLING, DIGEST = "ulna.metadata", "ulna.stats", "ulna.sampling", "ulna.sha256"


class ExportedError(ValueError):
    """The file is no exported policy, or not as it was written; the message says what is wrong."""


def sealed(model: bytes) -> bytes:
    """The bytes of the file."""
    return model + _entry(hashlib.sha256(model).hexdigest())


def require_sealed(path: object, data: bytes) -> None:
    """ExportedError unless they are as `sealed` gave them."""
    size = len(_entry("0" * 64))
    if data[-size:] != _entry(hashlib.sha256(data[:-size]).hexdigest()):
        raise ExportedError(
            f"{path} is no policy that `ulna export` wrote, or it is damaged: its digest is not that of its "
            "bytes"
        )


def _entry(digest: str) -> bytes:
    """`metadata_props` (field 14 of ModelProto) with key and value."""
    key, value = DIGEST.encode(), digest.encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
    return b"\x72" + bytes([len(entry)]) + entry
