"""The part of `head_to_head.py` on recorded episodes: every method predicts each episode once, from the
others, in open loop, beside holding the last command and going on in a straight line. Whole episodes are
resampled for the intervals, since ticks of one are no independent trials."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from head_to_head_methods import settings, stopwatch
from head_to_head_result import cross_validated, folds

from ulna.datasets.features import IMAGES, Features, image_keys
from ulna.datasets.formats.lerobot import import_lerobot
from ulna.datasets.formats.naming import Naming
from ulna.datasets.store import EpisodeStore
from ulna.policies.recipes.all import RECIPES
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.train.data import DataOptions, open_data, policy_features
from ulna.policies.train.loop import train
from ulna.robot.commands.recipe_fields import with_changes
from ulna.robot.openloop import open_loop

# what `make demo-real` learned on two of the episodes, for all methods alike: chunks of about a second,
# measured from the last command
CHUNK = {"codec": "Delta", "n_past_actions": 1, "horizon": 32, "n_action_steps": 16}
LONG = 16  # observations of the method with a long context
REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "flow": ("flow", {}),
    "act": ("act", {}),
    "diffusion_unet": ("diffusion_unet", {}),
    "diffusion_transformer, long context": ("diffusion_transformer", {"n_obs_steps": LONG}),
}
PACE_STEPS = 30


def recipe_of(name: str, features: Features, size: str, steps: int) -> Any:
    source, own = REAL[name]
    recipe = RECIPES[source](features)
    # with pictures the recipes' own batches
    chosen = {
        k: v
        for k, v in settings(source, size, steps).items()
        if k != "training.batch_size" or not image_keys(features)
    }
    return with_changes(recipe, {**CHUNK, **chosen, **own})


def cross_validate(source: Path, work: Path, args: argparse.Namespace) -> None:
    """Write `work`/NAME.json of the LeRobot folder `source`. Each finished fold is a file beside it."""
    name = source.resolve().name + (f"-{args.image_size}px" if args.image_size else "")
    folder, data = work / name, work / name / "data"
    if not data.is_dir():
        if args.image_size:
            import_lerobot(source, data, (args.image_size,) * 2)
        else:
            import_lerobot(source, data, naming=Naming({}, (f"{IMAGES}*",)))
    store = EpisodeStore.open(data)
    numbers = [e.index for e in store.episodes if not e.attrs.get("interrupted")]
    parts = folds(numbers, args.leave_out)
    seconds = 1.0 if args.quick else args.seconds
    parts = parts[:2] if args.quick else parts
    chosen = [n for n in REAL if REAL[n][0] in args.methods]
    features = policy_features(dict(store.features))
    for i, part in enumerate(parts):
        for method in chosen:
            file = folder / method / f"{seconds:g}s-leave-{args.leave_out}-fold-{i}.json"
            if file.is_file():
                continue
            rest = DataOptions(episodes=tuple(n for n in numbers if n not in part))
            checkpoint = file.with_suffix(".policy")
            steps = PACE_STEPS
            for turn in ("pace", "training"):
                shutil.rmtree(checkpoint, ignore_errors=True)
                opened = open_data(data, options=rest)
                share_so_far = stopwatch()
                trained = train(
                    recipe_of(method, features, args.size, steps),
                    opened,
                    checkpoint,
                    device=args.device,
                    track=(),
                )
                share = share_so_far()
                if turn == "pace":
                    steps = max(PACE_STEPS, int(0.97 * seconds / (share * trained.seconds / PACE_STEPS)))
            policy = LocalPolicy(checkpoint, args.device)
            rows = []
            for episode in part:
                o = open_loop(policy, data, [episode])
                rows.append(
                    {
                        "fold": i,
                        "episode": episode,
                        "error": {n: e.mean for n, e in o.relative_error.items()},
                        "n_ticks": o.n_ticks,
                        "training_seconds": trained.seconds,
                        "steps": steps,
                        "nfe_per_decision": o.nfe_per_decision,
                        "parameters": trained.parameters,
                    }
                )
            new = file.with_suffix(".new")
            new.write_text(json.dumps(rows) + "\n")
            os.replace(new, file)
            shutil.rmtree(checkpoint)
            errors = ", ".join(f"{r['error']['policy']:.3f}" for r in rows)
            print(f"{name}, episodes {part}: {method} {errors}", file=sys.stderr, flush=True)
    methods = {}
    for method in chosen:
        files = sorted((folder / method).glob(f"{seconds:g}s-leave-{args.leave_out}-fold-*.json"))
        methods[method] = cross_validated([row for file in files for row in json.loads(file.read_text())])
    result = {
        "robot": store.robot,
        "episodes": len(numbers),
        "leave_out": args.leave_out,
        "seconds": seconds,
        "sees": "state and pictures" if args.image_size else "state",
        "methods": methods,
    }
    (work / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
