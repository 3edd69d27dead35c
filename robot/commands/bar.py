"""How far a command is, on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .terminal import console

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """What is shown. `update` fits as the callback of whatever counts to a total."""

    def __init__(self, shown: Progress, total: float | None, completed: int) -> None:
        self._shown = shown
        self._task = shown.add_task("", total=total, completed=completed, note="")

    def update(self, completed: float, total: float | None = None, note: str | None = None) -> None:
        """None: as it was."""
        fields: dict[str, Any] = {} if note is None else {"note": note}
        self._shown.update(self._task, completed=completed, total=total, **fields)

    @property
    def completed(self) -> float:
        return self._shown.tasks[0].completed

    def print(self, line: str) -> None:
        """Above the bar."""
        self._shown.console.print(line, markup=False, highlight=False)


@contextlib.contextmanager
def progress(description: str, total: float | None = None, completed: int = 0) -> Iterator[Bar]:
    """total: None where it is not known yet."""
    with _shown(description) as shown:
        yield Bar(shown, total, completed)


def _shown(description: str) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    screen = console()
    if not screen.is_terminal:
        from .lines import Lines

        return Lines(description, screen, lambda text: print(text, file=sys.stderr, flush=True))
    return Progress(
        TextColumn(description),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=screen,
    )
