"""The filter for a robot, from its file: which of its arms have a known shape, and what of `[safety]`
contradicts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from ...drivers.arm import DeviceError, Joints
from ..kinematics import MODELS, UR_DH
from .body import Body
from .filter import Bodies, Filter
from .limits import Safety, groups
from .obstacles import obstacles_of
from .pair import RESTS_M, Pair
from .stage import Stage
from .stages.barrier import barrier_of, config_of
from .stages.guard import guard_of
from .stages.smoothing import smoothing_of
from .stages.tank import tank_of

StageOf = Callable[[Mapping[str, Any], Joints, Safety, Bodies, str], Stage]
# by NAME: the stage that a table `[safety.NAME]` asks for. DeviceError: the table is wrong
STAGES: Mapping[str, StageOf] = {
    "smoothing": smoothing_of,
    "guard": guard_of,
    "barrier": barrier_of,
    "tank": tank_of,
}


def filter_for(
    config: Mapping[str, Any], joints: Joints, where: str = "[safety]"
) -> tuple[Filter, tuple[str, ...]]:
    """The filter for the robot of the file `config`, and what is to be said on the screen once. joints: of
    all its arms. where: the file and table, for messages. DeviceError: `[safety]` is wrong, or contradicts
    the robot."""
    safety = Safety.of(config, joints, where)
    bodies, texts = bodies_of(config, joints, safety, where)
    if not safety.given:
        texts = (f"no table [safety] in the robot's file: its arms keep to {safety.summary()}", *texts)
    return Filter(joints, safety, bodies, stages_of(config, joints, safety, bodies, where)), texts


def stages_of(
    config: Mapping[str, Any], joints: Joints, safety: Safety, bodies: Bodies, where: str = "[safety]"
) -> list[Stage]:
    """The stages that the file's `[safety.NAME]` ask for, in the order of its tables, as at the start.
    DeviceError: one is wrong, or cannot be with these arms."""
    tables = config.get("safety", {})
    file = where.removesuffix("[safety]")
    return [
        STAGES[name](table, joints, safety, bodies, f"{file}[safety.{name}]")
        for name, table in tables.items()
        if name in STAGES
    ]


def bodies_of(
    config: Mapping[str, Any], joints: Joints, safety: Safety, where: str = "[safety]"
) -> tuple[dict[str, Body], tuple[str, ...]]:
    """The bodies by arm, "" where the robot has one, and what is to be said of those without. DeviceError:
    `[safety]` contradicts a body. Takes a second, which is Pinocchio's."""
    bodies: dict[str, Body] = {}
    texts: list[str] = []
    barrier = config.get("safety", {}).get("barrier")
    here, margin, around = f"{where.removesuffix('[safety]')}[safety.barrier]", 0.0, {}
    if barrier is not None:
        c = config_of(barrier, here)
        margin, around = c.margin, obstacles_of(c.obstacles, groups(joints), here)
    for arm, (columns, _) in groups(joints).items():
        names = [joints.names[j].rpartition(".")[2] for j in columns]
        model, simulated = _model(config, arm)
        if not simulated and model not in MODELS:
            hint = f'; say which UR it is, like model = "{next(iter(UR_DH))}"' if model == "ur" else ""
            texts.append(
                f"the shape of {f'the arm {arm}' if arm else 'this arm'} ({model}) is not known: neither "
                f"table nor workspace nor self-collision is checked{hint}"
            )
            continue
        body = Body(
            model,
            names,
            simulated,
            safety.table.get(arm),
            safety.workspace.get(arm),
            safety.self_distance,
            safety.table_distance,
            around.get(arm, ()),
        )
        _require_possible(body, arm, columns, safety, where)
        for words, q in _poses(config, joints, safety, model, simulated, columns):
            _require_clear(body, q, margin, f"{words}{f' of {arm}' if arm else ''}", here)
        bodies[arm] = body
    texts += _place(config, joints, safety, bodies, where)
    return bodies, tuple(texts)


