"""People as agents: a leader arm whose joints the follower takes over, or a hand that moves the tip; and
their devices, from the robot's file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..datasets.features import STATE
from ..drivers.arm import Arm, DeviceError, Follows, Sprung
from ..drivers.config import require_known
from ..drivers.sample import Sample
from ..drivers.screen import Screen
from ..drivers.teleoperator import FINISH, HasScreen, Teleoperator
from .agent import AGENTS, Agent, make_agent
from .config import Rig, driver_names, load_leaders, load_teleoperator
from .following import Following
from .kinematics import MODELS, UR_DH, Pose, rotation, rotation_vector, tip_chain
from .robot import Observation, Robot

SYNC_SPEED = 1.0  # rad/s (m/s): how fast a follower catches up with its leader when an episode begins
SYNCED = 0.05  # rad (m): a follower this near to its leader follows as fast as its limits allow
TIP_SPEED, TIP_TURN = 0.5, 3.0  # m/s, rad/s: the most that a hand's jump moves the tip
LOWEST_M = 0.002  # above the plane that the arm stands on
ROTATION_WEIGHT = 0.03  # metres a radian: an arm of five joints gives up orientation rather than position
CLUTCH_DECAY = 0.5  # share of the leader's own motion by which its distance to the follower may shrink
REACHED_M = 0.02  # a goal further from the tip than this cannot be reached, and is not pushed further away


def people() -> tuple[str, ...]:
    """By what a person can move a robot: a leader arm, or one of the teleoperators."""
    return ("leader", *driver_names("teleoperators"))


class LeaderFar(DeviceError):
    """At the first reading of an episode a leader is too far from its follower, which would jump."""


class LeaderAgent:
    """Each arm goes where its leader's joints are. While a leader's reading is not valid, its follower stays
    where it was sent last.

    Where it takes over from a policy (`take`), each follower moves by as much as its leader: the distance
    between them is clutched out, and shrinks only while the leader moves, to nothing after a few moves.

    leaders: by name of the robot's arms. DeviceError: a leader's joints differ from its follower's.
    LeaderFar: at its first reading in an episode it is further from its follower than that arm's
    `max_first_step`."""

    tag = "human leader"

    def __init__(self, leaders: Mapping[str, Arm], robot: Robot) -> None:
        self.leaders, self.robot = dict(leaders), robot
        self._following = [
            Following(name, leader, leader.follows, robot.control_hz)
            for name, leader in leaders.items()
            if isinstance(leader, Follows) and leader.follows
        ]
        for name, follower in robot.arms.items():
            leader = self.leaders[name].joints
            if leader.names != follower.joints.names or leader.units != follower.joints.units:
                raise DeviceError(
                    f"the leader of {name} has the joints {', '.join(leader.names)}, its follower "
                    f"{', '.join(follower.joints.names)}: a leader must have those of the arm that it leads"
                )
        self.reset("", 0)

    def reset(self, task: str, seed: int) -> None:
        self._let_go()
        self._sent: np.ndarray | None = None
        self._synced = dict.fromkeys(self.leaders, False)
        self._met: set[str] = set()
        self._clutch: dict[str, tuple[np.ndarray, np.ndarray] | None] | None = None

    def _let_go(self) -> None:
        for following in self._following:
            following.let_go()

    def asks(self) -> bool:
        """False: a leader has no button. One that its user asked to follow does."""
        for following in self._following:
            following.step(self.robot.arms[following.name].read().data)
        return False

    def take(self, sent: np.ndarray) -> None:
        """Begin from `sent` `(A,)`, wherever the leaders are. Those that followed have no torque any more."""
        self._let_go()
        self._sent = sent.astype(np.float64)
        self._clutch = dict.fromkeys(self.leaders)

    def act(self, observation: Observation) -> np.ndarray:
        before = self._sent if self._sent is not None else observation.values[STATE].astype(np.float64)
        target, at = before.copy(), 0
        for name, follower in self.robot.arms.items():
            n = len(follower.joints)
            here = before[at : at + n]
            sample = self.leaders[name].read()
            if self._clutch is not None:
                self._clutch[name] = clutch = _clutched(self._clutch[name], sample, here)
                target[at : at + n] = here if clutch is None else clutch[0] + clutch[1]
            elif np.all(sample.valid):
                away = sample.data - here
                if name not in self._met:
                    self._require_near(name, follower, away)
                    self._met.add(name)
                if not self._synced[name]:
                    most = SYNC_SPEED / self.robot.control_hz
                    self._synced[name] = bool(np.abs(away).max() <= max(SYNCED, most))
                    away = np.clip(away, -most, most)
                target[at : at + n] = here + away
            else:
                self._synced[name] = False  # the leader may have gone far meanwhile
            at += n
        self._sent = target
        return target

    def sent(self, action: np.ndarray) -> None:
        self._sent = action.astype(np.float64)

    def _require_near(self, name: str, follower: Arm, away: np.ndarray) -> None:
        worst = int(np.argmax(np.abs(away)))
        if abs(away[worst]) > follower.max_first_step:
            raise LeaderFar(
                f"the leader of {name} is {abs(away[worst]):.2f} {follower.joints.units[worst]} from its "
                f"follower at joint {follower.joints.names[worst]} (at most {follower.max_first_step:g}): "
                "bring the leader nearer"
            )


def _clutched(
    before: tuple[np.ndarray, np.ndarray] | None, sample: Sample, here: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """(The leader's joints, the follower's distance from them), each `(J,)`, after `before`; None while the
    leader cannot be read: it may have gone far when it can be again. here: where the follower is."""
    if not np.all(sample.valid):
        return None
    if before is None:
        return sample.data, here - sample.data
    last, distance = before
    most = CLUTCH_DECAY * float(np.abs(sample.data - last).max())
    return sample.data, distance - np.clip(distance, -most, most)


class TeleoperatorAgent:
    """The tip goes where the hand pushes it, through inverse kinematics within the joints' limits.

    Without the dead man's switch the arm stays where it was sent last; a switch that is held when an episode
    begins counts after it was released, unless pressing it began the episode (`idle`). A hand that gives a
    pose moves the tip by as much as itself since the switch closed; one that gives a speed moves it at that
    speed. screen: where the operator sees the robot, None where they have no such device. model: of
    `kinematics.MODELS`; its gripper may be absent. workspace: `(2, 3)` m, corners of the box, in the base
    frame, that the hand does not push the tip out of; a tip that is outside stays there, or is pushed
    inwards. DeviceError: the arm lacks a joint of the model."""

    def __init__(
        self, teleoperator: Teleoperator, robot: Robot, model: str, workspace: np.ndarray | None = None
    ) -> None:
        (self.arm,) = robot.arms.values()
        self.teleoperator, self.period_s = teleoperator, 1 / robot.control_hz
        self.tag = f"human {teleoperator.name}"
        self.chain = tip_chain(model, self.arm.joints.names)
        self._grips = len(self.arm.joints) - 1 not in self.chain.moving  # the last joint moves fingers only
        self.workspace = np.array([[-2, -2, LOWEST_M], [2, 2, 2.0]]) if workspace is None else workspace
        self._events: tuple[str, ...] = ()
        self.screen = teleoperator.screen if isinstance(teleoperator, HasScreen) else None
        self._begins = False
        self.reset("", 0)

    def reset(self, task: str, seed: int) -> None:
        self._q: np.ndarray | None = None
        self._active = False
        self._released, self._begins, self._rested = self._begins, False, False
        self._open = False  # whether the switch was seen open since somebody else acts

    def asks(self) -> bool:
        """While somebody else acts, the hand is read and moves nothing: whether its switch closes, after it
        was open."""
        hand = self.teleoperator.read()
        self._events += hand.events
        asks, self._open = hand.active and self._open, not hand.active
        if self.screen is not None:
            self.screen.must_let_go = hand.active and not asks
        return asks

    def take(self, sent: np.ndarray) -> None:
        """Begin from `sent` `(A,)`; a switch that is closed counts."""
        self.sent(sent)
        self._active, self._released = False, True

    def act(self, observation: Observation) -> np.ndarray:
        hand = self.teleoperator.read()
        self._events += hand.events
        if self.screen is not None:
            self.screen.must_let_go = hand.active and not self._released
        q = self._q if self._q is not None else observation.values[STATE].astype(np.float64)
        self._q, self._open = q, False
        if not hand.active:
            self._active, self._released = False, True
            return q
        if not self._released:  # what the hand has pushed since the last episode is not meant for this one
            return q
        if not self._active:
            self._active = True
            self._goal = self._anchor = self.chain.forward(q)
            self._box = self._box_around(self._anchor.position)
        dt, goal = self.period_s, self._goal
        if hand.displacement is not None:
            orientation = (
                self._anchor.rotation if hand.rotation is None else hand.rotation @ self._anchor.rotation
            )
            request = Pose(self._anchor.position + hand.displacement, orientation)
        else:
            request = Pose(goal.position + hand.linear * dt, rotation(hand.angular * dt) @ goal.rotation)
        push = _at_most(np.clip(request.position, *self._box) - goal.position, TIP_SPEED * dt)
        turn = _at_most(rotation_vector(request.rotation @ goal.rotation.T), TIP_TURN * dt)
        goal = Pose(goal.position + push, rotation(turn) @ goal.rotation)
        self._box = self._box_around(goal.position, *self._box)
        joints = self.arm.joints
        target = self.chain.inverse(goal, q, joints.lower, joints.upper, ROTATION_WEIGHT)
        pose = self.chain.forward(target)
        if np.linalg.norm(pose.position - goal.position) > REACHED_M:
            goal = pose  # else the hand would have to come all the way back before the tip does
        self._goal = goal
        if hand.gripper is not None and self._grips:
            share = float(np.clip(hand.gripper, 0, 1))
            target[-1] = joints.lower[-1] + share * (joints.upper[-1] - joints.lower[-1])
        reach = joints.max_velocity * dt
        step = np.clip(target - q, -reach, reach)
        travel = self.chain.forward(q + step).position - self.chain.forward(q).position
        # where the tip trails its goal, as at the end of the reach, it catches up no faster either
        step[self.chain.moving] *= TIP_SPEED * dt / max(TIP_SPEED * dt, float(np.linalg.norm(travel)))
        self._q = q + step
        return self._q

    def _box_around(
        self, tip: np.ndarray, low: float | np.ndarray = -np.inf, high: float | np.ndarray = np.inf
    ) -> np.ndarray:
        """The workspace, wider by as much as `tip` is outside of it, but not wider than `low` to `high`."""
        lowest, highest = self.workspace
        return np.stack(
            [np.minimum(lowest, np.maximum(low, tip)), np.maximum(highest, np.minimum(high, tip))]
        )

    def sent(self, action: np.ndarray) -> None:
        self._q = action.astype(np.float64)

    def events(self) -> tuple[str, ...]:
        """The words of `drivers.teleoperator` whose buttons were pressed since the last call."""
        events, self._events = self._events, ()
        return events

    def idle(self) -> tuple[str, ...]:
        """`events` between episodes, when nobody acts: the hand is read, and moves nothing. Where the
        operator is asked on a screen, the switch that closes after it was open says FINISH, which begins the
        next episode."""
        hand = self.teleoperator.read()
        self._begins = self.screen is not None and hand.active and self._rested
        self._rested = not hand.active
        if self.screen is not None:
            self.screen.must_let_go = hand.active and not self._begins
        self._events += (*hand.events, *((FINISH,) if self._begins else ()))
        return self.events()


@contextlib.contextmanager
def agent_for(
    name: str, robot_file: str, rig: Rig, noise: float = 0.0, mode: str | None = None, **options: Any
) -> Iterator[Agent]:
    """The agent `name`, its devices open for the length of a `with` block. options: fields of a
    teleoperator's `Config`. DeviceError: there is no such agent, or its device is missing or does not fit the
    robot."""
    require_known("agent", name, (*AGENTS, *people()))
    if name in AGENTS:
        yield make_agent(name, rig, noise, mode)
        return
    _require_way(name, rig)
    if name == "leader":
        leaders = load_leaders(robot_file)
        if missing := [arm for arm in rig.robot.arms if arm not in leaders]:
            raise DeviceError(
                f"{robot_file} names no leader for the arm {missing[0]}: add [leaders.{missing[0]}]"
            )
        with contextlib.ExitStack() as opened:
            for arm in rig.robot.arms:
                leaders[arm].open()
                opened.callback(leaders[arm].close)
                if isinstance(leader := leaders[arm], Sprung) and leader.sprung:
                    leader.spring()  # its gripper springs open like a trigger
            yield LeaderAgent({arm: leaders[arm] for arm in rig.robot.arms}, rig.robot)
        return
    teleoperator = load_teleoperator(robot_file, name, **options)
    agent = TeleoperatorAgent(teleoperator, rig.robot, _model(rig))
    teleoperator.open()
    try:
        yield agent
    finally:
        teleoperator.close()


def screen_of(agent: Agent) -> Screen | None:
    """Where the person who is `agent` sees the robot, None where they have no such screen."""
    return agent.screen if isinstance(agent, HasScreen) else None


def _require_way(name: str, rig: Rig) -> None:
    """DeviceError unless `name` of `people()` can move this robot; the message says who can."""
    drivers = [] if rig.sim is not None else [table["driver"] for table in rig.config["arms"].values()]
    leaderless = [driver for driver in drivers if f"{driver}-leader" not in driver_names("leaders")]
    n_arms = len(rig.robot.arms)
    has_tip = n_arms == 1 and (rig.sim is not None or _model(rig) in MODELS)
    ways = (
        *(("leader",) if drivers and not leaderless else ()),
        *(driver_names("teleoperators") if has_tip else ()),
    )
    if name in ways:
        return
    if name == "leader":
        why = f"there is no leader arm for {f'a {leaderless[0]}' if leaderless else 'a simulated robot'}"
    elif n_arms != 1:
        why = f"a {name} moves one arm, and {rig.robot.name} has {n_arms}"
    elif drivers[0] != "ur":  # of an installed package
        why = (
            f"a {name} moves the tip, and no geometry of a {_model(rig)} is here (but of {', '.join(MODELS)})"
        )
    else:
        (arm,) = rig.robot.arms
        why = (
            f"a {name} moves the tip, and which UR [arms.{arm}] is must be known for that: "
            f'where it is a UR5e, say model = "ur5e" there; there are {", ".join(UR_DH)}'
        )
    raise DeviceError(why + (f"; use --agent {' or '.join(ways)}" if ways else ""))


def _model(rig: Rig) -> str:
    """The model of the robot's one arm: of a simulated one its robot, of a real one its `model`, or else its
    driver."""
    if rig.sim is not None:
        return rig.config["model"]
    ((_, table),) = rig.config["arms"].items()
    return table.get("model") or table["driver"]


def _at_most(vector: np.ndarray, length: float) -> np.ndarray:
    norm = float(np.linalg.norm(vector))
    return vector if norm <= length else vector * (length / norm)
