"""A simulated robot at a task: the devices that a real robot would offer, and the ground truth that it would
not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from ..drivers.arm import DeviceError, check_target, joints_of
from ..drivers.config import require_known
from ..drivers.sample import Sample
from .arm import SimArm
from .camera import SimCamera, moved
from .expert import Demonstrator
from .looks import looks
from .robots import MODELS, SimRobot, arms_of, n_arms
from .tasks.all import task_type
from .tasks.task import Task
from .world import PHYSICS_HZ, SimClock, World


class TaskTracker:
    """What the task observes, as a tracker (`drivers.tracker.Tracker`)."""

    def __init__(self, task: Task, clock: SimClock) -> None:
        self.task, self.clock = task, clock
        self.names, self.units = task.names, task.units

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def read(self) -> Sample:
        now = self.clock.now_ns()
        return Sample(self.task.observe(), now, now, self.clock.world.steps, np.ones(len(self.names), bool))


class SimScene:
    """Devices (`arms`, `cameras`, `trackers`, `clock`) plus `reset`, `success`, `score`, `reward`, `expert`.

    robot: of `robots.MODELS`; None: the SO-101, or the pair of them where the task needs two arms. cameras:
    `front` and `wrist`; with several arms one wrist each, like `left_wrist`. joints: of all arms, as
    `joints_of` names them.

    built_from, seed: what builds the same scene once more. randomisation overrides the task's ξ by name; any
    task has `looks` (`looks.looks`) and `views` (`camera.moved`, of the front camera), on which only pictures
    depend. Same seed, same episode, bit for bit, on one machine: a reset throws the world away and builds it
    anew from `seed`."""

    def __init__(
        self,
        robot: str | None = None,
        task: str = "lift",
        cameras: Sequence[str] = (),
        image_size: tuple[int, int] = (96, 96),
        control_hz: float = 20.0,
        randomisation: Mapping[str, float] | None = None,
        realtime: bool = False,
        arm_type: Callable[[World, SimClock, SimRobot], SimArm] = SimArm,
    ) -> None:
        if not 0 < control_hz <= PHYSICS_HZ:
            raise ValueError(
                f"control_hz is {control_hz}: the physics runs at {PHYSICS_HZ} Hz, choose up to that"
            )
        # first of all: a twin's arm takes shared memory, which nobody gives back when this fails
        make_task = task_type(task)
        robot = _robot_for(task, make_task.n_arms, robot)
        specs = arms_of(robot)
        wrists = {"wrist" if len(specs) == 1 else f"{arm}_wrist": arm for arm in specs}
        for name in cameras:
            require_known(f"camera of the simulated {robot}", name, ("front", *wrists))
        self.built_from = {
            "robot": robot,
            "task": task,
            "control_hz": control_hz,
            "randomisation": randomisation,
        }
        self.world = World()
        self.clock = SimClock(self.world, realtime)
        self.arms = {name: arm_type(self.world, self.clock, spec) for name, spec in specs.items()}
        self.joints = joints_of(self.arms)
        self.task = make_task(self.world, *self.arms.values())
        self.trackers = {"task": TaskTracker(self.task, self.clock)}
        self.cameras = {}
        for name in cameras:
            view = self._front if name == "front" else partial(self._wrist, self.arms[wrists[name]])
            fov = 45.0 if name == "front" else 75.0
            self.cameras[name] = SimCamera(self.world, self.clock, name, view, *image_size, control_hz, fov)
        self.control_hz, self.max_seconds = control_hz, self.task.max_seconds
        self.xi = {"looks": 0.0, "views": 0.0, **self.task.randomisation}
        for key, value in (randomisation or {}).items():
            require_known(f"randomisation of {task}", key, self.xi)
            self.xi[key] = value
        self._control_steps = max(1, round(PHYSICS_HZ / control_hz))
        self.after_reset: list[Callable[[], None]] = []
        self.world.after_step.append(self._judge)
        self.instruction = ""
        self.reset(0)

    @property
    def task_name(self) -> str:
        return self.task.name

    def reset(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        eye, target, up = self._front_at_rest()
        self._front_view = moved(eye, target, seed, self.xi["views"]), target, up
        self.world.clear(looks(seed, self.xi["looks"]))
        for arm in self.arms.values():
            arm.build(self.task.start_pose(rng, self.xi))
        self.task.reset(rng, self.xi)
        self.tell(str(rng.choice(self.task.instructions)))
        self._since_reset = self._achieved_for = 0
        self._success = False
        for call in self.after_reset:
            call()

    def tell(self, instruction: str) -> None:
        """Other words for this episode, from now on. ValueError where the task cannot do what they say."""
        self.task.told(instruction)
        self.instruction = instruction

    def enable(self) -> None:
        for arm in self.arms.values():
            arm.enable()

    def read(self) -> np.ndarray:
        """Where the joints of all arms are, `(A,)` float64."""
        return np.concatenate([arm.read().data for arm in self.arms.values()])

    def command(self, target: np.ndarray, t_target_ns: int) -> np.ndarray:
        """`target` `(A,)` to the arms, each of which gets its part; what was sent, `(A,)` float64."""
        target, arms = check_target(target, self.joints), self.arms.values()
        parts = np.split(target, np.cumsum([len(arm.joints) for arm in arms])[:-1])
        return np.concatenate([a.command(q, t_target_ns) for a, q in zip(arms, parts, strict=True)])

    def success(self) -> bool:
        """Whether the goal was met for `hold_s` without a break, at some time since the reset."""
        return self._success

    def score(self) -> float:
        return self.task.score()

    def steps(self) -> Mapping[str, bool]:
        """By their words, which steps of the task are done now; nothing where it is one thing."""
        return self.task.steps()

    def reward(self) -> float:
        return self.task.reward()

    def expert(self, noise: float = 0.0, mode: str | None = None) -> Demonstrator:
        if mode is not None:
            require_known(f"mode of the {self.task.name} expert", mode, self.task.modes)
        return self.task.expert(noise, mode)

    def film_camera(self) -> SimCamera:
        """A larger view for people (240×320), which belongs to no robot."""
        camera = SimCamera(
            self.world, self.clock, "film", self._front_at_rest, 240, 320, self.control_hz, 45.0
        )
        camera.open()
        return camera

    def close(self) -> None:
        self.world.close()

    def _judge(self) -> None:
        """Update success once a control period, on the physics' own clock: however the scene is driven, it is
        judged alike."""
        self._since_reset += 1
        if self._since_reset % self._control_steps:
            return
        self._achieved_for = self._achieved_for + 1 if self.task.achieved() else 0
        if self._achieved_for / self.control_hz >= self.task.hold_s:
            self._success = True

    def _front(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._front_view

    def _front_at_rest(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """From beyond the table, looking back at the arm over the workspace. Two arms that face each other
        are seen from where their operator sits, the left one to the left."""
        robot = next(iter(self.arms.values())).robot
        reach = float(robot.centre[0])
        if len(self.arms) > 1:
            x, apart = robot.stand.x, abs(robot.stand.y)
            eye = np.array([x - 2.4 * apart, 0.0, 1.8 * apart])
            return eye, np.array([x, 0.0, 0.35 * apart]), np.array([0.0, 0.0, 1.0])
        eye = np.array([reach * 2.75, reach * 0.95, reach * 1.75])
        return eye, np.array([reach * 0.65, 0.0, reach * 0.42]), np.array([0.0, 0.0, 1.0])

    def _wrist(self, arm: SimArm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """On the hand, behind the fingers, looking along them."""
        hand, _ = arm.link_pose(arm.robot.wrist_link)
        tip, rotation = arm.tip()
        up = rotation[:, 0]
        eye = hand - 0.07 * up
        return eye, tip, -up


def _robot_for(task: str, needs: int, robot: str | None) -> str:
    """`robot`, or the first model that has as many arms as the task needs. DeviceError where it has more or
    fewer, with those that fit."""
    fits = [model for model in MODELS if n_arms(model) == needs]
    robot = robot or (fits or MODELS)[0]
    require_known("simulated robot", robot, MODELS)
    if robot not in fits:
        choice = f"choose {' or '.join(f'sim:{model}' for model in fits)}" if fits else "no robot has so many"
        raise DeviceError(
            f"the task {task} is for {needs} arm{'s' * (needs > 1)}, and the simulated {robot} has "
            f"{n_arms(robot)}: {choice}"
        )
    return robot
