"""The shapes of arms: what touches, and how far from it they are."""

from __future__ import annotations

import numpy as np
import pytest

from ulna.drivers.arm import DeviceError
from ulna.drivers.servos import koch
from ulna.robot.kinematics import UR_DH, UR_NAMES, tip_chain
from ulna.robot.safety.body import SELF, TABLE, WORKSPACE, Body
from ulna.robot.safety.obstacles import Obstacle
from ulna.sim.robots import ROBOTS

UR_HOME = np.array([0.0, -1.57, 1.57, -1.57, -1.57, 0.0])
ARMS = {
    **{f"sim {name}": (name, True, make().joints.names, make().home) for name, make in ROBOTS.items()},
    "so101": ("so101", False, ROBOTS["so101"]().joints.names, ROBOTS["so101"]().home),
    "koch": ("koch", False, koch.JOINTS.names, np.zeros(6)),
    **{name: (name, False, UR_NAMES, UR_HOME) for name in UR_DH},
}


def body_of(arm: str, table: float | None = 0.0, workspace: np.ndarray | None = None) -> Body:
    model, simulated, names, _ = ARMS[arm]
    return Body(model, names, simulated, table, workspace, 0.01, 0.002)


def poses(arm: str, seed: int, n: int) -> np.ndarray:
    model, simulated, names, _ = ARMS[arm]
    rng = np.random.default_rng(seed)
    if simulated or model == "so101":
        joints = ROBOTS[model]().joints
        return rng.uniform(joints.lower, joints.upper, (n, len(names)))
    return rng.uniform(-np.pi, np.pi, (n, len(names)))


@pytest.mark.parametrize("arm", ARMS)
def test_at_home_nothing_touches_and_most_poses_are_possible(arm: str) -> None:
    body, home = body_of(arm), ARMS[arm][3]
    assert body.fault(home.tolist()) == ""
    assert body.touching(home.tolist()) == ()
    faults = [body.fault(q) for q in poses(arm, 0, 300).tolist()]
    assert faults.count("") > 50
    assert faults.count(TABLE) > 3
    assert faults.count(SELF) < 100


@pytest.mark.parametrize("arm", ["koch", "ur5e", "so101"])
def test_the_tip_is_where_the_kinematics_say(arm: str) -> None:
    body, chain = body_of(arm), tip_chain(ARMS[arm][0], ARMS[arm][2])
    for q in poses(arm, 1, 10):
        assert body.tip(q.tolist()) == pytest.approx(chain.forward(q).position, abs=1e-9)
        assert np.linalg.norm(body.tip(q.tolist()) - body.shoulder) <= body.reach + 1e-9


@pytest.mark.parametrize("arm", ["sim so101", "sim panda", "sim ur5e", "koch", "ur10e"])
@pytest.mark.parametrize("boxed", [False, True])
def test_joints_that_stay_apart_touch_nothing(arm: str, boxed: bool) -> None:
    """As far as they may go, in any direction."""
    half = 0.8 * body_of(arm).reach
    corners = np.array([[-half, -half, -0.1], [half, half, half + 0.3]])
    body, rng = body_of(arm, workspace=corners if boxed else None), np.random.default_rng(2)
    tried = 0
    for q in poses(arm, 2, 400):
        if body.fault(q.tolist()):
            continue
        free = body.apart(q.tolist())
        for _ in range(10):
            ways = rng.choice([0.0, 0.3, 1.0], len(q))
            scale = 2.0
            while not body.stays_apart(free, (scale * ways).tolist()) and scale > 1e-4:
                scale *= 0.8
            if scale > 0.01:
                tried += 1
                moved = q + scale * ways * rng.choice([-1.0, 1.0], len(q))
                assert body.fault(moved.tolist()) == ""
        assert not body.stays_apart(free, [3.0] * len(q))
    assert tried > 200


def test_things_come_no_nearer_than_their_sweep() -> None:
    """Moved less than their distance by the sweep, parts that were apart do not touch."""
    body, wide = body_of("sim so101"), Body("so101", ARMS["so101"][2], True, 0.0, None, 0.05, 0.05)
    rng = np.random.default_rng(3)
    for q in poses("sim so101", 3, 400):
        if not wide.fault(q.tolist()):
            ways = rng.uniform(0, 1, 6)
            most = max(sum(row * ways) for row in np.array(body.sweep))
            moved = q + ways * rng.choice([-1, 1], 6) * (0.04 / most)
            assert body.fault(moved.tolist()) == ""


def test_the_workspace_holds_for_the_tip() -> None:
    home = ARMS["so101"][3]
    tip = body_of("so101").tip(home.tolist())
    assert body_of("so101", workspace=np.array([tip - 0.01, tip + 0.01])).fault(home.tolist()) == ""
    assert body_of("so101", workspace=np.array([tip + 0.01, tip + 0.02])).fault(home.tolist()) == WORKSPACE


def test_without_a_table_none_is_touched() -> None:
    low = np.array([0, 0.9, 0.5, 0.6, 0, 0.6])
    assert body_of("so101").fault(low.tolist()) == TABLE
    assert body_of("so101", table=None).fault(low.tolist()) == ""
    assert body_of("so101", table=-0.5).fault(low.tolist()) == ""


def test_what_touched_when_it_began_counts_once_it_was_apart() -> None:
    body, home = body_of("so101"), ARMS["so101"][3].tolist()
    folded = [0.0, -1.74, 1.69, 1.65, 0.0, 0.0]
    assert body.fault(folded) == SELF
    assert body.begin(folded)
    assert body.fault(folded) == ""
    body.settle(home)
    assert not body.tight
    assert body.fault(folded) == SELF
    body.begin(home)


def test_a_ur5e_is_where_its_description_for_simulation_has_it() -> None:
    """Its upper arm is 14 cm beside the origins of its joints' frames."""
    at = [[0.0, 0.138, 0.4], [0.0, 0.0, 0.4], [-0.3, 0.2, 0.5]]
    balls = [Obstacle(f"ball {i}", np.array(x), np.eye(3), np.array([0.03])) for i, x in enumerate(at)]
    nearest = []
    for arm, parts in (("ur5e", ("shoulder_lift", "elbow")), ("sim ur5e", ("upper_arm", "forearm"))):
        model, simulated, names, _ = ARMS[arm]
        clearance = Body(model, names, simulated, None, None, 0.01, 0.002, balls).clearance()
        of_ball = [
            [k for k, n in enumerate(clearance.names) if n in [(p, b.name) for p in parts]] for b in balls
        ]
        upright, *others = [[0.0, -1.57, 0.0, 0.0, 0.0, 0.0], *poses("ur5e", 4, 30)]
        distances = [clearance.distances(np.resize([*q, 0.0], len(names))) for q in (upright, *others)]
        nearest.append([[d[ours].min() for ours in of_ball] for d in distances])
    real, described = np.array(nearest)
    assert real[0, 0] < -0.08
    assert real[0, 1] > 0.05
    assert (real < described + 0.007).all()  # the cylinders of the description have edges
    assert (real > described - 0.05).all()  # and it leaves the housings out
    assert body_of("ur5e").fault([0.0, -1.61, 2.8, 0.39, -1.5, 0.0]) == SELF


def test_an_arm_that_lacks_a_joint_is_told() -> None:
    with pytest.raises(DeviceError, match="has a joint wrist_roll, and this arm's joints are"):
        Body("so101", ARMS["so101"][2][:4], False, 0.0, None, 0.01, 0.002)
