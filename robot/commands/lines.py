"""Progress where nobody watches a terminal: plain lines, for log files and job queues."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import Progress, Task, TaskID

EVERY_S = 10.0
EVERY_SHARE = 0.05
LEAST_S = 1.0  # between two lines, but for the last


class Lines(Progress):
    """A progress bar's methods. An update prints a line when 10 s have passed or 5 % more are done since the
    last one, at most one a second, and one at the end. write: where lines go."""

    def __init__(
        self,
        description: str,
        console: Console,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(console=console, disable=True, get_time=clock)
        self._description, self._write, self._clock = description, write, clock
        self._last: dict[TaskID, tuple[float, float]] = {}  # when a line was printed, and the share done then

    def add_task(self, *args: Any, **kwargs: Any) -> TaskID:
        task = super().add_task(*args, **kwargs)
        self._last[task] = (self._clock(), 0.0)
        return task

    def update(self, task_id: TaskID, **kwargs: Any) -> None:
        super().update(task_id, **kwargs)
        task, now = self._tasks[task_id], self._clock()
        share = task.completed / task.total if task.total else 0.0
        printed_at, printed_share = self._last[task_id]
        if share >= 1 > printed_share or (
            now - printed_at >= LEAST_S
            and (now - printed_at >= EVERY_S or share - printed_share > EVERY_SHARE - 1e-9)
        ):
            self._last[task_id] = (now, share)
            self._write(line(self._description, task))


def line(description: str, task: Task) -> str:
    """`training: 500 of 5000, loss 0.0123, 812 examples/s, 2:10 left`."""
    count = f"{task.completed:g}" + (f" of {task.total:g}" if task.total else "")
    parts = [f"{description}: {count}", task.fields.get("note", "")]
    if task.total and task.completed < task.total and (left := task.time_remaining) is not None:
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left")
    return ", ".join(p for p in parts if p)
