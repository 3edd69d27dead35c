"""Progress by its structured last answer (R²VLM's recurrence, `policies.progress`), against a clip by itself
and against a counter of time.

    python benchmarks/progress.py      writes results/progress.json; about seven core-minutes

It is no file of `ulna study`: what is judged is how far an episode is, and nothing acts.

Four coloured buttons lie about, each in another corner every time; the instruction names three of them in an
order, `press red, then green, then blue`. A body goes there and presses, at its own speed and with pauses.
What was pressed cannot be seen afterwards, so that a clip does not tell what came before it. All see where
the buttons are from the body, and its height, at 20 Hz, in clips of 0.4 s; episodes are 4 to 12 s long. 240
of them are learned from, of which a quarter break off; nobody is ever shown another order than that of the
instruction. The critic's networks are small (`ProgressSpec()`), 1000 steps, 3 seeds.

Tested on 60 each of: episodes that succeed; that stop before the end, and wait; that hover over a button for
as long as a press takes, and go on; that do the steps in another order; and successes that are told another
instruction, which begins with the same one or two steps (its p ends at their share). The counter knows the
mean p of the training episodes at each time.

The expectation was written before the first run. The critic's networks, what it is told of its last answer
and the share of other instructions in its training were changed afterwards, on development episodes that are
none of these.

Legend: T ticks, N steps."""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import save

from ulna.datasets.features import ACTION, ENVIRONMENT, STATE, Feature
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.learn.steps import Labelled, counter_errors, errors, learn_progress
from ulna.policies.progress import ProgressSpec, load_progress

COLOURS, N, HZ = ("red", "green", "blue", "yellow"), 3, 20.0
FEATURES = {
    STATE: Feature((1,), "float32", ("height",), ("m",)),
    ENVIRONMENT: Feature((8,), "float32", tuple(f"to_{c}.{a}" for c in COLOURS for a in "xy"), ("m",) * 8),
    ACTION: Feature((3,), "float32", ("x", "y", "height"), ("m", "m", "m")),
}
CORNERS = 0.25 * np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])  # m
HIGH, LOW, STEP = 0.1, 0.0, 0.04  # m; m a tick
SEEDS, TRAINED, TESTED, STEPS = range(3), 240, 60, 1000
SPEC = ProgressSpec(clip_s=0.4)
ARMS = {"recurrent": SPEC, "single clip": replace(SPEC, recurrent=False)}
EXPECTATION = (
    "Written before the run. On episodes that succeed the recurrent critic errs by at most 0.05, and the "
    "counter by at most 0.15. On those that stop, hover or are told another instruction the counter errs by "
    "at least three times as much as the recurrent critic; so does a clip by itself, on all kinds, since it "
    "cannot know what came before. Reordered steps, which nobody was shown, are judged worse than those in "
    "order, and still at most half as wrong as by the counter."
)


@dataclass(frozen=True)
class Shown:
    """One episode. seen `(T, 9)`: the height, and where the buttons are from the body. where `(T, 3)`: the
    body. done: words and tick of each step that was done."""

    plan: tuple[str, ...]
    seen: np.ndarray
    where: np.ndarray
    done: dict[str, int]
    succeeded: bool


def episode(rng: np.random.Generator, kind: str) -> Shown:
    order = rng.permutation(len(COLOURS))[:N]
    plan = tuple(f"press {COLOURS[c]}" for c in order)
    buttons = _places(rng)
    if kind == "reordered":
        while np.array_equal(order, shuffled := rng.permutation(order)):
            pass
        order = shuffled
    ends_after = int(rng.integers(N)) if kind == "stops" else N
    hovers = int(rng.integers(N)) if kind == "hovers" else -1
    at, step = rng.uniform(-0.3, 0.3, 2), STEP * rng.uniform(0.4, 1.0)
    rows: list[tuple[float, float, float]] = []
    done: dict[str, int] = {}
    for i, colour in enumerate(order[:ends_after]):
        rows += [(*at, HIGH)] * int(rng.integers(0, 20))
        way = buttons[colour] + rng.normal(0, 0.005, 2) - at
        n = max(1, int(np.ceil(np.linalg.norm(way) / step)))
        rows += [(*(at + way * k / n), HIGH) for k in range(1, n + 1)]
        at = at + way
        held = int(rng.integers(6, 14))
        rows += [(*at, HIGH if i == hovers else LOW)] * held
        if i != hovers:
            done[f"press {COLOURS[colour]}"] = len(rows) - held
        rows += [(*at, HIGH)] * 2
    rows += [(*at, HIGH)] * int(rng.integers(40, 80) if kind == "stops" else rng.integers(8, 24))
    where = np.array(rows, np.float32) + rng.normal(0, 0.002, (len(rows), 3)).astype(np.float32)
    to_buttons = (buttons[None] - where[:, None, :2]).reshape(len(rows), -1)
    seen = np.concatenate([where[:, 2:], to_buttons], 1).astype(np.float32)
    return Shown(plan, seen, where, done, len(done) == N)


def _places(rng: np.random.Generator) -> np.ndarray:
    """`(4, 2)` m: a corner for each, more or less."""
    return CORNERS[rng.permutation(4)] + rng.uniform(-0.05, 0.05, (4, 2))


