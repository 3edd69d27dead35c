"""What `head_to_head.py` found, from its files and what it found before: each method's success, and paired
differences between ours and LeRobot's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from head_to_head_methods import EQUAL_LATENCY, EQUAL_NFE, METHODS, OURS, THEIRS, TRAINED

from ulna.robot.statistics import bootstrap_mean, paired_difference, rate_interval

GROUPS = (TRAINED, EQUAL_NFE, EQUAL_LATENCY)
CELL, BASELINES = "cell.json", "baselines.json"
ABOUT = ("task", "demonstrations", "budget_s", "arm", "seed")  # what tells one evaluation from another
KEPT = (
    *ABOUT,
    *("method", "outcomes", "mean_ticks", "decisions", "nfe_per_decision", "parameters", "steps"),
    *("training_seconds", "machine", "commit", "date"),
)


@dataclass(frozen=True)
class Cell:
    """One method's training on one task: how many demonstrations, and for how many seconds."""

    task: str
    method: str
    demonstrations: int
    seconds: float

    def folder(self, work: Path) -> Path:
        return work / self.task / f"{self.method}-{self.demonstrations}-{self.seconds:g}s"


def read_rows(work: Path) -> list[dict[str, Any]]:
    """Every evaluation that is finished in the work folder, of whatever cell: one of an arm and a seed of
    training."""
    rows = []
    for file in sorted(work.glob(f"*/*/{CELL}")):
        cell = json.loads(file.read_text())
        for result in sorted(file.parent.glob("main/*/seed-*.json")):
            rows.append({**json.loads(result.read_text()), **cell})
    return rows


