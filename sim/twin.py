"""The physics behind device twins: an arm that servos move through a `Plant`, in real time, at a task's
scene."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from ..drivers.arm import DeviceError
from ..drivers.twins.plant import Plant
from .arm import POSITION_GAIN, SimArm
from .expert import Demonstrator, Expert
from .robots import SimRobot
from .scene import SimScene
from .world import PHYSICS_HZ, SimClock, World

FRICTION = 0.15  # N·m: what a geared servo resists without torque; an arm let go sinks, it does not drop
# N·m/rad that a servo pushes back with. PyBullet's motor gives all it has for the smallest error; where
# something blocks a joint (a gripper holds an object) that is what the servo's current, and its overload
# protection, would see.
STIFFNESS = 12.0
STUCK_GAIN = 1.0
SET_OUT_S = 0.5
TREMOR_MEMORY = 0.8  # of `Expert.memory`: a hand trembles faster than it corrects itself
# A hand has mass: it follows what it wants as a critically damped spring of this frequency does.
HAND_HZ = 2.5
HAND_FULL_RAD_S = 4.0  # of a joint of the leader, at most
HAND_NM, HAND_RAD_S = 6.0, 3.5  # of a person who moves a joint that has no torque
ENDED = "the twin has ended"
BEHIND_S = 0.25  # of wall time; more is given up, not raced after


class TwinArm(SimArm):
    """Joints that do what the plant's `goal`, `torque`, `max_effort` and `stuck` say, and tell it where they
    are. hand: where a person's hand takes joints and keeps them, rad by number; a joint with torque does not
    give way, and the hand lets go of it. A reset of the scene leaves the arm where it is: nobody carries a
    real one home."""

    def __init__(self, world: World, clock: SimClock, robot: SimRobot) -> None:
        super().__init__(world, clock, robot)
        self.plant = Plant.create(robot.joints.names, robot.home, robot.joints.max_effort)
        self.hand: dict[int, float] = {}
        world.after_step.append(self._update_plant)

    def build(self, q: np.ndarray) -> None:
        self._stuck_at: dict[int, float] = {}
        super().build(self.plant.position.copy())

    def close(self) -> None:
        super().close()
        self.plant.remove()

    def _before_step(self) -> None:
        self._motors()

    def _motors(self, target: np.ndarray | None = None) -> None:
        p, c, plant = self.world.bullet, self.world.client, self.plant
        for i, joint in zip(self._driven, self._owner, strict=True):
            if plant.stuck[joint]:
                at = self._stuck_at.setdefault(joint, float(plant.position[joint]))
                p.setJointMotorControl2(
                    self.body,
                    i,
                    p.POSITION_CONTROL,
                    at,
                    force=50.0,
                    positionGain=STUCK_GAIN,
                    physicsClientId=c,
                )
                continue
            self._stuck_at.pop(joint, None)
            if plant.torque[joint]:
                self.hand.pop(joint, None)
                effort = float(plant.max_effort[joint])
                if joint == len(plant.names) - 1:  # the gripper, last
                    error = abs(float(plant.goal[joint] - plant.position[joint]))
                    effort = min(effort, FRICTION + STIFFNESS * error)
                p.setJointMotorControl2(
                    self.body,
                    i,
                    p.POSITION_CONTROL,
                    float(plant.goal[joint]),
                    force=effort,
                    positionGain=POSITION_GAIN,
                    maxVelocity=float(self.joints.max_velocity[joint]),
                    physicsClientId=c,
                )
            elif (held_at := self.hand.get(joint)) is not None:
                p.setJointMotorControl2(
                    self.body,
                    i,
                    p.POSITION_CONTROL,
                    held_at,
                    force=HAND_NM,
                    positionGain=POSITION_GAIN,
                    maxVelocity=HAND_RAD_S,
                    physicsClientId=c,
                )
            else:
                p.setJointMotorControl2(
                    self.body, i, p.VELOCITY_CONTROL, targetVelocity=0.0, force=FRICTION, physicsClientId=c
                )

    def _update_plant(self) -> None:
        if self.body < 0:
            return
        states = self.world.bullet.getJointStates(self.body, self._driven, physicsClientId=self.world.client)
        plant = self.plant
        plant.position[:] = [states[i][0] for i in self._first]
        plant.velocity[:] = [states[i][1] for i in self._first]
        for j, i in enumerate(self._first):
            if plant.stuck[j] and plant.torque[j]:  # the motor pushes against what blocks it
                most = plant.max_effort[j]
                plant.effort[j] = np.clip(STIFFNESS * (plant.goal[j] - plant.position[j]), -most, most)
            else:
                plant.effort[j] = states[i][3] if plant.torque[j] else 0.0


class ScriptedHand:
    """A person at the leader arm: moves its joints as the task's expert would move the follower, as fast and
    as smoothly as a hand does. While it rests it keeps the leader where the follower is, but for the joints
    in `held` (rad by number), which it takes there."""

    def __init__(self, scene: SimScene, noise: float) -> None:
        self.scene, self.noise = scene, noise
        robot = scene.arms["arm"].robot
        self.plant = Plant.create(robot.joints.names, robot.home, robot.joints.max_effort)
        self._steps = max(1, round(PHYSICS_HZ / scene.control_hz))
        self.held: dict[int, float] = {}
        self._goal, self._count = self.plant.position.copy(), 0
        self._expert: Demonstrator | None = None
        self._begun = PHYSICS_HZ

    @property
    def is_demonstrating(self) -> bool:
        return self._expert is not None

    def begin(self, seed: int) -> None:
        expert = self._expert = self.scene.expert(self.noise)
        self.held.clear()
        if isinstance(expert, Expert):
            expert.memory = TREMOR_MEMORY
        expert.reset(seed)
        self._begun = 0

    def rest(self) -> None:
        self._expert = None
        self._begun = PHYSICS_HZ

    def step(self) -> None:
        """Once a physics step."""
        if self._count % self._steps == 0:
            expert = self._expert
            self._goal = np.array(self.scene.read() if expert is None else expert.act())
        self._count += 1
        for joint, position in self.held.items():
            self._goal[joint] = position
        # a hand sets out slowly: whoever watches the leader has half a second to begin
        self._begun += 1
        speed = HAND_FULL_RAD_S * min(1.0, (self._begun / PHYSICS_HZ / SET_OUT_S) ** 2)
        pull, velocity = 2 * np.pi * HAND_HZ, self.plant.velocity
        away = self._goal - self.plant.position
        velocity[:] += (pull * pull * away - 2 * pull * velocity) / PHYSICS_HZ
        velocity[:] = np.clip(velocity, -speed, speed)
        self.plant.position[:] += velocity / PHYSICS_HZ


class TwinWorld:
    """One PyBullet world in real time: the follower's plant (`arm`), the leader's (`hand`, where there is
    one), cameras.

    `film(name, colour (H, W, 3) uint8, t_capture_ns)` is called for every frame, on the thread of `run`.
    Other methods may be called from any thread; they run between two physics steps. DeviceError: the twin has
    ended."""

    def __init__(
        self,
        robot: str,
        task: str,
        cameras: Sequence[str],
        image_size: tuple[int, int],
        fps: float,
        control_hz: float,
        hand: bool,
        noise: float,
        film: Callable[[str, np.ndarray, int], None],
    ) -> None:
        self.scene = SimScene(robot, task, cameras, image_size, control_hz, arm_type=TwinArm)
        arm = self.scene.arms["arm"]
        assert isinstance(arm, TwinArm)
        self.arm, self.film, self.fps = arm, film, fps
        self.hand = ScriptedHand(self.scene, noise) if hand else None
        self.seed, self.resets, self.slipped_s = 0, 0, 0.0
        self._requests: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._asking, self._stopping = threading.Lock(), threading.Event()
        for camera in self.scene.cameras.values():
            camera.open()
        self.scene.reset(0)

    def reset(self, seed: int) -> dict[str, Any]:
        """The scene of `seed`, the arm left where it is. The new state."""

        def do() -> dict[str, Any]:
            self.seed, self.resets = seed, self.resets + 1
            if self.hand is not None:
                self.hand.rest()
            self.scene.reset(seed)
            return self._state()

        return self._ask(do)

    def begin(self) -> dict[str, Any]:
        """The hand, if any, begins to demonstrate."""
        return self._ask(lambda: (self.hand and self.hand.begin(self.seed), self._state())[1])

    def rest(self) -> dict[str, Any]:
        return self._ask(lambda: (self.hand and self.hand.rest(), self._state())[1])

    def state(self) -> dict[str, Any]:
        """Ground truth (JSON types), which no device gives."""
        return self._ask(self._state)

    def move(self, leader: bool, targets: Mapping[int, float]) -> None:
        """A person's hand takes joints (rad by number) of the follower or the leader there, and keeps them,
        until `let_go`."""
        self._ask(lambda: self._held(leader).update(targets))

    def let_go(self, leader: bool) -> None:
        self._ask(lambda: self._held(leader).clear())

    def _held(self, leader: bool) -> dict[int, float]:
        return self.hand.held if leader and self.hand is not None else self.arm.hand

    def stop(self) -> None:
        """End `run`. Whoever waits for an answer gets none any more."""
        with self._asking:
            self._stopping.set()
        for _, answer in self._asked():
            answer.set_exception(DeviceError(ENDED))

    def run(self) -> None:
        """Until `stop`; in the thread that made this object."""
        began, steps, n_frames = time.monotonic(), 0, dict.fromkeys(self.scene.cameras, 0)
        while not self._stopping.is_set():
            for do, answer in self._asked():
                try:
                    answer.set_result(do())
                except Exception as error:  # noqa: BLE001  raised again where the answer is awaited
                    answer.set_exception(error)
            self.scene.world.step()
            steps += 1
            if self.hand is not None:
                self.hand.step()
            for name, camera in self.scene.cameras.items():
                if steps * self.fps >= n_frames[name] * PHYSICS_HZ:
                    n_frames[name] += 1
                    t_ns = time.monotonic_ns()
                    self.film(name, camera.render(), t_ns)
            ahead_s = began + steps / PHYSICS_HZ - time.monotonic()
            if ahead_s > 0:
                time.sleep(ahead_s)
            elif ahead_s < -BEHIND_S:
                began -= ahead_s
                self.slipped_s -= ahead_s

    def close(self) -> None:
        self.arm.close()
        if self.hand is not None:
            self.hand.plant.remove()
        self.scene.close()

    def _ask[T](self, do: Callable[[], T]) -> T:
        answer: Future[T] = Future()
        with self._asking:
            if self._stopping.is_set():
                raise DeviceError(ENDED)
            self._requests.put((do, answer))
        return answer.result(5.0)

    def _asked(self) -> Iterator[tuple[Callable[[], Any], Future[Any]]]:
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._requests.get_nowait()

    def _state(self) -> dict[str, Any]:
        scene, task = self.scene, self.scene.task
        return {
            "task": task.name,
            "seed": self.seed,
            "resets": self.resets,
            "instruction": scene.instruction,
            "max_seconds": scene.max_seconds,
            "success": scene.success(),
            "score": float(scene.score()),
            "randomisation": dict(scene.xi),
            "observation": dict(zip(task.names, map(float, task.observe()), strict=True)),
            "joints": dict(zip(self.arm.joints.names, map(float, self.arm.plant.position), strict=True)),
            "torque": [bool(t) for t in self.arm.plant.torque],
            "hand": self.hand is not None and self.hand.is_demonstrating,
            "slipped_s": self.slipped_s,
        }
