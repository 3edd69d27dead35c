"""The tables of docs/measured.md on how chunks are executed, from benchmarks/results/ alone."""

from __future__ import annotations

from typing import Any

TASKS = {"catch": "a target that turns (`catch`)", "lift": "`lift` from state"}


def chunk_boundary(d: dict[str, Any]) -> list[str]:
    lines = [
        "**Where another chunk takes over**: the largest step of the commanded acceleration there over the",
        "largest inside the chunks (in brackets the same of the 99th percentiles), and success, by the delay",
        f"of a decision; {d['episodes']} episodes each, one policy a task, so success is rough:",
        "",
    ]
    for task, result in d["tasks"].items():
        rows = result["strategies"]
        delays = list(next(iter(rows.values())))
        lines += [f"| {TASKS[task]} | {' | '.join(delays)} |", "|---|" + "---|" * len(delays)]
        for name, by_delay in rows.items():
            cells = [
                f"{r['ratio_of_max']:.2f} ({r['ratio_of_p99']:.2f}), {100 * r['success']:.0f} %"
                for r in by_delay.values()
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return lines
