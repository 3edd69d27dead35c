"""What the studies found, as docs/studies.md shows it, from benchmarks/results/studies/ alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import results

from ulna.robot.study.study import CHECKPOINT

FOLDER = results.RESULTS / "studies"


def load_studies(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Results of `ulna study` in the order of their names."""
    return [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]


def percent(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.0f} to {100 * interval[1]:.0f} %"


LEGEND = (
    "Columns of the tables below. **success**: share of all episodes of all trainings. **deviation**:",
    "standard deviation of that share between trainings. **minus X**: success minus that of the arm X, in",
    "points, with the 95 % interval of the paired difference. **NFE**: network evaluations a decision.",
    "**size**: parameters. **trained**: seconds of all trainings, or the arm whose training is used.",
)


def studies_page(studies: Sequence[Mapping[str, Any]]) -> list[str]:
    """All studies; those that went against what was expected are among them."""
    if not studies:
        return ["No study has been run yet."]
    lines = ["| study | claim | expectations held |", "|---|---|---|"]
    for s in studies:
        rows = s["expectations"]
        held = sum(e["holds"] for e in rows)
        claim = cell(sentence(s["claim"]))
        lines.append(f"| [{s['name']}](#{s['name']}) | {claim} | {held} of {len(rows)} |")
    return [*lines, "", *LEGEND, "", *(line for s in studies for line in study(s))]


def ndp_strokes(d: Mapping[str, Any]) -> list[str]:
    """Beside `ulna study`, for there nothing acts."""
    lines = [
        "**Pen strokes from their pictures** (the published test of Neural Dynamic Policies): the same",
        "network gives the goal and forcing of a dynamical system, or waypoints; means of 5 trainings.",
        "Control: zig-zags finer than the forcing's basis.",
        "",
        "| paths | demonstrations | arm | squared error | jerk | error at the end |",
        "|---|---|---|---|---|---|",
    ]
    for r in d["table"]:
        numbers = f"{r['squared_error']:.3f} | {r['jerk']:.0f} | {r['end_error']:.2f}"
        lines.append(f"| {r['paths']} | {r['demonstrations']} | {r['arm']} | {numbers} |")
    return [*lines, "", *expected(d["verdicts"])]


def generated_policies(d: Mapping[str, Any]) -> list[str]:
    """Beside `ulna study`: the arms learn from policies."""
    lines = [
        f"**Make-An-Agent** after a zoo of {d['members']} policies of {d['weights']} weights, each trained",
        f"for a place and a speed of its own that it does not see, in {d['held_out']} tasks of other places",
        "and speeds, each shown by one demonstration; success of 25 episodes a task. Control: what is shown",
        "is another of those tasks.",
        "",
        "| arm | success | 95 % interval | tasks with 20 of 25 |",
        "|---|---|---|---|",
    ]
    for name, arm in d["arms"].items():
        low, high = arm["interval_95"]
        each = arm["successes_of_each"]
        most = f"{sum(n >= 20 for n in each)} of {len(each)}"
        lines.append(
            f"| {name} | {100 * arm['success']:.0f} % | {100 * low:.0f} to {100 * high:.0f} % | {most} |"
        )
    return [*lines, "", *expected(d["verdicts"])]


