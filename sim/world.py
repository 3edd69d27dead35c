"""The PyBullet world: one DIRECT client, physics at 240 Hz, time counted in steps."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from .looks import PLAIN, Looks


@contextlib.contextmanager
def redirected(descriptors: tuple[int, ...], target: int) -> Iterator[None]:
    """What C code prints to `descriptors` goes to the file descriptor `target`."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {}
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # there is none
            saved[descriptor] = os.dup(descriptor)
    try:
        for descriptor in saved:
            os.dup2(target, descriptor)
        yield
    finally:
        for descriptor, copy in saved.items():
            os.dup2(copy, descriptor)
            os.close(copy)


with open(os.devnull, "wb") as nowhere, redirected((1, 2), nowhere.fileno()):
    import pybullet  # prints when it was built

PHYSICS_HZ = 240
type Poses = list[tuple[Sequence[float], Sequence[float], list[float]]]  # position, quaternion, joints


class World:
    """A floor under gravity. Bodies are loaded by others; `before_step` and `after_step` are called around
    each step.

    bullet: the `pybullet` module; client: what its functions take as `physicsClientId`. steps: of physics,
    ever; builds: how often the world was cleared. table: the floor's body; looks: those of the
    world as it is now."""

    def __init__(self) -> None:
        self.bullet = pybullet
        with redirected((1,), 2):  # where a command's JSON belongs, PyBullet prints, too
            self.client = pybullet.connect(pybullet.DIRECT)
        self.steps = self.builds = 0
        self.looks, self.table = PLAIN, -1
        self.before_step: list[Callable[[], None]] = []
        self.after_step: list[Callable[[], None]] = []

    def clear(self, looks: Looks = PLAIN) -> None:
        """Remove every body, so that what follows depends on nothing before. Time goes on."""
        p, c = self.bullet, self.client
        self.looks = looks
        self.builds += 1
        # three steps are a whole number of nanoseconds: the clock rounds alike in every episode
        self.steps += -self.steps % 3
        p.resetSimulation(physicsClientId=c)
        p.setGravity(0, 0, -9.81, physicsClientId=c)
        p.setPhysicsEngineParameter(
            fixedTimeStep=1 / PHYSICS_HZ,
            deterministicOverlappingPairs=1,
            numSolverIterations=60,
            physicsClientId=c,
        )
        floor = p.createCollisionShape(p.GEOM_BOX, halfExtents=[1.5, 1.5, 0.05], physicsClientId=c)
        look = p.createVisualShape(
            p.GEOM_BOX, halfExtents=[1.5, 1.5, 0.05], rgbaColor=[*looks.table, 1], physicsClientId=c
        )
        self.table = p.createMultiBody(0, floor, look, [0, 0, -0.05], physicsClientId=c)
        p.changeDynamics(self.table, -1, lateralFriction=0.8, physicsClientId=c)
        if looks.planks:
            self._lay_planks()

    def _lay_planks(self) -> None:
        """To be seen only: nothing touches them."""
        p, c, looks = self.bullet, self.client, self.looks
        n = len(looks.planks)
        colours = [[min(max(v * (1 + shade), 0.0), 1.0) for v in looks.table] for shade in looks.planks]
        top = p.createVisualShapeArray(
            shapeTypes=[p.GEOM_BOX] * n,
            halfExtents=[[looks.width / 2, 0.6, 0.0002]] * n,
            visualFramePositions=[[(i - (n - 1) / 2) * looks.width, 0.0, 0.0] for i in range(n)],
            rgbaColors=[[*colour, 1] for colour in colours],
            physicsClientId=c,
        )
        turn = p.getQuaternionFromEuler([0, 0, looks.yaw])
        p.createMultiBody(0, -1, top, [0.35, 0, 0.0002], turn, physicsClientId=c)

    def step(self) -> None:
        for call in self.before_step:
            call()
        self.bullet.stepSimulation(physicsClientId=self.client)
        self.steps += 1
        for call in self.after_step:
            call()

    def poses(self) -> Poses:
        """Where every body and joint is, in the order in which they were made."""
        p, c = self.bullet, self.client
        poses = []
        for body in (
            p.getBodyUniqueId(i, physicsClientId=c) for i in range(p.getNumBodies(physicsClientId=c))
        ):
            joints = range(p.getNumJoints(body, physicsClientId=c))
            states = p.getJointStates(body, joints, physicsClientId=c) if joints else ()
            place = p.getBasePositionAndOrientation(body, physicsClientId=c)
            poses.append((*place, [state[0] for state in states]))
        return poses

    def place(self, poses: Poses) -> None:
        """Put the bodies where those of another world are that was built alike."""
        p, c = self.bullet, self.client
        for i, (position, orientation, joints) in enumerate(poses):
            body = p.getBodyUniqueId(i, physicsClientId=c)
            p.resetBasePositionAndOrientation(body, position, orientation, physicsClientId=c)
            for joint, q in enumerate(joints):
                p.resetJointState(body, joint, q, physicsClientId=c)

    def close(self) -> None:
        if self.client >= 0:
            self.bullet.disconnect(self.client)
            self.client = -1


class SimClock:
    """Time as physics: `sleep_until` steps the world. With `realtime` it also waits, so that a simulated
    robot runs no faster than a real one."""

    def __init__(self, world: World, realtime: bool = False) -> None:
        self.world, self.realtime = world, realtime
        self._offset_ns = time.monotonic_ns() - self.now_ns()

    def now_ns(self) -> int:
        return self.world.steps * 1_000_000_000 // PHYSICS_HZ

    def sleep_until(self, t_ns: int) -> None:
        if self.realtime:
            # after a pause (a reset, a slow policy) go on from now, rather than race to catch up
            self._offset_ns = max(self._offset_ns, time.monotonic_ns() - t_ns)
        while self.now_ns() < t_ns:
            self.world.step()
            if self.realtime:
                ahead_ns = self.now_ns() + self._offset_ns - time.monotonic_ns()
                if ahead_ns > 0:
                    time.sleep(ahead_ns * 1e-9)
