"""Who may ask a server: keys, and how often an address may try one."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SCHEMES = ("bearer", "api-key")  # HTTP's, and the one that openpi's client sends
SHORTEST = 16  # characters of a key; a right one is never throttled, so that guessing it must be hopeless
TRIES = 5  # wrong keys from an address that are each told so
TRY_S = 2.0  # after so long it has one more
ADDRESSES = 4096  # that are remembered


@dataclass(frozen=True)
class Refusal:
    """Why somebody is not let in, as HTTP says it."""

    status: int
    sentence: str


class Access:
    """Lets in whoever has one of `keys`; everybody, where there are none."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        # digests of one length, so that a comparison tells nothing of a key
        self._digests = [_digest(key.encode()) for key in keys]
        self._tries: OrderedDict[str, tuple[float, float]] = OrderedDict()

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return not self._digests

    def refuse(self, address: str, authorization: str | None) -> Refusal | None:
        """None where the sender at `address` is let in. authorization: its HTTP header."""
        if self.is_open:
            return None
        scheme, _, key = (authorization or "").strip().partition(" ")
        given = _digest(key.strip().encode("utf-8", "surrogateescape"))
        # all are compared, whichever fits
        fits = sum(hmac.compare_digest(given, digest) for digest in self._digests)
        if scheme.lower() in SCHEMES and fits:
            return None  # whoever else sends wrong ones from there: behind a tunnel all are one address
        now, source = time.monotonic(), _network(address)
        left, since = self._tries.get(source, (float(TRIES), now))
        left = min(TRIES, left + (now - since) / TRY_S)
        if left < 1:
            return Refusal(
                429, f"too many wrong keys came from {address}: try again in {TRY_S:g} s, with the right one"
            )
        if authorization is None:
            return Refusal(
                403, "this server asks for a key: send it as `Authorization: Bearer KEY` (ULNA_KEY_FILE=FILE)"
            )
        self._tries[source] = left - 1, now
        self._tries.move_to_end(source)
        if len(self._tries) > ADDRESSES:
            self._tries.popitem(last=False)
        return Refusal(403, "the key is none of this server's: ask whoever runs it for its key file")


def read_keys(file: str | Path) -> list[str]:
    """The keys of `file`, one a line; what follows a # is a note. ValueError says what is wrong with it."""
    try:
        lines = Path(file).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"the key file {file} cannot be read: {reason}") from None
    keys = [key for line in lines if (key := line.partition("#")[0].strip())]
    if not keys:
        raise ValueError(
            f"the key file {file} holds no key: write one a line, such as {secrets.token_hex(16)}"
        )
    for number, key in enumerate(keys, 1):
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"key {number} of {file} is no key: it has at least {SHORTEST} letters or digits, no spaces"
            )
    return keys


def make_key_file(file: str | Path) -> None:
    """A new key in a new file that only its owner can read. OSError where there is one already."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(secrets.token_hex(32) + "\n")


def is_loopback(address: str) -> bool:
    """Whether only this machine can be meant."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return address == "localhost"


def _network(address: str) -> str:
    """Who counts as one sender: an address, of IPv6 the 64 bits that one household has."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.version == 6:
        ip = ip.ipv4_mapped or ip
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((int(ip), 64), strict=False))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
