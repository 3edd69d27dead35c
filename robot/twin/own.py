"""The twin of one's own robot: what the robot's file names, with physics behind it in the place of the
devices."""

from __future__ import annotations

import contextlib
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...drivers.arm import DeviceError
from ..beside import NotStarted, beside
from ..config import read_config
from .station import KINDS

VIEWS = ("front", "wrist")  # of a twin's cameras
NOT_OURS = ("arms", "leaders", "teleoperators", "cameras", "scene", "validation")


@contextlib.contextmanager
def own_twin(robot_file: str, task: str, cameras: Sequence[str] | None = None) -> Iterator[str]:
    """A twin of the robot `robot_file`, at `task`, for the length of a `with` block; yields the path of a
    robot file for it, which is the robot's own but for its ports: the same name, rate, home pose, limits and
    cameras.

    cameras: names of those that are needed; None: all that the file has, and its trackers, which look through
    them. DeviceError in one sentence: nothing stands in for such a robot."""
    config = read_config(robot_file)
    kind, arm, table = _arm(robot_file, config)
    tables = {n: t for n, t in config.get("cameras", {}).items() if cameras is None or n in cameras}
    words = ["--scene", task, "--control-hz", str(config["control_hz"]), *_camera_words(robot_file, tables)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ulna-own-twin-")))
        try:
            answer = stack.enter_context(beside("twin", kind, *words, own_session=True))
        except NotStarted as error:
            raise DeviceError(f"{robot_file} has no twin: {error}") from None
        twin = tomllib.loads(Path(answer["toml"]).read_text())
        left_out = NOT_OURS if cameras is None else (*NOT_OURS, "trackers")
        own = {k: v for k, v in config.items() if k not in left_out}
        own["arms"] = {arm: {**table, **twin["arms"]["arm"]}}
        own |= {k: twin[k] for k in ("cameras", "scene") if k in twin}
        own.setdefault("home", twin["home"])
        own["safety"] = twin["safety"] | own.get("safety", {})
        path = folder / Path(robot_file).name
        path.write_text(_toml(own))
        yield str(path)


def _arm(robot_file: str, config: Mapping[str, Any]) -> tuple[str, str, Mapping[str, Any]]:
    """(Kind of the twin, name of the arm, its table)."""
    arms = config.get("arms", {})
    if len(arms) != 1:
        raise DeviceError(f"a twin has one arm, and {robot_file} has {len(arms)}: evaluate on a sim: robot")
    ((name, table),) = arms.items()
    kind = str(table.get("model", "")) if table["driver"] == "ur" else str(table["driver"])
    arms_of_twins = [k for k, other in KINDS.items() if other.protocol and not k.endswith("-leader")]
    if kind not in arms_of_twins:
        called = kind or "UR without a model"
        raise DeviceError(
            f"no twin stands in for a {called} ({robot_file}, [arms.{name}]): there are "
            f"{', '.join(arms_of_twins)}"
        )
    return kind, name, table


def _camera_words(robot_file: str, tables: Mapping[str, Any]) -> list[str]:
    if not tables:
        return []
    if strange := [n for n in tables if n not in VIEWS]:
        raise DeviceError(
            f"a twin has the cameras {' and '.join(VIEWS)}, and {robot_file} has {strange[0]}: call it by "
            "what it sees, or train on the others"
        )
    shapes = {(t.get("width", 640), t.get("height", 480), float(t.get("fps", 30.0))) for t in tables.values()}
    if len(shapes) > 1:
        raise DeviceError(f"the cameras of a twin have one size and rate, and those of {robot_file} differ")
    ((width, height, fps),) = shapes
    depth = [n for n, t in tables.items() if t["driver"] == "realsense"]
    words = ["--cameras", ",".join(tables), "--image-size", f"{width}x{height}", "--fps", str(fps)]
    return words + (["--realsense", ",".join(depth)] if depth else [])


def _toml(config: Mapping[str, Any]) -> str:
    from ...policies.train.config import to_toml

    return to_toml(config)