def pack(row: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation as the results hold it: its outcomes as a word like 0110."""
    starved = row["metrics"].get("starved", 0.0)
    return {k: row[k] for k in KEPT} | {"outcomes": "".join(map(str, row["outcomes"])), "starved": starved}


def unpack(packed: Mapping[str, Any]) -> dict[str, Any]:
    outcomes, metrics = [int(c) for c in packed["outcomes"]], {"starved": packed["starved"]}
    return {k: packed[k] for k in KEPT} | {"outcomes": outcomes, "metrics": metrics}


def which(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[k] for k in ABOUT)


def outcomes(rows: Iterable[Mapping[str, Any]]) -> dict[int, list[int]]:
    """By training seed, the successes of its episodes. ValueError where a seed is there twice."""
    by_seed: dict[int, list[int]] = {}
    for row in rows:
        if row["seed"] in by_seed:
            raise ValueError(f"{row['arm']} has the training seed {row['seed']} twice")
        by_seed[row["seed"]] = row["outcomes"]
    return by_seed


def paired(a: Mapping[int, Sequence[int]], b: Mapping[int, Sequence[int]]) -> dict[str, Any] | None:
    """a minus b over the training seeds that both have, on the same episodes: the difference, its 95 %
    interval, and how many pairs either won. None where they share no seed; ValueError where the episodes are
    not as many."""
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    if any(len(a[s]) != len(b[s]) for s in seeds):
        raise ValueError("both must have met the same episodes: evaluate the one with fewer again")
    a_SE, b_SE = (np.array([side[s] for s in seeds], int) for side in (a, b))
    mean, low, high = paired_difference(a_SE, b_SE)
    wins, losses = (int((a_SE - b_SE == sign).sum()) for sign in (1, -1))
    return {
        "difference": mean,
        "bootstrap_95": [low, high],
        "wins": wins,
        "losses": losses,
        "seeds": seeds,
        "verdict": verdict(low, high),
    }


def verdict(low: float, high: float) -> str:
    """Of an interval of ours minus theirs."""
    return "above" if low > 0 else "below" if high < 0 else "undecided"


def of_outcomes(trainings: Sequence[Sequence[int]]) -> dict[str, Any]:
    """trainings: the successes of the episodes of each."""
    episodes, successes = len(trainings[0]), [sum(values) for values in trainings]
    total = episodes * len(trainings)
    interval = list(rate_interval(successes, episodes))
    return {"success_rate": sum(successes) / total, "interval_95": interval, "episodes": total}


def arm_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one arm, all its seeds."""
    decisions, ticks = (sum(r[k] for r in rows) for k in ("decisions", "mean_ticks"))
    n = len(rows[0]["outcomes"])
    return {
        **of_outcomes([r["outcomes"] for r in rows]),
        "successes": [sum(r["outcomes"]) for r in rows],
        "seeds": [r["seed"] for r in rows],
        "nfe_per_decision": float(np.mean([r["nfe_per_decision"] for r in rows])),
        "nfe_per_tick": float(np.mean([r["nfe_per_decision"] for r in rows])) * decisions / (ticks * n),
        "parameters": rows[0]["parameters"],
        "steps": [r["steps"] for r in rows],
        "training_seconds": [r["training_seconds"] for r in rows],
        "starved": float(np.mean([r["metrics"].get("starved", 0.0) for r in rows])),
    }


def compare(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the rows of one task, number of demonstrations and budget: each arm, and in every group each method
    of ours minus each of LeRobot's."""
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (list(METHODS).index(r["method"]), r["arm"], r["seed"])):
        by_arm.setdefault(row["arm"], []).append(row)
    arms = {
        name: {"method": of[0]["method"], "group": group_of(of[0]), **arm_summary(of)}
        for name, of in by_arm.items()
    }
    pairs = []
    for group in GROUPS:
        sides = {kind: [n for n, a in arms.items() if _side(a, group) == kind] for kind in (OURS, THEIRS)}
        for ours in sides[OURS]:
            for theirs in sides[THEIRS]:
                if difference := paired(outcomes(by_arm[ours]), outcomes(by_arm[theirs])):
                    pairs.append({"group": group, "ours": ours, "theirs": theirs, **difference})
    return {"arms": arms, "pairs": pairs}


def group_of(row: Mapping[str, Any]) -> str:
    return row["arm"].removeprefix(row["method"]).removeprefix(", ") or TRAINED


def _side(arm: Mapping[str, Any], group: str) -> str | None:
    """Whose it is, where it belongs to the group: LeRobot's ACT as an ensemble counts as trained."""
    own = TRAINED if arm["group"] == "ensemble" else arm["group"]
    return METHODS[arm["method"]].kind if own == group else None


def against_best(pairs: Sequence[Mapping[str, Any]], group: str) -> dict[str, Mapping[str, Any]]:
    """By each method of ours, its smallest difference to one of LeRobot's in the group: that to the best of
    them, which is chosen after the fact, to our disadvantage."""
    best: dict[str, Mapping[str, Any]] = {}
    for pair in (p for p in pairs if p["group"] == group):
        if pair["ours"] not in best or pair["difference"] < best[pair["ours"]]["difference"]:
            best[pair["ours"]] = pair
    return best


def summarise(work: Path, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All that there is in the work folder of one size, and in `before`, what this returned elsewhere."""
    before = before or {"rows": [], "baselines": {}, "paces": {}}
    by_key = {which(r): r for r in [*map(unpack, before["rows"]), *read_rows(work)]}
    rows = [by_key[key] for key in sorted(by_key)]
    groups: dict[tuple[str, int, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["demonstrations"], row["budget_s"]), []).append(row)
    tasks: dict[str, list[dict[str, Any]]] = {}
    for (task, count, seconds), of in sorted(groups.items()):
        cell = {"demonstrations": count, "seconds": seconds, "episodes": len(of[0]["outcomes"])}
        tasks.setdefault(task, []).append({**cell, **compare(of)})
    baselines = dict(before["baselines"]) | {
        task: {name: of_outcomes([values]) for name, values in json.loads(file.read_text()).items()}
        for task in tasks
        if (file := work / task / BASELINES).is_file()
    }
    paces = {task: dict(of) for task, of in before["paces"].items()}
    for file in sorted(work.glob("*/pace/*.json")):
        paces.setdefault(file.parent.parent.name, {})[file.stem] = json.loads(file.read_text())
    return {
        "tasks": tasks,
        "baselines": baselines,
        "paces": paces,
        "rows": [pack(r) for r in rows],
        "machines": sorted({r["machine"] for r in rows}),
        "commits": sorted({r["commit"] for r in rows}),
        "dates": sorted({r["date"] for r in rows}),
    }


def folds(episodes: Sequence[int], k: int) -> list[list[int]]:
    """The episodes in parts of k, each left out once; the last may be smaller. ValueError where nothing would
    be left to train on."""
    if not 1 <= k < len(episodes):
        raise ValueError(f"leave out 1 to {len(episodes) - 1} of {len(episodes)} episodes, not {k}")
    return [list(episodes[i : i + k]) for i in range(0, len(episodes), k)]


def cross_validated(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one method, from a row for each episode that it did not see: mean errors, and differences to the
    baselines, paired by episode; intervals resample episodes."""
    names = list(rows[0]["error"])
    columns = {n: [np.array([r["error"][n]]) for r in rows] for n in names}

    def interval(values: Sequence[np.ndarray]) -> dict[str, Any]:
        mean, low, high = bootstrap_mean(values)
        return {"mean": mean, "bootstrap_95": [low, high]}

    differences = {
        n: interval([p - b for p, b in zip(columns["policy"], columns[n], strict=True)])
        for n in names
        if n != "policy"
    }
    return {
        "episodes": [r["episode"] for r in rows],
        "error": {n: interval(v) for n, v in columns.items()},
        "minus": {n: {**d, "better": d["bootstrap_95"][1] < 0} for n, d in differences.items()},
        "n_ticks": sum(r["n_ticks"] for r in rows),
        "training_seconds": sorted({r["fold"]: r["training_seconds"] for r in rows}.values()),
        "nfe_per_decision": rows[0]["nfe_per_decision"],
        "parameters": rows[0]["parameters"],
    }