def recorded(folder: Path, episodes: list[Shown]) -> Labelled:
    store = EpisodeStore.create(folder, FEATURES, HZ)
    with EpisodeWriter(store) as writer:
        for e in episodes:
            colours = [words.removeprefix("press ") for words in e.plan]
            writer.start({"task": f"press {', then '.join(colours)}", "agent": "script"})
            for t, (seen, where) in enumerate(zip(e.seen, e.where, strict=True)):
                values = {STATE: seen[:1], ENVIRONMENT: seen[1:], ACTION: where}
                writer.tick(values, dict.fromkeys(values, (_time(t), _time(t))))
            steps = [{"words": w, "changes_ns": [_time(e.done[w])] if w in e.done else []} for w in e.plan]
            writer.end({"success": e.succeeded, "steps": steps})
    return Labelled.of(store, range(len(store)))


def _time(tick: int) -> int:
    return round(tick * 1e9 / HZ)


def distracted(some: Labelled, rng: np.random.Generator) -> Labelled:
    """Other instructions, each of which begins with the same one or two steps."""
    plans = []
    for plan in some.plans:
        shared = int(rng.integers(1, N))
        others = [f"press {c}" for c in COLOURS if f"press {c}" not in plan]
        plans.append((*plan[:shared], *(others + list(rng.permutation(plan[shared:])))[: N - shared]))
    plans = [tuple(map(str, p)) for p in plans]
    tasks = [f"press {', then '.join(w.removeprefix('press ') for w in p)}" for p in plans]
    return some.told(tasks, plans)


def tests(folder: Path) -> dict[str, Labelled]:
    rng = np.random.default_rng(7)
    kinds = ("succeeds", "stops", "hovers", "reordered")
    each = {k: recorded(folder / k, [episode(rng, k) for _ in range(TESTED)]) for k in kinds}
    return {**each, "told another": distracted(each["succeeds"], rng)}


def judged(errors_of_each: list[np.ndarray]) -> dict[str, float]:
    """mae: over the clips. final: at the end of the episode, on average."""
    every = np.concatenate(errors_of_each)
    return {
        "mae": float(every.mean()),
        "exact": float((every < 1e-9).mean()),
        "final": float(np.mean([e[-1] for e in errors_of_each])),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        test = tests(folder)
        for seed in range(args.seeds):
            rng = np.random.default_rng([seed, 2])
            kinds = ["stops" if i % 4 == 0 else "succeeds" for i in range(TRAINED)]
            fitted = recorded(folder / f"{seed}", [episode(rng, k) for k in kinds])
            for arm, spec in ARMS.items():
                out = folder / f"{arm} {seed}"
                learn_progress(folder / f"{seed}", out, spec, steps=args.steps, seed=seed)
                critic = load_progress(out)
                rows += [
                    {"arm": arm, "seed": seed, "episodes": k, **judged(errors(critic, some))}
                    for k, some in test.items()
                ]
            rows += [
                {
                    "arm": "counter",
                    "seed": seed,
                    "episodes": k,
                    **judged(counter_errors(SPEC, fitted, some)),
                }
                for k, some in test.items()
            ]
    table = [
        {
            "episodes": kind,
            "arm": arm,
            **{m: float(np.mean([r[m] for r in some])) for m in ("mae", "exact", "final")},
            "mae_of_each_seed": [round(r["mae"], 4) for r in some],
        }
        for kind in test
        for arm in (*ARMS, "counter")
        if (some := [r for r in rows if (r["episodes"], r["arm"]) == (kind, arm)])
    ]
    save(
        "progress",
        {
            "expectation": EXPECTATION,
            "verdicts": verdicts(table),
            "table": table,
            "trained_on": TRAINED,
            "tested_on": TESTED,
            "steps": args.steps,
            "seeds": args.seeds,
            "core_seconds": round(time.process_time() - began),
            "rows": rows,
        },
    )


def verdicts(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each sentence of the expectation."""
    mae = {(r["episodes"], r["arm"]): r["mae"] for r in table}
    kinds = list(dict.fromkeys(r["episodes"] for r in table))
    claims = [
        ("recurrent errs by at most 0.05 where it succeeds", mae["succeeds", "recurrent"], 0.05),
        ("the counter errs by at most 0.15 there", mae["succeeds", "counter"], 0.15),
        *(
            (f"{k}: recurrent at most a third of the counter", mae[k, "recurrent"] / mae[k, "counter"], 1 / 3)
            for k in ("stops", "hovers", "told another")
        ),
        *(
            (f"{k}: recurrent at most a third of a clip", mae[k, "recurrent"] / mae[k, "single clip"], 1 / 3)
            for k in kinds
        ),
        (
            "reordered: recurrent is worse than in order",
            mae["succeeds", "recurrent"] / mae["reordered", "recurrent"],
            1.0,
        ),
        (
            "reordered: recurrent at most half of the counter",
            mae["reordered", "recurrent"] / mae["reordered", "counter"],
            0.5,
        ),
    ]
    return [{"claim": c, "value": v, "bound": b, "holds": bool(v <= b)} for c, v, b in claims]


if __name__ == "__main__":
    main()
