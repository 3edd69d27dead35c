"""What the filter did in an episode, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ...datasets.flags import HELD, LIMITED


class Tally:
    """ticks: all that were counted; limited, held: those with that flag; reasons: ticks by reason."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.ticks = self.limited = self.held = 0
        self.reasons: Counter[str] = Counter()

    def count(self, flags: int, reasons: Sequence[str]) -> None:
        self.ticks += 1
        self.limited += bool(flags & LIMITED)
        self.held += bool(flags & HELD)
        self.reasons.update(reasons)

    def add(self, other: Tally) -> None:
        """What another one counted, too."""
        self.ticks += other.ticks
        self.limited += other.limited
        self.held += other.held
        self.reasons += other.reasons

    def numbers(self) -> Mapping[str, int]:
        """For a recording's or a report's metadata; {} when nothing was limited."""
        if not self.limited:
            return {}
        return {"ticks": self.ticks, "limited": self.limited, "held": self.held, **self.reasons}

    def __str__(self) -> str:
        """One line for the screen, "" when nothing was limited."""
        if not self.limited:
            return ""
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.reasons.most_common())
        held = f", held in {self.held}" if self.held else ""
        return f"safety: {self.limited} of {self.ticks} ticks limited ({reasons}){held}"
