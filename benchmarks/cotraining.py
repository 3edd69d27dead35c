"""Whether a small vision-language policy keeps its words while it learns to act, with and without co-training
(`training.words`).

It first learns, on demonstrations of `words` that are told in many sentences, to write the plain instruction
of each ("push the red puck left"). Then it is tuned to other demonstrations, of which some directions are
left out, and asked again, in sentences of forms that it never heard: which of all plain instructions is the
likeliest? Of 16; chance is 1 in 16.

    python benchmarks/cotraining.py [--seeds 3] [--work FOLDER] [--quick]

before: not tuned. without: tuned to act alone. with: tuned with the words of the new demonstrations.
frozen, the control: tuned with the language model as it is, which can forget nothing, so that what it is
said to lose is the measure's noise."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch

from ulna.datasets.edit import relabel
from ulna.datasets.store import EpisodeStore
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.cotraining import likelihoods
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipes.all import RECIPES
from ulna.policies.request import Request
from ulna.policies.train.data import open_data, window_spec
from ulna.policies.train.loop import train
from ulna.robot.rollout import env_features
from ulna.robot.study.arms import task_maker
from ulna.robot.study.demonstrations import gather_demonstrations, record_demonstrations
from ulna.sim.planar.phrases import phrase
from ulna.sim.planar.words import COLOURS, DIRECTIONS, PAIRS

NAMES = list(DIRECTIONS)
ALL = [(COLOURS[c], NAMES[d]) for c, d in PAIRS["all"]]
TUNED = "left"  # the direction of the demonstrations that it is tuned to
RECIPE = "pi05_small"
HEARD = 12  # sentences of each episode
ASKED = 10  # sentences of each pair
ARMS: dict[str, dict[str, Any]] = {
    "without": {},
    "with": {"training.words": 1.0, "training.words_of": "task"},
    "frozen": {"training.freeze": ["encoder.*"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/cotraining"))
    parser.add_argument("--quick", action="store_true", help="few steps of one training; nothing is saved")
    args = parser.parse_args()
    work = args.work / "quick" if args.quick else args.work
    first, tuned = (30, 30) if args.quick else (2000, 1000)
    wide = recorded("all", 32 if args.quick else 320, work)
    narrow = recorded(TUNED, 16 if args.quick else 80, work)
    rows = []
    for seed in range(1 if args.quick else args.seeds):
        knows = trained(wide, work / f"before-{seed}", seed, first, ARMS["with"])
        rows.append({"arm": "before", "seed": seed, **asked(knows, wide)})
        for arm, changes in ARMS.items():
            changes = {**changes, "training.start": str(work / f"before-{seed}")}
            policy = trained(narrow, work / f"{arm}-{seed}", seed, tuned, changes)
            rows.append({"arm": arm, "seed": seed, **asked(policy, wide)})
    for row in rows:
        print(row)
    if not args.quick:
        results.save("cotraining", {"table": rows})


def recorded(pairs: str, count: int, work: Path) -> EpisodeStore:
    """Demonstrations, each with the plain instruction as its task and others as its wordings."""
    folder = work / pairs
    if folder.is_dir():
        return EpisodeStore.open(folder)
    make = task_maker("words", {"pairs": pairs})
    env = make(1)
    demos = gather_demonstrations(make, 0, count, 0.005)
    store = record_demonstrations(demos, folder, env_features(env), float(env.control_hz), "sim:words")
    for episode, demo in zip(store.episodes, demos, strict=True):
        colour, direction = env.pair(demo.seed)
        named = COLOURS[colour], NAMES[direction]
        said = [phrase("heard", HEARD * demo.seed + k, *named) for k in range(HEARD)]
        relabel(store, [episode.index], {"phrases": sorted(set(said))})
    env.close()
    return EpisodeStore.open(folder)


def trained(store: EpisodeStore, out: Path, seed: int, steps: int, changes: dict[str, Any]) -> Policy:
    shutil.rmtree(out, ignore_errors=True)
    data = open_data(store.path)
    given = {"encoder.language.gives": "words", "training.steps": steps, "training.warmup": 50, **changes}
    train(override(RECIPES[RECIPE](data.features), given), data, out, seed=seed, device="cpu", track=())
    return load_checkpoint(out)


def asked(policy: Policy, store: EpisodeStore) -> dict[str, float]:
    """Shares of sentences of unheard forms of which the plain instruction is the likeliest: of the direction
    that it was tuned to, and of the others. What is seen is of the first ticks of `store`."""
    data = open_data(store.path)
    windows = data.windows(window_spec(policy.recipe, data.features)).train
    plain = [phrase("plain", 0, *pair) for pair in ALL]
    right: dict[bool, list[bool]] = {True: [], False: []}
    for n, (colour, direction) in enumerate(ALL):
        said = [phrase("held-out", 1000 + k, colour, direction) for k in range(ASKED)]
        seen = windows.batch(np.arange(ASKED))
        observation = {k: torch.from_numpy(seen[k]) for k in policy.observation_keys}
        with torch.no_grad():
            context = policy.context(Request(observation, 0, task=said))
            likeliest = likelihoods(policy, context, plain).argmax(1)
        right[direction == TUNED] += (likeliest == n).tolist()
    return {"tuned": float(np.mean(right[True])), "others": float(np.mean(right[False]))}


if __name__ == "__main__":
    main()
