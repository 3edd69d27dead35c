"""Environment steps per second of `lift` from state in one process: 20 Hz control over 240 Hz physics. Beside
it, in the same run, the same physics stepped by PyBullet alone: what our layer costs.

    python benchmarks/sim_steps.py
"""

from __future__ import annotations

import time

import gymnasium
import numpy as np
import results

import ulna.sim.gym  # noqa: F401
from ulna.sim.gym import TaskEnv

STEPS, ROUNDS = 400, 7


def environment(env: TaskEnv) -> float:
    env.reset(seed=0)
    rest = env.scene.read().astype(np.float32)
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    for _ in range(STEPS):
        env.step(rest + rng.uniform(-0.02, 0.02, len(rest)).astype(np.float32))
    return STEPS / (time.perf_counter() - began)


def physics(env: TaskEnv) -> float:
    env.reset(seed=0)
    world = env.scene.world
    began = time.perf_counter()
    for _ in range(STEPS * 12):
        world.bullet.stepSimulation(physicsClientId=world.client)
    return STEPS / (time.perf_counter() - began)


if __name__ == "__main__":
    rows = {}
    for robot in ("so101", "panda"):
        env = gymnasium.make("ulna/Lift-v0", robot=robot).unwrapped
        assert isinstance(env, TaskEnv)
        environment(env)
        ours, bare = zip(*((environment(env), physics(env)) for _ in range(ROUNDS)), strict=True)
        rows[robot] = {
            "env_steps_per_s": round(float(np.median(ours))),
            "physics_alone_per_s": round(float(np.median(bare))),
        }
        env.close()
    results.save("sim_steps", {"task": "lift from state", "rounds": ROUNDS, **rows})
