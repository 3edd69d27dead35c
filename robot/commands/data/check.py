"""Look for what is wrong with a dataset: gaps, clock jumps, frozen or black images, misalignment, limits, odd
episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from ..bar import progress
from ..parsing import Output, episode_list, unset

EXAMPLE = "ulna data check runs/x/data"


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset."""
    episodes: Annotated[str, unset("all")] = ""
    """Only these, like 0-9,12."""
    fast: bool = False
    """Of images only checksums and repeats: a tenth of the time, but no frame is judged against the
    joints."""
    severity: Literal["info", "warning", "severe"] = "info"
    """Show from here on; the exit code is 1 when anything is severe, shown or not."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ....datasets.checks.check import SEVERITIES, check
    from ....datasets.opened import open_dataset

    store = open_dataset(args.data, recover=False)
    selection = episode_list(args.episodes) if args.episodes else None
    with progress("checking") as bar:
        findings = check(store, selection, bar.update, args.fast)
        count = int(bar.completed)
    counts = {s: sum(f.severity == s for f in findings) for s in reversed(SEVERITIES)}
    least = SEVERITIES.index(args.severity)
    visible = [f for f in findings if SEVERITIES.index(f.severity) >= least]
    answer = {
        "path": str(store.path),
        "episodes": count,
        "counts": counts,
        "findings": [f.to_json() for f in visible],
    }
    summary = f"{count} episodes: " + ", ".join(f"{n} {s}" for s, n in counts.items())
    out.answer(answer, "\n".join([*_text(visible, count), summary]))
    return 1 if counts["severe"] else 0


def _text(findings: Sequence[Any], episodes: int) -> list[str]:
    """The lines of the report: findings that most episodes share are given once, the others by episode."""
    from ....datasets.checks.advice import ADVICE

    kinds: dict[tuple[str, str, str], list[Any]] = {}
    for f in findings:
        kinds.setdefault((f.check, f.stream, f.severity), []).append(f)
    common = {k: fs for k, fs in kinds.items() if len({f.episode for f in fs}) >= max(4, episodes / 2)}
    lines = []
    whole = [f for f in findings if f.episode < 0]
    if whole or common:
        lines.append("the dataset")
        lines += [_line(f, "") for f in whole]
        for (check, stream, _), fs in common.items():
            first = fs[0]
            numbers = len({f.episode for f in fs})
            where = f"{numbers} of {episodes}"
            lines.append(
                f"  {first.severity:8}{where:>15}  {check:12}{_short(stream)}"
                f"in episode {first.episode} {first.message}"
            )
    by_episode: dict[int, list[Any]] = {}
    for f in findings:
        if f.episode >= 0 and (f.check, f.stream, f.severity) not in common:
            by_episode.setdefault(f.episode, []).append(f)
    for number, fs in by_episode.items():
        lines.append(f"episode {number} ({fs[0].name})")
        lines += [_line(f, f"{f.start_s:.2f}-{f.end_s:.2f} s") for f in fs]
    kinds_with_advice = dict.fromkeys(f.check for f in findings if f.severity != "info")
    if kinds_with_advice:
        lines += ["", "what to do:", *(f"  {check:12}{ADVICE[check]}" for check in kinds_with_advice), ""]
    return lines


def _line(f: Any, where: str) -> str:
    return f"  {f.severity:8}{where:>15}  {f.check:12}{_short(f.stream)}{f.message}"


def _short(stream: str) -> str:
    name = stream.removeprefix("observation.")
    return f"{name}: " if name else ""
