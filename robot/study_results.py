"""What the runs of a study come to: rates with their intervals, paired differences, and for every expectation
whether it held. Nothing is left out: an arm that lost and an expectation that failed stand beside the others.

Legend: S training seeds, E episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .statistics import bootstrap_crossed, wilson
from .study import Arm, Expectation, Study, StudyError

Result = Mapping[str, Any]

EPISODE_METRICS = ("success", "ticks", "reward", "roughness")
"""Of every episode; and `info.KEY`, a number that the environment says at the end."""
SEED_METRICS = ("nfe", "decisions", "parameters", "train_seconds", "evaluation_seconds", "decision_seconds")
"""Of every training seed."""


def mode_entropy(result: Result) -> float | None:
    """Entropy, in bits, of the routes (info `route`) of the successful episodes; None without any."""
    routes = result["info"].get("route")
    if routes is None:
        return None
    counts = Counter(r for r, success in zip(routes, result["success"], strict=True) if success)
    shares = np.array(list(counts.values())) / max(sum(counts.values()), 1)
    return float(-(shares * np.log2(shares)).sum()) + 0.0 if counts else None


def ticks_to_success(result: Result) -> float | None:
    """Mean length of the successful episodes; None without any."""
    ticks = [t for t, success in zip(result["ticks"], result["success"], strict=True) if success]
    return float(np.mean(ticks)) if ticks else None


METRICS: dict[str, Callable[[Result], float | None]] = {
    "mode_entropy": mode_entropy,
    "ticks_to_success": ticks_to_success,
}
"""More of every training seed, by name."""


def require_metrics(study: Study) -> None:
    """StudyError for an expectation on a metric that is not reported."""
    names = [*EPISODE_METRICS, *SEED_METRICS, *METRICS]
    for row in study.expect:
        if row.metric not in names and not row.metric.startswith("info."):
            raise StudyError(
                f"an expectation is on {row.metric!r}, which is not reported: there is {', '.join(names)}, "
                "info.KEY"
            )


def values(results: Sequence[Result], metric: str) -> np.ndarray | None:
    """`(S, E)`, or `(S, 1)` of what is measured once a training; None where a seed has no value."""
    if metric in EPISODE_METRICS:
        return np.array([r[metric] for r in results], np.float64)
    if metric.startswith("info."):
        rows = [r["info"].get(metric.removeprefix("info.")) for r in results]
    elif metric in METRICS:
        rows = [None if (v := METRICS[metric](r)) is None else [v] for r in results]
    else:
        rows = [[r[metric]] for r in results]
    return None if any(row is None for row in rows) else np.array(rows, np.float64)


def summary(study: Study, results: Sequence[Result], quick: bool = False) -> dict[str, Any]:
    """The study with its numbers, as JSON. quick: say that it is no evidence."""
    groups: dict[str, dict[str, list[Result]]] = {
        v.name: {a: [r for r in results if (r["variant"], r["arm"]) == (v.name, a)] for a in v.arms}
        for v in study.variants.values()
    }
    verdicts = [verdict(row, groups[row.variant]) for row in study.expect]
    return {
        "study": study.name,
        **({"quick": True} if quick else {}),
        "claim": study.claim,
        "paper": study.paper,
        "expectation": study.expectation,
        "control_text": study.control_text,
        "task": study.task,
        "seeds": list(study.seeds),
        "episodes": study.episodes,
        "evaluation_seeds_from": study.evaluation_seeds_from,
        "base": study.base,
        "held": sum(v["held"] for v in verdicts),
        "expectations": len(verdicts),
        "verdicts": verdicts,
        "variants": {
            v.name: {
                "options": dict(v.options),
                "evaluation_options": dict(v.evaluation_options),
                "demonstrations": {
                    "count": v.demonstrations.count,
                    "seeds_from": v.demonstrations.seeds_from,
                    "noise": v.demonstrations.noise,
                    **v.demonstrations.mode,
                },
                "arms": {
                    a: arm_summary(study.arms[a], rows, groups[v.name].get(study.base))
                    for a, rows in groups[v.name].items()
                },
            }
            for v in study.variants.values()
        },
        "content": study.content,
        "commits": sorted({r["commit"] for r in results}),
    }


def arm_summary(arm: Arm, results: Sequence[Result], base: Sequence[Result] | None) -> dict[str, Any]:
    """base: the results of the arm to compare with; None where the variant leaves it out."""
    success_SE = np.array([r["success"] for r in results], bool)
    successes, trials = int(success_SE.sum()), success_SE.size
    rates = success_SE.mean(1)
    how = {k: v for k in ("recipe", "learner", "of", "text") if (v := getattr(arm, k))}
    return {
        **how,
        "overrides": dict(arm.overrides),
        "successes": [int(n) for n in success_SE.sum(1)],
        "rate": successes / trials,
        "wilson_95": list(wilson(successes, trials)),
        "bootstrap_95": list(bootstrap_crossed(success_SE)[1:]),
        "spread_over_seeds": float(rates.std(ddof=1)) if len(rates) > 1 else None,
        "difference_to_base": None
        if base is None or base is results
        else _difference(results, base, "success"),
        "metrics": {name: m for name in metric_names(results) if (m := _metric(results, name)) is not None},
    }


def metric_names(results: Sequence[Result]) -> list[str]:
    """All but success."""
    infos = [f"info.{k}" for k in results[0]["info"]]
    return [*EPISODE_METRICS[1:], *SEED_METRICS, *METRICS, *infos]


def _metric(results: Sequence[Result], name: str) -> dict[str, Any] | None:
    values_SE = values(results, name)
    if values_SE is None:
        return None
    return {"mean": float(values_SE.mean()), "by_seed": [float(v) for v in values_SE.mean(1)]}


def _difference(results: Sequence[Result], others: Sequence[Result], metric: str) -> dict[str, Any] | None:
    """Of the means, paired by training and evaluation seed, with its interval."""
    mine, theirs = values(results, metric), values(others, metric)
    if mine is None or theirs is None:
        return None
    estimate, low, high = bootstrap_crossed(mine - theirs)
    return {"estimate": estimate, "bootstrap_95": [low, high]}


def verdict(row: Expectation, groups: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Whether the expectation held, by the estimate over all seeds; its interval stands beside it. A metric
    without a value (such as the routes of an arm that never succeeded) holds nothing."""
    said = {"words": row.words(), "metric": row.metric, "variant": row.variant}
    if row.kind == "value":
        values_SE = values(groups[row.arm], row.metric)
        if values_SE is None:
            return {**said, "estimate": None, "interval_95": None, "held": False}
        estimate, low, high = bootstrap_crossed(values_SE)
        if row.metric == "success":
            low, high = wilson(int(values_SE.sum()), values_SE.size)
        return {
            **said,
            "estimate": estimate,
            "interval_95": [low, high],
            "held": bool(row.at_least <= estimate <= row.at_most),
        }
    first, second = (row.than, row.arm) if row.kind == "less" else (row.arm, row.than)
    difference = _difference(groups[first], groups[second], row.metric)
    if difference is None:
        return {**said, "estimate": None, "interval_95": None, "held": False}
    estimate = difference["estimate"]
    held = abs(estimate) <= row.within if row.kind == "alike" else estimate > row.by
    return {**said, "estimate": estimate, "interval_95": difference["bootstrap_95"], "held": bool(held)}
