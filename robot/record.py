"""Record demonstrations into an episode store."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.features import IMAGES, Feature, Features, is_image, require_same
from ..datasets.recording.recorder import Recorder
from ..datasets.recording.writer import Durability
from ..datasets.steps import parts
from ..datasets.store import EpisodeStore
from ..drivers.arm import Calibrated
from ..drivers.camera import Camera, depth_of
from .agent import Agent
from .config import Rig
from .continued import differences, require_rate, require_storage, sentence
from .keys import Keys
from .onlooker import Onlooker
from .own_rate import own_rate
from .scene import Demonstration
from .takes import RESET_S, TakeResult, take_episodes


@dataclass(frozen=True)
class RecordResult:
    """dropped: rows of each stream that were lost, over all episodes: frames that a camera or the loop
    missed, and what the writing process could not take in time."""

    out: Path
    episodes: int
    successes: int
    frames: int
    dropped: dict[str, int]


def record(
    rig: Rig,
    agent: Agent,
    out: str | Path,
    episodes: int,
    seed: int = 0,
    only_successes: bool = False,
    report: Callable[[int, int, int], None] = lambda episodes, successes, rows: None,
    *,
    keys: Keys | None = None,
    storage: Mapping[str, Any] | None = None,
    image_size: tuple[int, int] | None = None,
    durability: Durability = "process",
    task: str = "",
    max_seconds: float | None = None,
    reset_seconds: float = RESET_S,
    say: Callable[[str], None] = lambda sentence: None,
    onlooker: Onlooker | None = None,
) -> RecordResult:
    """Record `episodes` episodes with seeds `seed`, `seed + 1`, … into the store `out`, new or of the same
    features; one that is continued goes on after its highest seed.

    Every episode is kept and marked with its outcome; with `only_successes` a failed one is discarded and its
    seed spent. Seeds are stored; evaluation counts from 1000 by default, so a few hundred demonstrations are
    disjoint from it. An interrupted recording leaves its finished episodes, and the one that broke off marked
    as such.

    keys: may end an episode, mark its outcome, repeat it, drop the one before it, or quit. storage: how the
    images of a new store are kept (`{"codec": "jpeg", "quality": 95}`), image_size `(height, width)` what
    they are shrunk to.

    Where nobody can set the scene up but people, task is the instruction, or several with semicolons between:
    the one of which the store has the fewest episodes is next, and the operator is told which. max_seconds
    (60 by default) ends an episode, and after each there are reset_seconds, or the wait for a key, to put
    things back. A robot with a home pose goes there first. say: told what is not as it was in the last
    episode of a store that goes on, and what the safety filter did in an episode.
    onlooker: shows all that to the operator."""
    tasks = parts(task)
    if rig.scene is None and not tasks:
        raise ValueError("say what is to be done, in words: --task 'pick up the cube'")
    store = open_store(rig, out, task, storage, image_size)
    meta = episode_metadata(rig)
    now = {**meta, "task": rig.scene.instruction if rig.scene is not None else ""}
    if len(tasks) == 1:
        now["task"] = tasks[0]
    if changes := sentence(out, differences(store, rig.robot.name, now)):
        say(changes)
    old_seeds = [int(e.attrs["seed"]) for e in store.episodes if "seed" in e.attrs]
    # a dataset that is continued gets new episodes, not the same again
    seed = max([seed, *(s + 1 for s in old_seeds)])

    n_told = 0

    def count(results: Sequence[TakeResult]) -> None:
        nonlocal n_told
        if len(results) > n_told and results[-1].safety:
            say(f"episode {len(results)}: {results[-1].safety}")
        n_told = len(results)
        report(len(results), sum(t.success is True for t in results), sum(t.ticks for t in results))

    with recorder_for(rig, store, durability) as recorder:
        results = take_episodes(
            rig,
            agent,
            episodes,
            seed,
            recorder,
            keys,
            tasks=tasks,
            max_seconds=max_seconds,
            reset_seconds=reset_seconds,
            meta=meta,
            others=[] if rig.remote is None else [Demonstration(rig.remote)],
            only_successes=only_successes,
            report=count,
            onlooker=onlooker,
        )
    successes, frames = sum(t.success is True for t in results), sum(t.ticks for t in results)
    return RecordResult(Path(out), len(results), successes, frames, total_drops(results))


def recorder_for(rig: Rig, store: EpisodeStore, durability: Durability = "process") -> Recorder:
    """A recorder into `store`. Frames of real cameras come to it at their own rate; a robot that runs in real
    time does not wait for it."""
    return Recorder(store, durability, own_rate(rig.robot), "drop" if rig.realtime else "wait")


def total_drops(results: Sequence[TakeResult]) -> dict[str, int]:
    """Rows lost of each stream, over all episodes."""
    total: Counter[str] = Counter()
    for t in results:
        total.update(t.dropped)
    return dict(total)


def dropped_message(dropped: Mapping[str, int]) -> str:
    """A line with how many rows of each stream were dropped; "" where none were."""
    counts = ", ".join(f"{n} of {k}" for k, n in dropped.items())
    why = "dropped because a camera, the loop, the disk or the encoders could not keep up"
    return f"\n{why}: {counts}" if counts else ""


def open_store(
    rig: Rig,
    out: str | Path,
    task: str = "",
    storage: Mapping[str, Any] | None = None,
    image_size: tuple[int, int] | None = None,
) -> EpisodeStore:
    """The dataset `out` for what `rig` observes: new, or one with the same features that is to be
    continued."""
    robot, scene = rig.robot, rig.scene
    features = _features_at(robot.features, image_size)
    if (Path(out) / "ulna.json").exists():
        store = EpisodeStore.open(out)
        require_storage(store, storage, image_size)
        require_rate(store, robot.control_hz)
        features = _features_at(robot.features, _stored_size(store, robot.features))
        require_same(store.features, features, f"the dataset {out}", "the robot")
        require_same(features, store.features, "the robot", f"the dataset {out}")
    else:
        options = {**(storage or {}), **({"resize": True} if image_size else {})}
        store = EpisodeStore.create(
            out,
            features,
            robot.control_hz,
            robot.name,
            {
                "made_by": f"ulna {version('ulna')}",
                "task": scene.task_name if scene is not None else task,
                "randomisation": scene.xi if scene is not None else {},
            },
            {k: options for k in features if is_image(k)} if options else None,
        )
    return store


def episode_metadata(rig: Rig) -> dict[str, Any]:
    """The metadata of every episode, so that it can be understood without the machine that recorded it."""
    arms = rig.robot.arms
    names = rig.robot.features["action"].names
    lower = np.concatenate([a.joints.lower for a in arms.values()]).tolist()
    upper = np.concatenate([a.joints.upper for a in arms.values()]).tolist()
    return {
        "software": f"ulna {version('ulna')}",
        "robot_config": _without_secrets(rig.config),
        "limits": {n: [lo, hi] for n, lo, hi in zip(names, lower, upper, strict=True)},
        "calibration": {name: arm.calibration for name, arm in arms.items() if isinstance(arm, Calibrated)},
        "cameras": {name: _lens(camera) for name, camera in rig.robot.cameras.items()},
    }


def _without_secrets(value: Any) -> Any:
    """`value` with the user and password in addresses replaced by ***, and so the values behind `?`, where
    cameras take passwords as well: a dataset is passed on, a camera's password is not."""
    if isinstance(value, Mapping):
        return {k: _without_secrets(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_secrets(v) for v in value]
    if isinstance(value, str) and "://" in value:
        value = re.sub(r"://\S*@", "://***@", value)
        return re.sub(r"([?&][^=&#\s]*)=[^&#\s]*", r"\1=***", value)
    return value


def _lens(camera: Camera) -> dict[str, Any]:
    """What turns pixels into rays, and depth into metres; None where unknown. Intrinsics are those of frames
    as they were delivered; where the dataset keeps images smaller, their `width` and `height` say by how
    much to scale."""
    lens, depth = camera.intrinsics, depth_of(camera)
    return {
        "intrinsics": None if lens is None else {**asdict(lens), "matrix": lens.matrix.tolist()},
        "depth_scale_m": None if depth is None else depth.depth_scale_m,
    }


def _features_at(features: Features, size: tuple[int, int] | None) -> Features:
    if size is None:
        return features
    return {
        k: Feature((*size, *f.shape[2:]), f.dtype, f.names, f.units) if is_image(k) else f
        for k, f in features.items()
    }


def _stored_size(store: EpisodeStore, features: Features) -> tuple[int, int] | None:
    """(height, width) that the store shrinks images to, None where it keeps them as they come."""
    keys = [k for k, options in store.storage.items() if options.get("resize") and k.startswith(IMAGES)]
    if not keys or keys[0] not in features:
        return None
    height, width = store.features[keys[0]].shape[:2]
    return height, width
