"""A zoo: a folder of checkpoints of one small recipe, and the dataset that a generator of policies learns
from. In that dataset a policy is an action, of as many elements as it has weights; an episode is a training
run, so that those which are held out are whole runs; and a tick is one example of it.

A folder in the zoo is a run: a checkpoint, or a folder of the checkpoints that one training passed, by
name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..datasets.episode import Episode
from ..datasets.features import ACTION, STATE, Feature, Features, image_keys, state_keys
from ..datasets.opened import open_dataset
from ..datasets.recording.writer import EpisodeWriter
from ..datasets.store import EpisodeStore
from .blend import difference
from .checkpoint import load_checkpoint, read_train
from .hashed import WEIGHTS, CheckpointError
from .policy import Policy
from .recipes.generators import METRIC
from .serving.validations import read_validations
from .train.error import TrainingError
from .weights import aligned, meaning, names_of, to_vector

BEHAVIOUR = "observation.behaviour"  # a trajectory, `(ticks · elements,)`, tick by tick
ROBOT = "policies "  # before the digest of what the weights mean, in the place of a dataset's robot
MOST = 200_000  # weights of a policy: each is an element of an action, with a name
ROUNDS = 3  # of numbering hidden units as in the mean of all

Told = Literal["behaviour", "metric"]


@dataclass(frozen=True)
class Member:
    """One checkpoint of a zoo."""

    folder: Path
    policy: Policy

    @property
    def metric(self) -> float:
        """The success rate that it was last evaluated with. TrainingError where it was not."""
        reports = read_validations(self.folder, self.policy.content_hash)
        if not reports:
            raise TrainingError(
                f"nobody has evaluated {self.folder}, and its success is its metric: run `ulna evaluate` on "
                "it"
            )
        return reports[0].success_rate


def read_zoo(folder: str | Path) -> list[list[Member]]:
    """The runs of a zoo by name. CheckpointError or TrainingError in one sentence where they are not of one
    kind."""
    folder = Path(folder)
    children = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    runs = [[c] if (c / WEIGHTS).is_file() else _checkpoints_in(c) for c in children]
    runs = [[Member(c, load_checkpoint(c)) for c in run] for run in runs if run]
    if sum(map(len, runs)) < 2:
        raise CheckpointError(
            f"{folder} is no zoo: it must hold folders of at least two checkpoints, trained by `ulna train`"
        )
    first = runs[0][0]
    if (weights := to_vector(first.policy).size) > MOST:
        raise TrainingError(
            f"a policy of {weights} weights is too large to be an action, whose elements are at most {MOST}: "
            "train small ones, such as --backbone SmallMLP --encoder.state.depth 0"
        )
    for member in (m for run in runs for m in run):
        if why := difference(first.policy, member.policy):
            raise TrainingError(f"{first.folder} and {member.folder} are not of one kind: {why}")
        if meaning(member.policy) != meaning(first.policy):
            raise TrainingError(
                f"{first.folder} and {member.folder} scale what they see and do otherwise, so that the same "
                "weights mean different things: begin every training from one checkpoint of all the data "
                "(--training.start), whose statistics they keep"
            )
    return runs


def _checkpoints_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if (p / WEIGHTS).is_file())


def zoo_vectors(runs: list[list[Member]]) -> list[list[np.ndarray]]:
    """The weights `(W,)` of each member, hidden units numbered alike: as in the first, then as in the mean of
    all."""
    reference = to_vector(runs[0][0].policy)
    vectors: list[list[np.ndarray]] = []
    for _ in range(ROUNDS):
        vectors = [[aligned(m.policy, reference) for m in run] for run in runs]
        reference = np.mean([v for run in vectors for v in run], axis=0)
    return vectors


def make_zoo(
    folder: str | Path,
    out: str | Path,
    told: Told,
    ticks: int = 16,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write the dataset `out` of the zoo in `folder`.

    told: what a generator is to make a policy of. `behaviour`: of one trajectory, of which `ticks` are taken
    evenly; a checkpoint is an example with every episode that it was trained on, by its `train.json`.
    `metric`: of another policy, its success and the one that is wanted; any two checkpoints of a run, each
    with its report, are an example, from the one to the other. Returns what `ulna data zoo` prints (JSON
    types). StoreError, CheckpointError or TrainingError in one sentence."""
    if ticks < 1:
        raise TrainingError(f"a trajectory has at least 1 tick, not {ticks}")
    runs = read_zoo(folder)
    policy = runs[0][0].policy
    if told == "metric" and all(len(run) < 2 for run in runs):
        raise TrainingError(
            f"{folder} has no training with two checkpoints, of which one could become the other: put those "
            "of one training into a folder of their own there"
        )
    weights = names_of(policy)
    features: Features = {ACTION: Feature((len(weights),), "float32", weights, ("1",) * len(weights))}
    if told == "behaviour":
        features[BEHAVIOUR] = Feature((ticks * elements(policy),), "float32")
    else:
        features[STATE] = features[ACTION]
        features[METRIC] = Feature((2,), "float32", ("now", "wanted"), ("1", "1"))
    vectors = zoo_vectors(runs)
    rows = examples_of_behaviour if told == "behaviour" else examples_of_metric
    store = EpisodeStore.create(out, features, 1.0, ROBOT + meaning(policy))
    count = 0
    with EpisodeWriter(store) as writer:
        for run, of_run in zip(runs, vectors, strict=True):
            writer.start({"task": "", "run": str(run[0].folder if len(run) == 1 else run[0].folder.parent)})
            for t, row in enumerate(rows(run, of_run, ticks)):
                at = t * 1_000_000_000
                writer.tick(row, {k: (at, at) for k in row})
                count += 1
            writer.end({"success": True})
    store.refresh()
    if len(store) < len(runs):
        say(f"{len(runs) - len(store)} trainings have nothing to learn from, and are left out")
    return {
        "out": str(out),
        "runs": len(store),
        "policies": sum(map(len, runs)),
        "examples": count,
        "weights": len(weights),
    }


