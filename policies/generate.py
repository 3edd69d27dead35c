"""A generator draws a policy: what it gives is the weights of a checkpoint, which is written as any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.features import ACTION, STATE
from ..datasets.opened import open_dataset
from .checkpoint import load_checkpoint, read_train, save_checkpoint
from .lerobot.folder import checkpoint_folder
from .policy import Policy
from .recipes.generators import METRIC
from .request import Request
from .train.config import CONFIG_FILE
from .train.error import TrainingError
from .train.state import make_folder, one_sentence
from .weights import aligned, meaning, set_vector
from .zoo import BEHAVIOUR, ROBOT, Member, elements, trajectory


def generate(
    generator: str | Path,
    like: str | Path,
    out: str | Path,
    shown: str | Path = "",
    episode: int = 0,
    metric: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the checkpoint `out`, whose weights the checkpoint `generator` draws; all else is of the
    checkpoint `like`, of the zoo that the generator learned from: recipe, features, statistics.

    shown: a dataset, of which `episode` shows what the policy is to do, for generators that are told a
    behaviour. metric: the success rate that is wanted, 0 to 1, for those that are told one; they begin from
    the weights of `like`. seed: of the draw. Returns what `ulna generate` prints (JSON types). TrainingError,
    CheckpointError, StoreError or FeatureMismatch in one sentence."""
    generator, like = checkpoint_folder(generator), checkpoint_folder(like)
    drawing, policy = load_checkpoint(generator), load_checkpoint(like)
    robot = read_train(generator).robot
    if not robot.startswith(ROBOT):
        raise TrainingError(
            f"{generator} makes no policies: train one that does on a dataset of `ulna data zoo`, by "
            "make_an_agent or g_pt"
        )
    if meaning(policy) != robot.removeprefix(ROBOT):
        raise TrainingError(
            f"{like} is not of the zoo that {generator} learned from: parts, features or statistics differ, "
            "so that its weights mean something else"
        )
    told: dict[str, Any] = {"like": policy.content_hash, "seed": seed}
    observation: dict[str, np.ndarray] = {}
    if BEHAVIOUR in drawing.observation_keys:
        if not shown or metric is not None:
            raise TrainingError(
                f"{generator} makes a policy of a behaviour: show it one (--shown DATA), and no --metric"
            )
        observation[BEHAVIOUR] = behaviour(drawing, policy, shown, episode)
        told |= {"shown": str(shown), "episode": episode}
    if STATE in drawing.observation_keys:
        if metric is None or shown:
            raise TrainingError(
                f"{generator} makes a policy of another and of the success that is wanted: say it "
                "(--metric 0.9), and no --shown"
            )
        if not 0 <= metric <= 1:
            raise TrainingError(f"the metric is a success rate, 0 to 1, not {metric:g}")
        now = Member(like, policy).metric if METRIC in drawing.observation_keys else 0.0
        observation[STATE] = aligned(policy, drawing.stats[STATE].mean.astype(np.float32))
        observation[METRIC] = np.array([now, metric], np.float32)
        told |= {"metric": [now, metric]}
    set_vector(policy, draw(drawing, observation, seed))
    out = Path(out)
    make_folder(out, overwrite, main=True)
    record = replace(read_train(like), generated={"by": drawing.content_hash, **told})
    with one_sentence(out):
        content_hash = save_checkpoint(out, policy, record)
        (out / CONFIG_FILE).unlink(missing_ok=True)  # of a training that was here
    weights = drawing.features[ACTION].shape[0]
    result = {"checkpoint": str(out), "content_hash": content_hash, "by": drawing.content_hash}
    return {**result, **told, "weights": weights}


def behaviour(drawing: Policy, policy: Policy, shown: str | Path, episode: int) -> np.ndarray:
    """What the generator `drawing` is told of an episode, `(D,)`. StoreError in one sentence where the data
    are none that `policy` could have learned from."""
    features = policy.features
    (of,) = open_dataset(shown).choose([episode])
    of.require_fit(features, list(features))
    ticks = drawing.features[BEHAVIOUR].shape[0] // elements(policy)
    return trajectory(of, features, ticks)


def draw(drawing: Policy, observation: dict[str, np.ndarray], seed: int) -> np.ndarray:
    """The weights `(W,)` that a generator makes of one observation."""
    rows = {k: torch.as_tensor(v)[None, None] for k, v in observation.items()}
    rows = {k: v.expand(-1, drawing.recipe.n_obs_steps, -1) for k, v in rows.items()}
    return drawing.sample(Request(rows, seed)).chunk[0, 0].cpu().numpy()
