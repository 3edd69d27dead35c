"""A leader that its user asked to follow, behind its real driver: torque only while nobody leads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from contracts.servo_arm import HOME, Bench, bench, running, torque_rises

from ulna.drivers.arm import DeviceError
from ulna.drivers.sample import Sample
from ulna.drivers.servos.servo_arm import ServoArm
from ulna.robot.people import LeaderAgent

pytestmark = pytest.mark.realtime


@dataclass
class Side:
    """A bench with a leader, and the agent of a person at it. q: where the follower is."""

    bench: Bench
    leader: ServoArm
    agent: LeaderAgent
    q: np.ndarray

    def ask_until(self, is_met: Callable[[], object], timeout_s: float = 20.0) -> None:
        end = time.monotonic() + timeout_s
        while not is_met():
            assert time.monotonic() < end, "waited in vain"
            assert not self.agent.asks()
            time.sleep(0.05)

    @property
    def torque(self) -> bool:
        """Of the joints that may follow; the gripper's spring is none of them."""
        return bool(self.bench.plant.torque[: len(self.leader.follows)].any())  # type: ignore[attr-defined]


def at_bench(b: Bench, leader: ServoArm) -> Side:
    side = Side(b, leader, None, HOME.copy())  # type: ignore[arg-type]

    class Follower:
        joints, max_first_step = leader.joints, 0.5

        def read(self) -> Sample:
            return Sample(side.q.copy(), 0, 0, 0, np.ones(6, bool))

    robot: Any = SimpleNamespace(arms={"arm": Follower()}, control_hz=20.0)
    side.agent = LeaderAgent({"arm": leader}, robot)
    return side


LEADERS = {
    "so101": ("so101_leader", {}),
    "koch": ("koch_leader", {"spring_current": 0}),
    "koch with a spring": ("koch_leader", {}),
}


@pytest.fixture(params=LEADERS)
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side]:
    kind, changes = LEADERS[request.param]
    with bench(kind, tmp_path) as b, running(b.arm(follows=True, **changes), enable=False) as leader:
        if getattr(leader, "sprung", False):
            leader.spring()
        yield at_bench(b, leader)


def springs(side: Side) -> bool:
    """Whether the gripper's spring is as it must be: open, with torque; true of a leader without one."""
    plant = side.bench.plant
    return len(side.leader.follows) == 6 or bool(plant.torque[5] and plant.position[5] > 1.6)  # type: ignore[attr-defined]


def test_it_follows_slowly_while_nobody_leads_and_is_free_before_somebody_does(side: Side) -> None:
    side.q[0] = 0.3
    assert not side.torque
    side.ask_until(lambda: abs(side.bench.plant.position[0] - 0.3) < 0.05)
    assert side.torque
    assert side.bench.plant.max_effort[0] == pytest.approx(
        0.2 * 1.91 if side.bench.kind == "so101_leader" else 0.215 * 400 / 1470
    ), "weaker than a hand"
    assert springs(side)
    side.agent.take(side.q)
    assert not side.torque
    assert springs(side)
    side.agent.sent(side.q)
    for _ in range(30):
        assert not side.torque, "as long as the person acts"
        time.sleep(0.02)
    side.ask_until(lambda: side.torque)  # given back, and at rest
    side.agent.reset("", 1)
    assert not side.torque


def test_it_gets_no_torque_while_a_hand_moves_it(side: Side) -> None:
    for i in range(50):
        side.bench.plant.position[1] += 0.03 * (1 if i % 20 < 10 else -1)
        side.agent.asks()
        assert not side.torque
        time.sleep(0.05)


def test_a_hand_that_pulls_it_away_frees_it(side: Side, capsys: pytest.CaptureFixture[str]) -> None:
    side.ask_until(lambda: side.torque)
    side.ask_until(lambda: "follows the arm now" in capsys.readouterr().err)

    def pull() -> bool:
        side.bench.plant.position[0] = 0.8
        return not side.torque

    side.ask_until(pull)
    assert "a hand moved it" in capsys.readouterr().err


def test_a_fault_frees_it_and_does_not_leave_it_stiff(side: Side, capsys: pytest.CaptureFixture[str]) -> None:
    side.ask_until(lambda: side.torque)
    side.ask_until(lambda: "follows the arm now" in capsys.readouterr().err)
    side.bench.twin.faults.overload = (3,)
    side.ask_until(lambda: not side.torque)
    assert springs(side)
    side.ask_until(lambda: "does not follow any more" in capsys.readouterr().err)
    side.agent.take(side.q)
    assert not side.torque


@pytest.mark.parametrize("kind", ["so101_leader", "koch_leader"])
def test_nobody_asked_so_it_never_has_torque(kind: str, tmp_path: Path) -> None:
    with bench(kind, tmp_path) as b, torque_rises(b.plant) as rises, running(b.arm(), False) as leader:
        side = at_bench(b, leader)
        for _ in range(40):
            side.agent.asks()
            time.sleep(0.05)
        assert rises == [0]
        with pytest.raises(DeviceError, match="its torque stays off"):
            leader.enable()