def elements(policy: Policy) -> int:
    """Numbers of a trajectory at one tick: the vectors that the policy sees, then its action. TrainingError
    where it sees pictures alone."""
    keys = state_keys(policy.features)
    if not keys or image_keys(policy.features):
        raise TrainingError(
            f"a behaviour is told by vectors, and this {policy.recipe.name} sees pictures, too, or alone: "
            "train a zoo without them (--observe)"
        )
    return sum(policy.features[k].shape[0] for k in (*keys, ACTION))


def trajectory(episode: Episode, features: Features, ticks: int) -> np.ndarray:
    """`(ticks · elements,)` float32: `ticks` of an episode, from its first to its last, evenly."""
    streams = [np.asarray(episode.read(k), np.float32) for k in (*state_keys(features), ACTION)]
    rows = [s[np.linspace(0, len(s) - 1, ticks).round().astype(np.int64)] for s in streams]
    return np.concatenate(rows, axis=-1).ravel()


def examples_of_behaviour(
    run: list[Member], vectors: list[np.ndarray], ticks: int
) -> Iterator[dict[str, np.ndarray]]:
    """A row of the dataset for each checkpoint of a run and each episode that it was trained on."""
    for member, vector in zip(run, vectors, strict=True):
        record, features = read_train(member.folder), member.policy.features
        for path, numbers in zip(record.data.split(" "), record.episodes, strict=True):
            store = open_dataset(path)
            for episode in store.choose(numbers):
                episode.require_fit(features, (*state_keys(features), ACTION))
                yield {ACTION: vector, BEHAVIOUR: trajectory(episode, features, ticks)}


def examples_of_metric(
    run: list[Member], vectors: list[np.ndarray], ticks: int
) -> Iterator[dict[str, np.ndarray]]:
    """A row of the dataset for each two checkpoints of a run, in either order. ticks: not used."""
    metrics = [member.metric for member in run] if len(run) > 1 else [0.0]
    for i, start in enumerate(vectors):
        for j, end in enumerate(vectors):
            if i != j:
                metric = np.array([metrics[i], metrics[j]], np.float32)
                yield {STATE: start, METRIC: metric, ACTION: end}