def expected(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Claims that were written down before a run, and whether they held."""
    words = [f"{v['claim']}: {'held' if v['holds'] else '**not held**'}" for v in verdicts]
    return [f"Expected before the run: {'; '.join(words)}.", ""]


def memory_growth(d: Mapping[str, Any]) -> list[str]:
    """An hour of every memory."""
    lines = [
        f"**What a memory costs as an episode goes on**, at {d['hz']:g} Hz, each decision with the memory",
        "that the last one gave; random weights, small networks for the action, one step of the sampler, one",
        "core. A decision's time of the processor is the median of 100 with the memory as it was after a",
        "minute, and of 100 with that of the end, in turn.",
        "",
        "| recipe | context | minutes | decisions | memory | a decision | largest number in it |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in d["table"]:
        least, most = r["memory_bytes"]
        size = f"{most} bytes" if least == most else f"{least} to {most} bytes"
        cost = f"{r['cpu_ms']['first']:.2f} and {r['cpu_ms']['last']:.2f} ms"
        number = f"{r['largest_number']['first']:.3g}, then {r['largest_number']['last']:.3g}"
        row = [f"`{r['recipe']}`", f"`{r['context']}`", r["minutes"], r["decisions"], size, cost, number]
        lines.append(f"| {' | '.join(map(str, row))} |")
    grown = [f"`{r['recipe']}`" for r in d["table"] if len({*r["memory_bytes"]}) > 1]
    dearer = [f"`{r['recipe']}`" for r in d["table"] if r["cpu_ms"]["last"] > 1.1 * r["cpu_ms"]["first"]]
    size = "No memory changes its size" if not grown else f"{', '.join(grown)} change in size"
    cost = "no decision at the end costs a tenth more than one after a minute"
    if dearer:
        cost = f"decisions of {', '.join(dearer)} cost more than a tenth more at the end"
    return [*lines, "", f"{size}, and {cost}.", ""]


def progress(d: Mapping[str, Any]) -> list[str]:
    """Beside `ulna study`, for there nothing acts."""
    lines = [
        "**Which of three buttons were pressed** that words name in an order (R²VLM's small test): a critic",
        "that carries its last answer on, one that judges each clip by itself, and a counter that knows how",
        f"far the {d['trained_on']} training episodes were at each time; mean error of p over all clips of",
        f"{d['tested_on']} episodes of each kind, {d['seeds']} trainings. Training shows nobody who hovers,",
        "and no other order.",
        "",
        "| episodes | arm | error of p | clips with the right count | error at the end |",
        "|---|---|---|---|---|",
    ]
    for r in d["table"]:
        exact = "" if r["arm"] == "counter" else f"{100 * r['exact']:.0f} %"
        lines.append(f"| {r['episodes']} | {r['arm']} | {r['mae']:.3f} | {exact} | {r['final']:.3f} |")
    return [*lines, "", *expected(d["verdicts"])]


def demo_policy(d: Mapping[str, Any]) -> list[str]:
    """Which network the demo trains."""
    lines = [
        f"**Which network `make demo` trains**: {d['recipe']}, {d['task']}, {d['demonstrations']}",
        f"demonstrations; {d['episodes']} development seeds for each training, on one core. Holding still",
        f"succeeds {d['hold']['successes']} times.",
        "",
        "| network | success, by training | 95 % interval | one training |",
        "|---|---|---|---|",
    ]
    for name, arm in d["arms"].items():
        successes = ", ".join(map(str, arm["successes"]))
        seconds = f"{arm['training_seconds']:.0f} s"
        lines.append(f"| {name} | {successes} | {percent(arm['interval_95'])} | {seconds} |")
    return [*lines, ""]


def study(s: Mapping[str, Any]) -> list[str]:
    """One study: its arms, variant by variant, and its expectations."""
    paper = f" Paper: {s['paper']}." if s["paper"] else ""
    lines = [f"## {s['name']}", "", f"{sentence(s['claim'])}{paper}", ""]
    for word, text in (("Expected", s["expectation"]), ("Control", s["control"])):
        if text:
            lines += [f"{word}, written before the run: {text.strip()}", ""]
    trials = f"{s['seeds']} training seed{'s' * (s['seeds'] > 1)} × {s['episodes']} episodes"
    for name, variant in s["variants"].items():
        options = ", ".join(f"{k} {v}" for k, v in variant["options"].items())
        task = f"`{variant['task']}`{f' ({options})' if options else ''}"
        lines += [
            f"**{name}**: {task}, {variant['demonstrations']['count']} demonstrations, {trials}.",
            "",
            f"| arm | success | 95 % interval | deviation | minus `{s['base']}` | NFE | size | trained |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for arm, a in variant["arms"].items():
            spread = "–" if a["seed_deviation"] is None else f"{100 * a['seed_deviation']:.0f} %"
            cells = [
                arm,
                f"{100 * a['success_rate']:.0f} %",
                percent(a["interval_95"]),
                spread,
                minus(a.get("minus_base")),
                f"{a['nfe_per_decision']:g}",
                f"{a['parameters'] / 1e3:.0f} k",
                trained(a),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        metrics = {k for a in variant["arms"].values() for k, v in a["metrics"].items() if number(v)}
        for metric in sorted(metrics):
            values = ", ".join(
                f"{n} {a['metrics'][metric]:.2f}"
                for n, a in variant["arms"].items()
                if number(a["metrics"].get(metric))
            )
            lines += [f"{metric}: {values}.", ""]
    if s["expectations"]:
        once = ", one training" if s["seeds"] == 1 else ""
        lines += ["| expected | measured | held |", "|---|---|---|"]
        for e in s["expectations"]:
            measured = "–" if e["measured"] is None else f"{e['measured']:.3g}"
            sure = ", within noise" if e["certain"] is False else once
            lines.append(f"| {cell(e['text'])} | {measured} | {'yes' if e['holds'] else '**no**'}{sure} |")
        lines.append("")
    commits, machines = ", ".join(s["commits"]), "; ".join(s["machines"])
    return [*lines, f"`{s['command']}` at {commits}; {machines}.", ""]


def trained(arm: Mapping[str, Any]) -> str:
    """How long, and with what others, which are trained as well."""
    texts = [v for v in arm["settings"].values() if isinstance(v, str)]
    others = [arm.get("of") or arm.get("blend"), *(name for t in texts for name in CHECKPOINT.findall(t))]
    own = [f"{arm['training_seconds']:.0f} s"] if arm["training_seconds"] else []
    beside = " and ".join(dict.fromkeys(name for name in others if name))
    return ", ".join([*own, *([f"with {beside}"] if beside else [])])


def minus(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "–"
    low, high = (f"{100 * v:+.0f}" for v in difference["bootstrap_95"])
    return f"{100 * difference['difference']:+.0f} ({low} to {high})"


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def sentence(text: str) -> str:
    """`text` with a capital and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def cell(text: str) -> str:
    """In one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
