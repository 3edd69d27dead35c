"""What the stages of the safety filter hold and what they cost: the barrier with an arm among obstacles, the
energy tank with a mass against a stiff wall.

    python benchmarks/action_filters.py [EPISODES]

What a tick costs is time of the processor, so that other work on the machine is left out."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import results
import stiff_wall

from ulna.robot.config import Rig, load_robot
from ulna.robot.safety.arms import bodies_of, filter_for
from ulna.robot.safety.filter import Filter
from ulna.robot.safety.limits import Safety
from ulna.robot.safety.stages.tank import Tanks
from ulna.sim.robots import ROBOTS
from ulna.sim.scene import SimScene

SO101 = ROBOTS["so101"]()
JOINTS, HOME = SO101.joints, SO101.home
HZ, TICKS, ARRIVED = 20.0, 120, 0.03
MARGIN = 0.02
# of a simulated SO-101, whose drives are no springs: what tanks are tried with, not what they should be given
TANK = {"stiffness": 10.0, "damping": 0.4, "begin": 2.0, "most": 4.0}
T0 = (0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 5.0)


class Field:
    """Three obstacles within the arm's reach, clear of two poses that are the ends of a way through them.

    start, goal: `(6,)`. tables: of the robot's file. blocked: whether the straight way touches one."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while True:
            tables = [self._table(rng, k) for k in range(3)]
            with contextlib.suppress(RuntimeError):  # one is where the arm stands at home
                config = {"model": "so101", "safety": {"barrier": {"obstacles": tables}}}
                safety = Safety.of(config, JOINTS)
                body = bodies_of(config, JOINTS, safety)[0][""]
                ends = self._ends(rng, body)
                if ends is not None:
                    self.tables, (self.start, self.goal) = tables, ends
                    between = np.linspace(self.start, self.goal, 60)
                    clearance = body.clearance()
                    self.blocked = bool(min(clearance.distances(q).min() for q in between) < 0)
                    return

    @staticmethod
    def _table(rng: np.random.Generator, k: int) -> dict[str, Any]:
        angle, reach = rng.uniform(-1.3, 1.3), rng.uniform(0.16, 0.34)
        at = [reach * np.cos(angle), reach * np.sin(angle), rng.uniform(0.02, 0.2)]
        if k == 0:
            return {"at": [float(x) for x in at], "radius": float(rng.uniform(0.02, 0.04))}
        if k == 1:
            foot = [float(at[0]), float(at[1]), 0.0]
            return {"at": foot, "to": [*foot[:2], float(rng.uniform(0.1, 0.25))], "radius": 0.012}
        size = [float(x) for x in rng.uniform(0.03, 0.08, 3)]
        return {"at": [float(x) for x in at], "size": size, "yaw": float(rng.uniform(0, 3))}

    @staticmethod
    def _ends(rng: np.random.Generator, body: Any) -> tuple[np.ndarray, np.ndarray] | None:
        clearance, found = body.clearance(), list[np.ndarray]()
        for _ in range(60):
            side = 1 if not found else -1
            low, high = (0.3, 1.4) if side > 0 else (-1.4, -0.3)
            q = np.array([rng.uniform(low, high), *rng.uniform([-0.9, -0.6, 0.0], [0.7, 0.9, 1.3]), 0.0, 0.6])
            if not body.fault(q.tolist()) and clearance.distances(q).min() > MARGIN + 0.005:
                found.append(q)
                if len(found) == 2:
                    return found[0], found[1]
        return None


def filter_named(name: str, field: Field) -> Filter:
    """none: the limits, which do not know of the obstacles. limits: they do, and stop before them."""
    barrier = {"obstacles": field.tables, "margin": MARGIN}
    known = {"model": "so101", "safety": {"barrier": barrier}}
    if name == "limits":
        safety = Safety.of(known, JOINTS)
        return Filter(JOINTS, safety, bodies_of(known, JOINTS, safety)[0])
    stages = {
        "none": {},
        "barrier": {"barrier": barrier},
        "barrier, tank": {"barrier": barrier, "tank": TANK},
    }
    return filter_for({"model": "so101", "safety": stages[name]}, JOINTS)[0]


