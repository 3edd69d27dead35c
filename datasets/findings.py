"""A finding: what is wrong with a dataset, where, and how much it matters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from .store import Episode

Severity = Literal["info", "warning", "severe"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "severe")


@dataclass(frozen=True)
class Finding:
    """episode: its number, -1 of the dataset as a whole. name: its folder. start_s, end_s: after the episode's first control
    tick; None where it has no time. value and threshold: what was measured and what is allowed, as the message says them."""

    episode: int
    name: str
    check: str
    severity: Severity
    stream: str
    message: str
    start_s: float | None = None
    end_s: float | None = None
    value: float | None = None
    threshold: float | None = None


class Report:
    """Gathers the findings of one episode. zero_ns: its first control tick."""

    def __init__(self, e: Episode, zero_ns: int = 0) -> None:
        self.episode, self.zero_ns = e, zero_ns
        self.findings: list[Finding] = []

    def add(
        self,
        check: str,
        severity: Severity,
        stream: str,
        message: str,
        span_ns: tuple[int, int] | None = None,
        value: float | None = None,
        threshold: float | None = None,
    ) -> None:
        """span_ns: (first, last) moment, by capture."""
        start, end = (round((t - self.zero_ns) * 1e-9, 6) for t in span_ns) if span_ns else (None, None)
        value = None if value is None else round(float(value), 6)
        threshold = None if threshold is None else round(float(threshold), 6)
        e = self.episode
        self.findings.append(
            Finding(e.index, e.path.name, check, severity, stream, message, start, end, value, threshold)
        )


def worst(findings: Sequence[Finding]) -> Severity | None:
    """How much the worst of them matters."""
    return SEVERITIES[max(SEVERITIES.index(f.severity) for f in findings)] if findings else None


def by_episode(findings: Sequence[Finding]) -> Iterator[tuple[int, list[Finding]]]:
    """(number, its findings), the dataset's own (-1) first."""
    for i in sorted({f.episode for f in findings}):
        yield i, [f for f in findings if f.episode == i]
