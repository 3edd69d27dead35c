"""What leaves for a terminal. Names, tasks and notes come from files that anyone may have written; a control
character in one could move the cursor, set the window's title or answer in the user's place. So everything is
cleaned once, where it leaves."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

# all control characters but newline and tab, what reverses or hides text, and halves of characters, which no
# stream can encode
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def clean(text: str) -> str:
    """`text` with every unsafe character written out, such as `\\x1b`."""
    return UNSAFE.sub(_written_out, text)


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class CleanStream:
    """A text stream that cleans what is written to it. raw: the stream itself, for what draws on a
    terminal."""

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        self.raw.write(clean(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


@contextlib.contextmanager
def clean_streams() -> Iterator[None]:
    """Clean standard output and standard error within a `with` block."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = CleanStream(before[0]), CleanStream(before[1])  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def console() -> Any:
    """A rich Console on standard error. Its own drawing passes; texts that it is given are cleaned."""
    from rich.console import Console
    from rich.segment import Segment

    class CleanConsole(Console):
        def _render_buffer(self, buffer: Iterable[Segment]) -> str:
            return super()._render_buffer(s if s.control else Segment(clean(s.text), s.style) for s in buffer)

    return CleanConsole(file=getattr(sys.stderr, "raw", sys.stderr))