def build(rig: Rig, tables: list[dict[str, Any]]) -> list[int]:
    """The obstacles as bodies of the physics."""
    world = cast(SimScene, rig.scene).world
    p, c = world.bullet, world.client
    bodies = []
    for table in tables:
        at, turn = np.array(table["at"]), [0, 0, 0, 1]
        if "to" in table:
            to = np.array(table["to"])
            length = float(np.linalg.norm(to - at))
            at = (at + to) / 2
            shape = p.createCollisionShape(
                p.GEOM_CAPSULE, radius=table["radius"], height=length, physicsClientId=c
            )
        elif "size" in table:
            half = [x / 2 for x in table["size"]]
            shape = p.createCollisionShape(p.GEOM_BOX, halfExtents=half, physicsClientId=c)
            turn = p.getQuaternionFromEuler([0, 0, table["yaw"]])
        else:
            shape = p.createCollisionShape(p.GEOM_SPHERE, radius=table["radius"], physicsClientId=c)
        bodies.append(p.createMultiBody(0, shape, -1, at.tolist(), turn, physicsClientId=c))
    return bodies


def asked(policy: str, field: Field, tick: int, rng: np.random.Generator, goal: np.ndarray) -> np.ndarray:
    if policy == "straight":
        return field.goal
    return rng.uniform(JOINTS.lower, JOINTS.upper) if tick % 12 == 0 else goal


def episode(rig: Rig, field: Field, name: str, policy: str, seed: int) -> dict[str, Any]:
    scene, robot = cast(SimScene, rig.scene), rig.robot
    filter_ = filter_named(name, field)
    clearance = bodies_of(
        {"model": "so101", "safety": {"barrier": {"obstacles": field.tables}}}, JOINTS, filter_.safety
    )[0][""].clearance()
    scene.reset(seed)
    (arm,) = scene.arms.values()
    p, c = scene.world.bullet, scene.world.client
    for i in range(p.getNumJoints(arm.body, physicsClientId=c)):
        name_of_joint = p.getJointInfo(arm.body, i, physicsClientId=c)[1].decode()
        if name_of_joint in JOINTS.names:
            q = float(field.start[JOINTS.names.index(name_of_joint)])
            p.resetJointState(arm.body, i, q, physicsClientId=c)
    solids = build(rig, field.tables)
    touched = 0

    def look() -> None:
        nonlocal touched
        touched += any(p.getContactPoints(arm.body, solid, physicsClientId=c) for solid in solids)

    scene.world.after_step.append(look)
    robot.enable()
    robot.filter = filter_
    robot.tally.clear()
    rng, goal, nearest = np.random.default_rng(seed), field.start, np.inf
    due, arrived_at = robot.clock.now_ns(), None
    for tick in range(TICKS):
        goal = asked(policy, field, tick, rng, goal)
        sent = robot.command(goal)
        nearest = min(nearest, float(clearance.distances(sent.astype(np.float64)).min()))
        due += robot.period_ns
        robot.clock.sleep_until(due)
        q = arm.read().data
        if arrived_at is None and np.abs(q[:5] - field.goal[:5]).max() < ARRIVED:
            arrived_at = tick / HZ
    scene.world.after_step.remove(look)
    numbers = robot.tally
    stages = filter_.stages.each if filter_.stages is not None else ()
    lowest = [tank.lowest for s in stages if isinstance(s, Tanks) for tank in s.each.values()]
    return {
        "touched": touched > 0,
        "nearest_mm": 1000 * nearest,
        "arrived": arrived_at is not None,
        "arrived_s": arrived_at,
        "limited": numbers.limited / numbers.ticks,
        "reasons": dict(numbers.reasons),
        "lowest_j": min(lowest, default=None),
    }


