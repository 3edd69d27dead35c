"""What a study found: every arm's numbers, differences to the base, and which expectations held."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..statistics import paired_difference, rate_interval
from .study import MAIN, Study


def result_path(file: Path, work: Path, quick: bool) -> Path:
    """Where the result of the study `file` goes: benchmarks/studies/NAME.toml has it in
    benchmarks/results/studies/NAME.json; that of another place, or of a quick run, in its work folder."""
    if quick or file.absolute().parent.name != "studies":
        return work / "result.json"
    return file.absolute().parents[1] / "results" / "studies" / f"{file.stem}.json"


def summarise(study: Study, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """JSON values, from the evaluations of all variants, arms and seeds. Losing ones stay."""
    variants = {
        name: {
            "task": variant.task,
            "options": dict(variant.options),
            "evaluation": dict(variant.evaluation),
            "demonstrations": {
                "count": variant.demonstrations.count,
                "first_seed": variant.demonstrations.first_seed,
                "noise": variant.demonstrations.noise,
                "mode": dict(variant.demonstrations.mode),
            },
            "arms": _arms(study, name, [r for r in results if r["variant"] == name]),
        }
        for name, variant in study.variants.items()
    }
    outcomes = {
        (name, arm): _outcomes([r for r in results if (r["variant"], r["arm"]) == (name, arm)])
        for name in study.variants
        for arm in (a.name for a in study.arms_of(name))
    }

    def difference(on: str) -> Any:
        return lambda a, b: paired_difference(outcomes[on, a], outcomes[on, b])

    return {
        "kind": "study",
        "name": study.name,
        "claim": study.claim,
        "paper": study.paper,
        "expectation": study.expectation,
        "control": study.control,
        "base": study.base,
        "seeds": study.seeds,
        "episodes": study.episodes,
        "evaluation_seeds": [study.evaluation_seed, study.evaluation_seed + study.episodes - 1],
        "expectations": [e.judge(variants[e.on]["arms"], difference(e.on)) for e in study.expect],
        "variants": variants,
        "machines": sorted({r["machine"] for r in results}),
        "commits": sorted({r["commit"] for r in results}),
        "dates": sorted({r["date"] for r in results}),
    }


def _arms(study: Study, variant: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    base = _outcomes([r for r in results if r["arm"] == study.base])
    arms: dict[str, Any] = {}
    for arm in study.arms_of(variant):
        name = arm.name
        own = sorted((r for r in results if r["arm"] == name), key=lambda r: r["seed"])
        outcomes_SE = _outcomes(own)
        successes = [int(n) for n in outcomes_SE.sum(1)]
        rates = outcomes_SE.mean(1)
        arms[name] = {
            arm.kind or "of": arm.source or arm.of,
            "settings": {k: _json(v) for k, v in arm.settings.items()}
            | ({"data": dict(arm.data)} if arm.data else {}),
            "successes": successes,
            "success_rate": float(outcomes_SE.mean()),
            "interval_95": list(rate_interval(successes, outcomes_SE.shape[1])),
            "seed_deviation": float(rates.std(ddof=1)) if len(rates) > 1 else None,
            "nfe_per_decision": float(np.mean([r["nfe_per_decision"] for r in own])),
            "parameters": own[0]["parameters"],
            "training_seconds": round(sum(r["training_seconds"] for r in own), 3),
            "evaluation_seconds": round(sum(r["evaluation_seconds"] for r in own), 3),
            "mean_ticks": float(np.mean([r["mean_ticks"] for r in own])),
            "final_losses": [r["final_loss"] for r in own],
            "checkpoints": [r["checkpoint"] for r in own],
            "metrics": _means([r["metrics"] for r in own]),
        }
        if name != study.base and len(base):
            mean, low, high = paired_difference(outcomes_SE, base)
            arms[name]["minus_base"] = {"difference": mean, "bootstrap_95": [low, high]}
    return arms


def _json(value: Any) -> Any:
    """A setting as JSON has it, which knows no infinity."""
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def _outcomes(results: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """`(S, E)` int: successes by training seed and episode."""
    return np.array([r["outcomes"] for r in sorted(results, key=lambda r: r["seed"])], int)


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each metric over the seeds that have it; None where none has, and counts added up."""
    means: dict[str, Any] = {}
    for key in rows[0]:
        values = [r[key] for r in rows if r.get(key) is not None]
        if values and isinstance(values[0], Mapping):
            means[key] = {w: sum(v.get(w, 0) for v in values) for w in sorted({w for v in values for w in v})}
        else:
            means[key] = float(np.mean(values)) if values else None
    return means


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """By one rename: there is the whole file or none. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}")
    new.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    os.replace(new, path)


def text(result: Mapping[str, Any]) -> str:
    """For a terminal."""
    lines = []
    for name, variant in result["variants"].items():
        lines.append(f"{result['name']}{'' if name == MAIN else f' ({name})'}: {variant['task']}")
        width = max(map(len, variant["arms"]))
        for arm, a in variant["arms"].items():
            low, high = (100 * v for v in a["interval_95"])
            n, p = result["seeds"] * result["episodes"], 100 * a["success_rate"]
            lines.append(
                f"  {arm:{width}}  {sum(a['successes'])} of {n} ({p:.0f} %, 95 % interval "
                f"{low:.0f} to {high:.0f} %), {a['nfe_per_decision']:g} network evaluations a decision"
            )
    rows = result["expectations"]
    lines.append(f"{sum(e['holds'] for e in rows)} of {len(rows)} expectations held")
    for e in rows:
        measured = "not measured" if e["measured"] is None else f"{e['measured']:.3f}"
        lines.append(f"  {'held' if e['holds'] else 'FAILED'}: {e['text']}: {measured}")
    return "\n".join(lines)
