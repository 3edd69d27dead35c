"""The tables of docs/measured.md that set our policies beside LeRobot's, from benchmarks/results/ alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from head_to_head_methods import COMPARED, METHODS, OURS, THEIRS
from head_to_head_result import GROUPS, against_best
from study_tables import percent

BASELINES = {"hold": "holding", "extrapolate": "going on straight"}


def head_to_head(d: dict[str, Any]) -> list[str]:
    lines = []
    for size, found in d["sizes"].items():
        for task, of in found["tasks"].items():
            for cell in of:
                lines += cell_table(task, size, cell)
            lines += baseline_lines(found["baselines"].get(task, {}))
    for name, real in d["real"].items():
        lines += real_table(name, real)
    return lines


def text(d: Mapping[str, Any]) -> list[str]:
    """For a terminal."""
    return head_to_head(dict(d)) or ["nothing is finished yet"]


def rows(d: Mapping[str, Any]) -> list[str]:
    """For the README: of each task the longest trainings of both sides, the best first."""
    tasks = d["sizes"]["small"]["tasks"]
    both = {task: [c for c in cells if len(_sides(c)) == 2] for task, cells in tasks.items()}
    return [row(task, cells) for task, cells in both.items() if cells]


def _sides(cell: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Arms as trained that are compared, by their kind, the best first."""
    sides: dict[str, list[Mapping[str, Any]]] = {}
    for arm in sorted(cell["arms"].values(), key=lambda a: -a["success_rate"]):
        if arm["group"] == GROUPS[0] and arm["method"] in COMPARED:
            sides.setdefault(METHODS[arm["method"]].kind, []).append(arm)
    return sides


def row(task: str, cells: Sequence[Mapping[str, Any]]) -> str:
    cell = max(cells, key=lambda c: (c["seconds"], c["demonstrations"]))
    sides = _sides(cell)
    ours, theirs = (
        ", ".join(f"{a['method'].removeprefix('lerobot_')} {100 * a['success_rate']:.0f} %" for a in sides[k])
        for k in (OURS, THEIRS)
    )
    seeds = min(len(a["seeds"]) for side in sides.values() for a in side)
    return (
        f"| `{task}` learned from the same {cell['demonstrations']} demonstrations in {cell['seconds']:g} s "
        f"of one core each, {seeds} training{'s' * (seeds > 1)} × {cell['episodes']} unseen scenes "
        f"| {ours} | LeRobot: {theirs} |"
    )


def cell_table(task: str, size: str, cell: Mapping[str, Any]) -> list[str]:
    """One task, number of demonstrations and budget, groups below each other."""
    seeds = max(len(a["seeds"]) for a in cell["arms"].values())
    lines = [
        f"**`{task}` beside LeRobot**, {cell['demonstrations']} demonstrations, {cell['seconds']:g} s of the",
        f"processor to train each method ({size}), {seeds} training seed{'s' * (seeds > 1)}",
        f"× {cell['episodes']} episodes; *steps*: how many fitted, *unscaled*: as LeRobot has it by default:",
        "",
        (
            "| | method | success | 95 % interval | minus the best of LeRobot's | NFE a decision, a tick "
            "| steps | parameters |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for group in GROUPS:
        best = against_best(cell["pairs"], group)
        for name, arm in cell["arms"].items():
            if arm["group"] != group and not (arm["group"] == "ensemble" and group == GROUPS[0]):
                continue
            steps = sum(arm["steps"]) / len(arm["steps"]) if any(arm["training_seconds"]) else 0
            method = arm["method"] + (", as an ensemble" if arm["group"] == "ensemble" else "")
            cells = [
                group,
                f"`{method}`" if "," not in method else method,
                f"{100 * arm['success_rate']:.0f} %",
                percent(arm["interval_95"]),
                difference(best.get(name)),
                f"{arm['nfe_per_decision']:g}, {arm['nfe_per_tick']:.2g}",
                f"{steps:.0f}" if steps else "–",
                f"{arm['parameters'] / 1e6:.1f} M",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def baseline_lines(of: Mapping[str, Any]) -> list[str]:
    """What the methods of a task lie between."""
    words = [f"{name} {100 * b['success_rate']:.0f} % of {b['episodes']}" for name, b in of.items()]
    return [f"Beside them, on the same episodes: {', '.join(words)}.", ""] if words else []


def difference(pair: Mapping[str, Any] | None) -> str:
    if pair is None:
        return "–"
    low, high = (f"{100 * v:+.0f}" for v in pair["bootstrap_95"])
    once = ", one training" if len(pair["seeds"]) == 1 else ""
    return f"{100 * pair['difference']:+.0f} ({low} to {high}), {pair['verdict']}{once}"


def real_table(name: str, real: Mapping[str, Any]) -> list[str]:
    lines = [
        f"**`{name}`, cross-validated in open loop**: {real['episodes']} recorded episodes, each predicted",
        f"from the others ({real['leave_out']} left out at a time, {real['seconds']:g} s of training), from",
        f"{real['sees']}. Errors in standard deviations of a joint; intervals resample episodes:",
        "",
        "| | error | 95 % interval | minus holding | minus going on straight |",
        "|---|---|---|---|---|",
    ]
    for method, m in real["methods"].items():
        differences = " | ".join(signed(m["minus"][b]) for b in BASELINES)
        lines.append(f"| {method} | {estimate(m['error']['policy'])} | {differences} |")
    first: Sequence[Any] = list(real["methods"].values())[:1]
    for m in first:
        lines += [f"| {word} | {estimate(m['error'][b])} | | |" for b, word in BASELINES.items()]
    return [*lines, ""]


def estimate(e: Mapping[str, Any]) -> str:
    low, high = e["bootstrap_95"]
    return f"{e['mean']:.3f} | {low:.3f} to {high:.3f}"


def signed(e: Mapping[str, Any]) -> str:
    low, high = e["bootstrap_95"]
    return f"{e['mean']:+.3f} ({low:+.3f} to {high:+.3f})"
