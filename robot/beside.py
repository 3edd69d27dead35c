"""Commands of `ulna` that run beside this program for a while: a server, a twin."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

ULNA = (sys.executable, "-m", "ulna.robot.cli")


class NotStarted(RuntimeError):
    """The command ended before it was ready; its own message is on standard error."""


@contextlib.contextmanager
def beside(*words: str, own_session: bool = False) -> Iterator[dict[str, Any]]:
    """Run `ulna` with `words` for the length of a `with` block; yields its --json answer once it is ready.
    own_session: a Ctrl-C in this terminal does not reach it, so that it lives until what asks it has
    ended."""
    command = [*ULNA, *words, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=own_session)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise NotStarted(f"`ulna {words[0]}` did not start: its own words are above")
        yield json.loads(line)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
