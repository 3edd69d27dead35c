"""Instructions that somebody gives while the policy runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .director import Instruct, Moment, Order

if TYPE_CHECKING:
    from ..config import Rig

MOST_BYTES = 4096  # of the file that are read: an instruction is short, and the robot's loop does not wait


@dataclass
class Spoken:
    """The policy is told the last line of a file whenever that changes: `echo "push the red puck left" >>
    words.txt`. What stood there before an episode is not said in it. For policies that are told in words what
    to do."""

    file: str = ""
    """The file, which need not be there yet."""

    def open(self, rig: Rig) -> None:
        if not self.file:
            raise ValueError("Spoken reads instructions from a file: --Spoken.file words.txt")
        if Path(self.file).is_dir() or not Path(self.file).absolute().parent.is_dir():
            raise ValueError(f"Spoken cannot read {self.file}: name a file in a folder that is there")
        self._stamp = self._now()

    def close(self) -> None:
        pass

    def reset(self, task: str, seed: int) -> None:
        self._task, self._stamp = task, self._now()

    def direct(self, moment: Moment) -> Order | None:
        stamp = self._now()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        task = self._last_line()
        if not task or task == self._task:
            return None
        self._task = task
        return Instruct(task, f"told: {task}")

    def _now(self) -> tuple[int, int] | None:
        """What changes when the file does; None where it is not there."""
        try:
            stat = os.stat(self.file)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size

    def _last_line(self) -> str:
        try:
            with Path(self.file).open("rb") as f:
                f.seek(max(0, os.fstat(f.fileno()).st_size - MOST_BYTES))
                text = f.read(MOST_BYTES).decode(errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else ""