def among_obstacles(episodes: int) -> dict[str, Any]:
    fields, seed = list[Field](), 0
    while len(fields) < episodes:
        if (field := Field(seed)).blocked:
            fields.append(field)
        seed += 1
    found: dict[str, Any] = {
        "episodes": episodes,
        "seconds": TICKS / HZ,
        "hz": HZ,
        "margin_mm": 1000 * MARGIN,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.toml"
        path.write_text(f'name = "r"\ndriver = "sim"\nmodel = "so101"\ncontrol_hz = {HZ}\n[safety]\n')
        with load_robot(str(path), "reach") as rig:
            for policy in ("straight", "hostile"):
                found[policy] = {}
                for name in ("none", "limits", "barrier", "barrier, tank"):
                    runs = [episode(rig, f, name, policy, k) for k, f in enumerate(fields)]
                    reasons = Counter[str]()
                    for r in runs:
                        reasons.update(r["reasons"])
                    times = [r["arrived_s"] for r in runs if r["arrived"]]
                    lowest = [r["lowest_j"] for r in runs if r["lowest_j"] is not None]
                    arrived = {"arrived": len(times), "arrival_s": [round(t, 2) for t in times]}
                    found[policy][name] = {
                        "touched": sum(r["touched"] for r in runs),
                        "commands_nearest_mm": round(min(r["nearest_mm"] for r in runs), 2),
                        **(arrived if policy == "straight" else {}),
                        "ticks_limited": round(float(np.mean([r["limited"] for r in runs])), 3),
                        "reasons": dict(reasons.most_common()),
                        **({"tank_lowest_j": round(min(lowest), 4)} if lowest else {}),
                    }
                    print(policy, name, found[policy][name], file=sys.stderr)
    return found


def far_away(n: int) -> dict[str, Any]:
    """Control: with no obstacle near, whether one command differs."""
    far = [{"at": [0.0, 0.0, 3.0], "radius": 0.03}]
    plain = filter_for({"model": "so101", "safety": {}}, JOINTS)[0]
    staged = filter_for({"model": "so101", "safety": {"barrier": {"obstacles": far}}}, JOINTS)[0]
    rng, differ, goal = np.random.default_rng(0), 0, HOME
    plain.reset(HOME)
    staged.reset(HOME)
    for k in range(n):
        if k % 15 == 0:
            goal = rng.uniform(JOINTS.lower, JOINTS.upper)
        a, b = plain.step(goal, 0.01), staged.step(goal, 0.01)
        differ += bool((a.command != b.command).any() or a[2:] != b[2:])
    return {"ticks": n, "commands_that_differ": differ}


def costs(n: int) -> dict[str, Any]:
    """µs of a tick of the filter at 100 Hz, p50 and p99, over goals that change every 0.5 s."""
    field = Field(0)
    barrier = {"obstacles": field.tables, "margin": MARGIN}
    far = {"obstacles": [{"at": [0.0, 0.0, 3.0], "radius": 0.03}]}
    found = {}
    for name, safety in (
        ("no stage", {}),
        ("barrier, far", {"barrier": far}),
        ("barrier, 3 obstacles", {"barrier": barrier}),
        ("tank", {"tank": TANK}),
        ("barrier, tank", {"barrier": barrier, "tank": TANK}),
    ):
        filter_ = filter_for({"model": "so101", "safety": safety}, JOINTS)[0]
        filter_.reset(HOME)
        rng, ns, acted, goal = np.random.default_rng(0), np.zeros(n), np.zeros(n, bool), HOME
        for k in range(n):
            if k % 50 == 0:
                goal = field.goal if rng.random() < 0.3 else rng.uniform(JOINTS.lower, JOINTS.upper)
            began = time.thread_time_ns()
            step = filter_.step(goal, 0.01)
            ns[k] = time.thread_time_ns() - began
            acted[k] = "barrier" in step.reasons
        p50, p99 = np.percentile(ns / 1000, [50, 99])
        found[name] = {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}
        if acted.any():
            found[name]["p50_where_it_leads"] = round(float(np.median(ns[acted]) / 1000), 1)
    return found


def against_a_wall(seeds: int) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": seeds}

    def summary(runs: list[stiff_wall.Run]) -> dict[str, Any]:
        return {
            "peak_n": round(max(r.wall.peak for r in runs), 1),
            "delivered_j": round(max(r.wall.most for r in runs), 3),
            "success": sum(r.success for r in runs),
            "acted": round(float(np.mean([r.acted for r in runs])), 3),
        }

    for kind, bursts in (("presses", False), ("bursts", True)):
        policies = [stiff_wall.Presses(seed, bursts) for seed in range(seeds)]
        found[kind] = {"none": summary([stiff_wall.run(None, p) for p in policies])}
        for begin in T0 if bursts else (0.1, 0.2, 1.0):
            for title, stale in ((f"{begin:g} J", 1), (f"{begin:g} J, read every 10 ms", 10)):
                if stale > 1 and begin != 1.0:
                    continue
                runs = [stiff_wall.run(stiff_wall.tank_of(begin), p, 1e-3, stale) for p in policies]
                lowest = round(min(r.lowest for r in runs), 6)
                found[kind][title] = {**summary(runs), "tank_lowest_j": lowest}
        slow = [stiff_wall.run(stiff_wall.tank_of(1.0), p, 1e-2) for p in policies]
        found[kind]["1 J, all at 100 Hz"] = {
            **summary(slow),
            "tank_lowest_j": round(min(r.lowest for r in slow), 6),
        }
    return found


if __name__ == "__main__":
    episodes = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    results.save(
        "action_filters",
        {
            "us_per_tick": costs(1500),
            "far_away": far_away(2000),
            "wall": against_a_wall(6),
            "arm": among_obstacles(episodes),
        },
    )
