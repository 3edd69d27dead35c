"""What a hostile policy can make an SO-101 do, with and without the safety filter.

- alone: chunks of actions through the filter, each at a rate of its own; what it commanded is held against
  the limits, and against the arm's body with the distances halved. A chunk has 16 actions.
- cost: what a tick of that takes the processor, with and without the body, and one calculation of ruckig for
  six joints, which looks at nothing, for scale.
- pair: as alone, with two arms that face each other and get different chunks. Contacts are those that
  PyBullet sees between the commanded poses; unaware is a filter that is not told where the arms stand.
- physics: the same kinds of chunks through the filter to the simulated arm at 120 Hz; what its joints did,
  and what it touched.
- twin: the same to servos on a pty behind the real driver at 100 Hz, in real time.

Speeds and accelerations of physics are over 50 ms, of the twin over 100 ms: its servos go to a new goal
within 2 ms, every 10 ms or when a busy machine gets to it.

    python benchmarks/safety_fuzz.py [--chunks 1000000] [--pair 20000] [--physics 20000] [--seconds 300]
    python benchmarks/safety_fuzz.py --only twin         that part anew, for a quiet machine (so is cost); the
                                                         others stay
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import results
from ruckig import InputParameter, OutputParameter, Ruckig

from ulna.drivers.arm import Joints
from ulna.drivers.clock import MonotonicClock
from ulna.drivers.servos import so101
from ulna.drivers.servos.calibration import JointCalibration, save
from ulna.drivers.twins.faults import BusFaults
from ulna.drivers.twins.feetech import FeetechTwin
from ulna.drivers.twins.plant import Plant, SimpleMechanics
from ulna.drivers.twins.serial_twin import TwinServo
from ulna.robot.safety.arms import bodies_of, filter_for
from ulna.robot.safety.body import SELF
from ulna.robot.safety.filter import Filter
from ulna.robot.safety.limits import Safety
from ulna.robot.safety.pair import Pair
from ulna.sim.robots import ROBOTS
from ulna.sim.scene import SimScene

SO101 = ROBOTS["so101"]()
JOINTS, HOME = SO101.joints, SO101.home
CONFIG = {"model": "so101"}
LENGTH = 16  # actions of a chunk
EPISODE = 32  # chunks between two resets
COST = 3000  # chunks
RATES = (20.0, 30.0, 50.0, 100.0, 200.0, 500.0)
WINDOW_S, TWIN_WINDOW_S = 0.05, 0.1
KINDS = (
    "random", "jumps", "extremes", "shaking", "trembling", "fast", "table", "folded", "still",
    "present first", "nonsense", "not finite", "circle", "wrong scale",
)  # fmt: skip


def chunk(kind: str, rng: np.random.Generator, here: np.ndarray, dt: float) -> np.ndarray:
    """`(LENGTH, 6)` from an arm that was sent to `here` `(6,)`."""
    lower, upper, n = JOINTS.lower, JOINTS.upper, LENGTH
    alternate = np.where(np.arange(n)[:, None] % 2, 1.0, -1.0)
    ahead = (1 + np.arange(n))[:, None] * dt
    match kind:
        case "random":
            return rng.uniform(lower, upper, (n, 6))
        case "jumps":
            return np.repeat(rng.uniform(lower - 1, upper + 1, (2, 6)), n // 2, axis=0)
        case "extremes":
            return np.where(alternate > 0, upper, lower)
        case "shaking":
            return here + alternate * rng.uniform(0.01, 0.6, 6)
        case "trembling":
            return here + rng.normal(0, 0.005, (n, 6))
        case "fast":
            return here + ahead * rng.uniform(-6, 6, 6)
        case "table":
            return here + np.minimum(ahead * 3, 1) * np.array([0, 1.0, 0.4, 0.4, 0, 0]) * rng.uniform(0.3, 2)
        case "folded":
            return here + np.minimum(ahead * 3, 1) * (np.array([0, -1.74, 1.69, 1.65, 0, 0]) - here)
        case "still":
            return np.tile(rng.uniform(lower, upper), (n, 1))
        case "present first":
            far = np.tile(rng.uniform(lower, upper), (n, 1))
            far[: n // 4] = here
            return far
        case "nonsense":
            return rng.choice([1e308, -1e308, 1e-320, 0.0, 1e6, -1e6], (n, 6))
        case "not finite":
            bad = rng.choice([np.nan, np.inf, -np.inf], (n, 6))
            return np.where(rng.random((n, 1)) < 0.3, bad, here + rng.uniform(-0.5, 0.5, 6))
        case "circle":
            return here + rng.uniform(0.05, 0.8, 6) * np.sin(rng.uniform(1, 12, 6) * ahead)
        case "wrong scale":  # degrees
            return np.degrees(here + rng.uniform(-0.1, 0.1, (n, 6)))
    raise ValueError(kind)


def chunks(n: int, seed: int) -> Iterator[tuple[int, str, np.random.Generator]]:
    """(Number of the chunk in its episode, kind, random numbers); an episode may mix kinds."""
    rng, mixed, kind = np.random.default_rng(seed), True, ""
    for i in range(n):
        if i % EPISODE == 0:
            mixed, kind = rng.random() < 0.4, str(rng.choice(KINDS))
        yield i % EPISODE, str(rng.choice(KINDS)) if mixed else kind, rng


def ratios(q: np.ndarray, dt: float, safety: Safety) -> np.ndarray:
    """`(3,)`: the most of speed, acceleration and jerk in positions `(N, 6)`, in units of the limit."""
    most = []
    for limit in (safety.speed, safety.acceleration, safety.jerk):
        q = np.diff(q, axis=0) / dt
        most.append(float(np.abs(q / limit).max()))
    return np.array(most)


def alone(n: int, body_known: bool) -> dict[str, Any]:
    """Chunks through the filter. touching: commands with parts nearer than half of what is allowed."""
    filter_, _ = filter_for(CONFIG, JOINTS)
    if not body_known:
        filter_ = Filter(JOINTS, filter_.safety, None)
    safety = filter_.safety
    half = replace(safety, self_distance=safety.self_distance / 2, table_distance=safety.table_distance / 2)
    touch = bodies_of(CONFIG, JOINTS, half)[0][""]
    worst, outside, touching, dt = np.zeros(3), 0.0, Counter[str](), 0.01
    reasons, commands = Counter[str](), [HOME] * 3
    actions, unequal = 0, 0
    for number, kind, rng in chunks(n, 0):
        if number == 0:
            if len(commands) > 3:
                worst = np.maximum(worst, ratios(np.array(commands), dt, safety))
            filter_.reset(HOME)
            commands, dt = [HOME] * 3, 1 / float(rng.choice(RATES))
        for target in chunk(kind, rng, commands[-1], dt):
            step = filter_.step(target, dt)
            commands.append(step.command)
            reasons.update(step.reasons)
            actions += 1
            unequal += bool(step.flags)
            outside = max(outside, float((JOINTS.lower - step.command).max()))
            outside = max(outside, float((step.command - JOINTS.upper).max()))
            if body_known and (what := touch.fault(step.command.tolist())):
                touching[what] += 1
    worst = np.maximum(worst, ratios(np.array(commands), dt, safety))
    return {
        "chunks": n,
        "actions": actions,
        "limited": unequal,
        "reasons": dict(reasons.most_common()),
        "most_of_the_limit": dict(
            zip(("speed", "acceleration", "jerk"), worst.round(6).tolist(), strict=True)
        ),
        "outside_joint_limits_rad": max(0.0, outside),
        "touching": dict(touching),
    }


def cost(n: int) -> dict[str, Any]:
    """Of a tick, µs: chunks through the filter, through one without a body, and to ruckig alone."""
    known, _ = filter_for(CONFIG, JOINTS)
    bare, n_joints = Filter(JOINTS, known.safety, None), len(JOINTS.names)
    plan, state, out = Ruckig(n_joints, 0.01), InputParameter(n_joints), OutputParameter(n_joints)
    state.max_velocity = known.safety.speed.tolist()
    state.max_acceleration = known.safety.acceleration.tolist()
    state.max_jerk = known.safety.jerk.tolist()

    def ruckig_alone(target: np.ndarray) -> None:
        state.target_position = target.tolist()
        plan.update(state, out)
        out.pass_to_input(state)

    ns: dict[str, list[int]] = {"filter": [], "without the body": [], "ruckig": []}
    dt, here = 0.01, HOME
    for number, kind, rng in chunks(n, 0):
        if number == 0:
            known.reset(HOME)
            bare.reset(HOME)
            state.current_position, here = HOME.tolist(), HOME
            state.current_velocity = state.current_acceleration = [0.0] * n_joints
            dt = 1 / float(rng.choice(RATES))
        for target in chunk(kind, rng, here, dt):
            began = time.perf_counter_ns()
            step = known.step(target, dt)
            ns["filter"].append(time.perf_counter_ns() - began)
            here = step.command
            began = time.perf_counter_ns()
            bare.step(target, dt)
            ns["without the body"].append(time.perf_counter_ns() - began)
            near = np.clip(np.nan_to_num(target), JOINTS.lower, JOINTS.upper)
            began = time.perf_counter_ns()
            ruckig_alone(near)
            ns["ruckig"].append(time.perf_counter_ns() - began)
    shares = {who: np.percentile(taken, (50, 90, 99)) / 1000 for who, taken in ns.items()}
    return {
        who: dict(zip(("p50", "p90", "p99"), us.round(1).tolist(), strict=True)) for who, us in shares.items()
    }


def pair(n: int, aware: bool) -> dict[str, Any]:
    """Chunks to both arms of a pair, through one filter."""
    config, names = {"model": "so101-pair"}, ("left", "right")
    both = [np.tile(x, 2) for x in (JOINTS.lower, JOINTS.upper, JOINTS.max_velocity, JOINTS.max_effort)]
    joints = Joints(tuple(f"{a}.{j}" for a in names for j in JOINTS.names), JOINTS.units * 2, *both)
    filter_, _ = filter_for(config, joints)
    safety, bodies = filter_.safety, bodies_of(config, joints, filter_.safety)[0]
    arms = Pair(names, (bodies["left"], bodies["right"]), (range(6), range(6, 12)), safety)
    if not aware:
        for body in bodies.values():
            body.base = None
        filter_ = Filter(joints, safety, bodies)
    scene = SimScene("so101-pair", "handover")
    p, client = scene.world.bullet, scene.world.client
    bullet: list[tuple[int, list[int]]] = []
    for arm in scene.arms.values():
        infos = [p.getJointInfo(arm.body, i, client) for i in range(p.getNumJoints(arm.body, client))]
        by_name = {info[1].decode(): i for i, info in enumerate(infos)}
        bullet.append((arm.body, [by_name[name] for name in JOINTS.names]))
    home, dt, actions, contacts, nearest = np.tile(HOME, 2), 0.01, 0, 0, np.inf
    here, reasons, ns = home, Counter[str](), np.zeros(n * LENGTH)
    for (number, kind, rng), (_, other, others) in zip(chunks(n, 3), chunks(n, 4), strict=True):
        if number == 0:
            filter_.reset(home)
            here, dt = home, 1 / float(rng.choice(RATES))
        wanted = chunk(kind, rng, here[:6], dt), chunk(other, others, here[6:], dt)
        for target in np.concatenate(wanted, axis=1):
            began = time.thread_time_ns()
            step = filter_.step(target, dt)
            ns[actions] = time.thread_time_ns() - began
            here = step.command
            reasons.update(step.reasons)
            actions += 1
            halves = here[:6].tolist(), here[6:].tolist()
            nearest = min(nearest, float(arms.distances(*halves).min()))
            for (body, own), q in zip(bullet, halves, strict=True):
                for joint, x in zip(own, q, strict=True):
                    p.resetJointState(body, joint, x, physicsClientId=client)
            p.performCollisionDetection(client)
            points = p.getContactPoints(bullet[0][0], bullet[1][0], physicsClientId=client)
            contacts += any(c[8] < 0 for c in points)
    scene.close()
    us = ns / 1000
    return {
        "chunks": n,
        "actions": actions,
        "reasons": dict(reasons.most_common()),
        "arm_distance_m": safety.arm_distance,
        "nearest_m": round(nearest, 5),
        "commands_in_contact": contacts,
        "cpu_us_per_tick": {f"p{p}": round(float(np.percentile(us, p)), 1) for p in (50, 90, 99)},
    }


def send(arm: Any, filter_: Filter | None, target: np.ndarray, dt: float, due: int, sent: np.ndarray) -> Any:
    """As a control process does. Without the filter, what is not finite is left out."""
    if filter_ is not None:
        target = filter_.step(target, dt).command
    elif not np.isfinite(target).all():
        target = sent
    return arm.command(target, due)


def physics(n: int, filtered: bool) -> dict[str, Any]:
    """Chunks to the simulated arm. steps_touching: of physics, with the table or the arm itself touched."""
    hz = 120.0
    scene = SimScene("so101", "reach", control_hz=hz)
    arm, p, client = scene.arms["arm"], scene.world.bullet, scene.world.client
    safety, filter_ = Safety.of(CONFIG, JOINTS), filter_for(CONFIG, JOINTS)[0]
    joints: list[int] = []  # of PyBullet, as of ours
    touch = bodies_of(CONFIG, JOINTS, replace(safety, self_distance=0.0))[0][""]
    arm.open()
    arm.enable()
    speed = acceleration = np.zeros(6)
    contacts, steps = Counter[str](), 0
    positions: list[np.ndarray] = []
    table = 0  # the first body of the world
    sent = HOME

    def look() -> None:
        nonlocal steps
        positions.append(np.array([s[0] for s in p.getJointStates(arm.body, joints, client)]))
        steps += 1
        points = p.getContactPoints(bodyA=arm.body, bodyB=table, physicsClientId=client)
        contacts["table"] += any(c[3] > 0 and c[8] < 0 for c in points)
        contacts["itself"] += touch.fault(positions[-1].tolist()) == SELF

    scene.world.after_step.append(look)
    for number, kind, rng in chunks(n, 1):
        if number == 0:
            if positions:
                v, a = _moved(np.array(positions), 1 / 240, WINDOW_S)
                speed, acceleration = np.maximum(speed, v), np.maximum(acceleration, a)
            scene.world.after_step.remove(look)
            scene.reset(int(rng.integers(1 << 30)))
            scene.world.after_step.append(look)
            bullet = [p.getJointInfo(arm.body, i, client) for i in range(p.getNumJoints(arm.body, client))]
            by_name = {info[1].decode(): i for i, info in enumerate(bullet)}
            joints = [by_name[name] for name in JOINTS.names]
            positions, sent = [], arm.read().data
            filter_.reset(sent)
        due = scene.clock.now_ns()
        for target in chunk(kind, rng, sent, 1 / hz):
            due += round(1e9 / hz)
            sent = send(arm, filter_ if filtered else None, target, 1 / hz, due, sent)
            scene.clock.sleep_until(due)
    v, a = _moved(np.array(positions), 1 / 240, WINDOW_S)
    speed, acceleration = np.maximum(speed, v), np.maximum(acceleration, a)
    scene.close()
    return {
        "chunks": n,
        "actions": n * LENGTH,
        "speed_rad_s": _kinds(speed),
        "acceleration_rad_s2": _kinds(acceleration),
        "of_the_limit": {
            "speed": round(float((speed / safety.speed).max()), 3),
            "acceleration": round(float((acceleration / safety.acceleration).max()), 3),
        },
        "steps": steps,
        "steps_touching": dict(contacts),
    }


def _moved(q: np.ndarray, dt: float, window_s: float) -> tuple[np.ndarray, np.ndarray]:
    """The most of speed and acceleration `(6,)` of positions `(N, 6)`, over `window_s`."""
    k = max(1, round(window_s / dt))
    if len(q) < 2 * k + 1:
        return np.zeros(6), np.zeros(6)
    v = (q[k:] - q[:-k]) / (k * dt)
    a = (v[k:] - v[:-k]) / (k * dt)
    return np.abs(v).max(0), np.abs(a).max(0)


def _kinds(most: np.ndarray) -> dict[str, float]:
    return {"arm": round(float(most[:5].max()), 2), "gripper": round(float(most[5]), 2)}


def twin(seconds: float, filtered: bool) -> dict[str, Any]:
    """Chunks to servos on a pty."""
    hz, names = 100.0, so101.JOINTS.names
    with tempfile.TemporaryDirectory() as folder:
        ends = [
            [round(2048 + x * 4096 / (2 * np.pi)) for x in pair]
            for pair in zip(JOINTS.lower, JOINTS.upper, strict=True)
        ]
        calibration = {name: JointCalibration(i + 1, 0, 0, *ends[i]) for i, name in enumerate(names)}
        path = Path(folder) / "c.json"
        save(path, calibration)
        servos = [TwinServo(i + 1, 777, i, 2048, 1, {}) for i in range(6)]
        plant = Plant.create(names, HOME, np.full(6, 1.91))
        link = Path(folder) / "port"
        try:
            with SimpleMechanics(plant), FeetechTwin(plant, servos, 1_000_000, BusFaults(), link, 1):
                return _on_twin(
                    so101.Config(str(link), str(path), max_first_step=4.0), plant, seconds, hz, filtered
                )
        finally:
            plant.remove()


def _on_twin(config: so101.Config, plant: Plant, seconds: float, hz: float, filtered: bool) -> dict[str, Any]:
    arm = so101.make("arm", config)
    arm.open()
    rows: list[tuple[float, np.ndarray]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            rows.append((time.monotonic(), plant.position.copy()))

    watcher = threading.Thread(target=watch)
    try:
        arm.enable()
        clock, filter_ = MonotonicClock(), filter_for(CONFIG, arm.joints)[0]
        filter_.reset(arm.read().data)
        safety = filter_.safety
        watcher.start()
        sent, due, late = HOME, clock.now_ns(), 0
        for _, kind, rng in chunks(max(1, round(seconds * hz / LENGTH)), 2):
            for target in chunk(kind, rng, sent, 1 / hz):
                arrival = clock.now_ns() + round(1e9 / hz)
                sent = send(arm, filter_ if filtered else None, target, 1 / hz, arrival, sent)
                due += round(1e9 / hz)
                late += clock.now_ns() > due
                clock.sleep_until(due)
    finally:
        stop.set()
        watcher.join()
        arm.close()
    t, q = np.array([t for t, _ in rows]), np.array([q for _, q in rows])
    grid = np.arange(t[0], t[-1], 0.005)
    v, a = _moved(np.stack([np.interp(grid, t, joint) for joint in q.T], axis=1), 0.005, TWIN_WINDOW_S)
    touch = bodies_of(CONFIG, JOINTS, replace(safety, self_distance=0.0, table_distance=0.0))[0][""]
    touching = Counter(what for pose in q[::2] if (what := touch.fault(pose.tolist())))
    outside = np.maximum(JOINTS.lower - q, q - JOINTS.upper).max()
    return {
        "seconds": round(float(t[-1] - t[0]), 1),
        "late_ticks": int(late),
        "speed_rad_s": _kinds(v),
        "acceleration_rad_s2": _kinds(a),
        "of_the_limit": {
            "speed": round(float((v / safety.speed).max()), 3),
            "acceleration": round(float((a / safety.acceleration).max()), 3),
        },
        "outside_joint_limits_rad": round(max(0.0, float(outside)), 4),
        "poses": len(q[::2]),
        "poses_touching": dict(touching),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chunks", type=int, default=1_000_000, help="alone")
    parser.add_argument("--pair", type=int, default=20_000, help="chunks to each arm of a pair")
    parser.add_argument("--physics", type=int, default=20_000, help="chunks there")
    parser.add_argument("--seconds", type=float, default=300.0, help="on the twin")
    parser.add_argument("--only", choices=["alone", "cost", "pair", "physics", "twin"])
    args = parser.parse_args()
    safety = Safety.of(CONFIG, JOINTS)
    numbers: dict[str, Any] = {
        "limits": {
            "speed_rad_s": _kinds(safety.speed),
            "acceleration_rad_s2": _kinds(safety.acceleration),
            "jerk_rad_s3": _kinds(safety.jerk),
        }
    }
    if args.only:
        numbers = results.load("safety_fuzz") | numbers
    if args.only in (None, "alone"):
        numbers["alone"] = alone(args.chunks, True)
        numbers["alone_without_body"] = alone(args.chunks // 10, False)
    if args.only in (None, "cost"):
        numbers["us_per_tick"] = cost(COST)
    if args.only in (None, "pair"):
        parts = pair(args.pair, True), pair(args.pair // 10, False)
        numbers["pair"] = dict(zip(("filtered", "unaware"), parts, strict=True))
    if args.only in (None, "physics"):
        parts = physics(args.physics, True), physics(args.physics // 10, False)
        numbers["physics"] = dict(zip(("filtered", "unfiltered"), parts, strict=True))
    if args.only in (None, "twin"):
        numbers["twin"] = {"filtered": twin(args.seconds, True), "unfiltered": twin(args.seconds / 5, False)}
    results.save("safety_fuzz", numbers)


if __name__ == "__main__":
    main()
