"""Files as other tools and machines leave them: JSON with a byte order mark or over several lines, pointers
of Git LFS in place of files, litter of macOS and Windows, and paths that lead out of a folder."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..episode import StoreError

MOST_TEXT_BYTES = 1 << 28
MOST_WHOLE = 1 << 62
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
BLANKS = re.compile(r"[\s\ufeff]*")
LFS = b"version https://git-lfs.github.com/spec/"
ANNEX = re.compile(rb"(?:\.\./)*(?:\.git)?/annex/objects/")
LITTER = re.compile(
    r"\._.*|__MACOSX|\.DS_Store|Thumbs\.db|desktop\.ini|\.Spotlight-V100|\.Trashes", re.IGNORECASE
)


def json_values(path: Path) -> list[Any]:
    """The JSON values in the file `path`, in UTF-8 or UTF-16: one a line (JSON lines), or over several lines
    each, or the elements of one list. Blank lines and byte order marks are passed over; only `\\n` ends a
    line. Raises StoreError."""
    text = _text(path)
    decoder = json.JSONDecoder()
    values: list[Any] = []
    at = _skip(text, 0)
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            values.append(value)
            at = _skip(text, at)
    except ValueError as error:
        place = getattr(error, "pos", at)
        line, reason = text.count("\n", 0, place) + 1, getattr(error, "msg", str(error))
        raise StoreError(f"{path} is no JSON: {reason} in line {line}") from None
    except RecursionError:
        raise StoreError(f"{path} is no JSON that can be used: it is nested too deeply") from None
    return values[0] if len(values) == 1 and isinstance(values[0], list) else values


def json_objects(path: Path) -> list[dict[str, Any]]:
    """Like `json_values`, each a JSON object."""
    values = json_values(path)
    if odd := [v for v in values if not isinstance(v, dict)]:
        raise StoreError(f"{path} must hold JSON objects, not {str(odd[0])[:40]!r}")
    return values


def json_object(path: Path) -> dict[str, Any]:
    """The one JSON object in the file `path`. Raises StoreError."""
    values = json_values(path)
    if len(values) != 1 or not isinstance(values[0], dict):
        raise StoreError(f"{path} must hold one JSON object")
    return values[0]


def whole(value: Any, what: str) -> int:
    """`value` as a whole number that is not negative. StoreError names `what` otherwise; JSON has 1e999 and
    NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_WHOLE:
        raise StoreError(f"{what} must be a whole number from 0 on, not {str(value)[:40]}")
    if value != int(value):
        raise StoreError(f"{what} must be a whole number, not {value}")
    return int(value)


def is_litter(path: str | Path) -> bool:
    """Whether a file or folder is what macOS and Windows leave beside those that they copy."""
    return any(LITTER.fullmatch(part) for part in Path(path).parts)


def without_litter(root: Path, paths: Iterable[Path]) -> Iterator[Path]:
    """Those of `paths` below `root` that are no litter."""
    return (p for p in paths if not is_litter(p.relative_to(root)))


def require_content(path: Path) -> None:
    """Raise StoreError where `path` holds a pointer of Git LFS or git-annex instead of the file."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return
    if head.startswith(LFS):
        raise StoreError(
            f"{path} is a pointer of Git LFS and not the file itself: run `git lfs pull` in its repository"
        )
    if ANNEX.match(head):
        raise StoreError(
            f"{path} is a pointer of git-annex and not the file itself: run `git annex get .` there"
        )


class Root:
    """A folder that nothing may lead out of. What a Hugging Face cache links to counts as inside: the files
    of `snapshots/<revision>` are links to `blobs`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        real = Path(os.path.realpath(path))
        blobs = [p.parent / "blobs" for p in real.parents if p.name == "snapshots"]
        self._roots = (real, *blobs[:1])

    def require_inside(self, path: Path) -> None:
        """Raise StoreError unless `path`, below this folder, is inside it with all links followed."""
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(root) for root in self._roots):
            raise StoreError(
                f"{path} leads out of the folder {self.path}, to {real}: refused; if that is meant, copy the "
                "folder with its links followed (cp -rL)"
            )

    def require_file(self, path: Path) -> None:
        """Raise StoreError unless `path` is a regular file inside, with its content."""
        self.require_inside(path)
        if not path.is_file():
            raise StoreError(
                f"the file {path} is missing" if not path.exists() else f"{path} is no regular file"
            )
        require_content(path)


def _text(path: Path) -> str:
    if not path.is_file():
        raise StoreError(f"there is no file {path}")
    require_content(path)
    try:
        if (size := path.stat().st_size) > MOST_TEXT_BYTES:
            raise StoreError(f"{path} has {size} bytes, too many for JSON: refused")
        data = path.read_bytes()
        encoding = next((e for mark, e in MARKS.items() if data.startswith(mark)), "utf-8")
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is no text in UTF-8: byte {error.start} does not belong there") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def _skip(text: str, at: int) -> int:
    match = BLANKS.match(text, at)
    return match.end() if match else at