def _place(
    config: Mapping[str, Any], joints: Joints, safety: Safety, bodies: Mapping[str, Body], where: str
) -> list[str]:
    """Tell each body of several arms where it stands. Returns what is to be said where that is not known.
    DeviceError: there they cannot stand."""
    columns = {arm: own for arm, (own, _) in groups(joints).items()}
    bases = _bases(config, safety, where)
    if len(bodies) > 1 and not bases:
        arms = " and ".join(columns)
        return [f"{where} does not say where the bases of {arms} are: these arms are not kept off each other"]
    for arm, body in bodies.items():
        body.base = bases.get(arm)
    for a, b in combinations(bodies, 2):
        pair = Pair((a, b), (bodies[a], bodies[b]), (columns[a], columns[b]), safety)
        if pair.overlaps():
            raise DeviceError(f"{where}: the bases of {a} and {b} are in each other: say where each stands")
        if safety.rest is not None:
            at, text = pair.nearest(*(safety.rest[columns[arm]].tolist() for arm in (a, b)))
            if at < (least := safety.arm_distance + RESTS_M):
                raise DeviceError(
                    f"{where}: at rest is {text}, and arms rest {least:g} m apart: choose a rest pose that "
                    "keeps them apart, or a smaller arm_distance"
                )
    return []


def _bases(
    config: Mapping[str, Any], safety: Safety, where: str
) -> Mapping[str, tuple[float, float, float, float]]:
    if "arms" in config:
        return safety.bases
    from ...sim.robots import PAIRS, arms_of

    model = str(config["model"])
    if safety.bases:
        raise DeviceError(f"{where}: the arms of a {model} stand where its scene has them: leave bases out")
    if model not in PAIRS:
        return {}
    return {arm: (r.stand.x, r.stand.y, 0.0, r.stand.yaw) for arm, r in arms_of(model).items()}


def _model(config: Mapping[str, Any], arm: str) -> tuple[str, bool]:
    if "arms" not in config:
        from ...sim.robots import PAIRS

        model = str(config["model"])
        return (PAIRS[model][0] if model in PAIRS else model), True
    tables = config["arms"]
    table = tables[arm] if arm else next(iter(tables.values()))
    return str(table.get("model") or table["driver"]), False


def _poses(
    config: Mapping[str, Any],
    joints: Joints,
    safety: Safety,
    model: str,
    simulated: bool,
    columns: list[int],
) -> list[tuple[str, np.ndarray]]:
    """Where the arm with the joints `columns` stands by itself, in words and `(J,)`."""
    poses: list[tuple[str, np.ndarray]] = []
    if safety.rest is not None:
        poses.append(("at rest", safety.rest[columns]))
    home = config.get("home")
    if isinstance(home, list) and len(home) == len(joints):  # what else it may be is refused elsewhere
        poses.append(("at home", np.array(home, np.float64)[columns]))
    elif simulated:
        from ...sim.robots import ROBOTS

        poses.append(("where its episodes begin", ROBOTS[model]().home))
    return poses


def _require_clear(body: Body, q: np.ndarray, margin: float, words: str, where: str) -> None:
    clearance = body.clearance()
    if not clearance.names:
        return
    distances = clearance.distances(q)
    k = int(np.argmin(distances))
    if distances[k] < margin:
        part, obstacle = clearance.names[k]
        how = f"{distances[k]:.3f} m from" if distances[k] > 0 else "in"
        raise DeviceError(
            f"{where}: {words} the arm's {part} is {how} {obstacle}, and the margin is {margin:g} m: move "
            "the obstacle, choose another pose, or a smaller margin"
        )


def _require_possible(body: Body, arm: str, columns: list[int], safety: Safety, where: str) -> None:
    whose = f" of {arm}" if arm else ""
    if body.table is not None and body.table > body.foot + 1e-9:
        raise DeviceError(
            f"{where}: the table{whose} is {body.table:g} m above the arm's base, and its second joint is at "
            f"{body.foot:.3g} m: give the table's height in the base frame"
        )
    if body.workspace is not None:
        nearest = np.clip(body.shoulder, *body.workspace)
        if (gap := float(np.linalg.norm(nearest - body.shoulder))) > body.reach:
            raise DeviceError(
                f"{where}: the workspace{whose} begins {gap:.2f} m from the arm's shoulder, and the arm "
                f"reaches {body.reach:.2f} m"
            )
    if safety.rest is not None:
        q = safety.rest[columns].tolist()
        if touching := body.touching(q):
            raise DeviceError(f"{where}: at rest{whose} is {touching[0]}: choose a rest pose that is clear")
        if body.fault(q):
            raise DeviceError(f"{where}: rest{whose} has the tip outside the workspace")
