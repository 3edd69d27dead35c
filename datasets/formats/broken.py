"""Episodes of a foreign dataset that cannot be imported: all are told at once, or left out by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..episode import StoreError

MOST_LINES = 30
MOST_NUMBERS = 20
PLACE = re.compile(r"^episode \d+(?: \([^)]*\))?[: ]*")  # with which a message begins


@dataclass
class Broken:
    """Collects what is wrong with episodes. total: how many are to be imported. skip: leave them out instead
    of failing."""

    total: int
    skip: bool = False
    errors: dict[int, str] = field(default_factory=dict)

    def add(self, episode: int, error: StoreError) -> None:
        """Note that `episode` cannot be imported, because of `error`."""
        self.errors.setdefault(episode, str(error))

    def require(self) -> None:
        """Raise StoreError that tells all of them, unless they may stay out and others come in."""
        if self.errors and (not self.skip or len(self.errors) == self.total):
            raise StoreError(self._text())

    def stayed_out(self) -> list[str]:
        """One line for each reason, for the provenance."""
        return [f"{_numbers(episodes)}: {reason}" for reason, episodes in self._groups().items()]

    def _groups(self) -> Mapping[str, list[int]]:
        groups: dict[str, list[int]] = {}
        for episode, message in sorted(self.errors.items()):
            groups.setdefault(PLACE.sub("", message), []).append(episode)
        return groups

    def _text(self) -> str:
        groups = self._groups()
        none = len(self.errors) == self.total
        rest = "" if none else "; the rest comes in with --skip-broken"
        if len(groups) == 1:
            ((reason, episodes),) = groups.items()
            if len(episodes) == 1:
                return self.errors[episodes[0]] + rest
            return f"{_numbers(episodes)} cannot be imported: {reason}{rest}"
        lines = [f"  {_numbers(episodes)}: {reason}" for reason, episodes in groups.items()]
        if len(lines) > MOST_LINES:
            others = [e for episodes in list(groups.values())[MOST_LINES:] for e in episodes]
            lines = [*lines[:MOST_LINES], f"  and {_numbers(others)}"]
        count = "none" if none else str(len(self.errors))
        rest = "" if none else " (the rest comes in with --skip-broken)"
        can = "can" if none else "cannot"
        return f"{count} of {self.total} episodes {can} be imported{rest}:\n" + "\n".join(lines)


def _numbers(episodes: Sequence[int]) -> str:
    if len(episodes) == 1:
        return f"episode {episodes[0]}"
    more = len(episodes) - MOST_NUMBERS
    text = ", ".join(map(str, episodes[:MOST_NUMBERS]))
    return f"episodes {text}" + (f" and {more} more" if more > 0 else "")
