"""Many episodes of a task at once: environments of `gym.py`, shared out among a few processes.

Legend: n environments, A action dimensions."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium import Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .expert import Demonstrator
from .gym import CAMERA_POSE, DEPTH, TaskEnv
from .planar.env import ENVIRONMENT, STATE, Vector

TASK_INFO = {"instruction": "task"}  # what a row's info is called in that of all


DEPTH_MM = Vector((), ("mm",))
POSE = Vector(("x", "y", "z", "qx", "qy", "qz", "qw"), ("m",) * 3 + ("1",) * 4)


class Row(NamedTuple):
    """What one environment answers to a reset or a step."""

    observation: dict[str, np.ndarray]
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Share(Protocol):
    """Some of the environments. Orders are given to all shares before the first answer is waited for."""

    def reset(self, seeds: Mapping[int, int]) -> None: ...

    def step(self, actions: Mapping[int, np.ndarray]) -> None: ...

    def answer(self) -> dict[int, Row]:
        """To the last order, by environment."""
        ...

    def close(self) -> None: ...


class Here:
    """A share in this process, so that nothing runs beside the caller."""

    def __init__(self, indices: Sequence[int], options: Mapping[str, Any]) -> None:
        self.envs = {i: TaskEnv(**options) for i in indices}
        self._rows: dict[int, Row] = {}

    def reset(self, seeds: Mapping[int, int]) -> None:
        self._rows = {}
        for i, seed in seeds.items():
            observation, info = self.envs[i].reset(seed=seed)
            sent = observation[STATE]  # nothing was sent yet
            self._rows[i] = Row(observation, 0.0, False, False, {**info, "sent": sent})

    def step(self, actions: Mapping[int, np.ndarray]) -> None:
        self._rows = {i: Row(*self.envs[i].step(action)) for i, action in actions.items()}

    def answer(self) -> dict[int, Row]:
        return self._rows

    def close(self) -> None:
        for env in self.envs.values():
            env.close()


class Elsewhere:
    """A share in a process of its own. RuntimeError where that process fails, with its traceback."""

    def __init__(self, indices: Sequence[int], options: Mapping[str, Any]) -> None:
        # spawned: a fork would copy torch's threads, which are not there any more
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, list(indices), dict(options)), daemon=True
        )
        self._process.start()
        theirs.close()

    def reset(self, seeds: Mapping[int, int]) -> None:
        self._pipe.send(("reset", dict(seeds)))

    def step(self, actions: Mapping[int, np.ndarray]) -> None:
        self._pipe.send(("step", dict(actions)))

    def answer(self) -> dict[int, Row]:
        try:
            rows, failure = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError("a process with simulated environments has died") from None
        if failure:
            raise RuntimeError(f"a process with simulated environments failed:\n{failure}")
        return rows

    def close(self) -> None:
        self._pipe.close()  # it ends on that
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Connection, indices: list[int], options: dict[str, Any]) -> None:
    share = None
    try:
        share = Here(indices, options)
        while True:
            order, rows = pipe.recv()
            (share.reset if order == "reset" else share.step)(rows)
            pipe.send((share.answer(), ""))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass  # the other side has gone
    except Exception:  # noqa: BLE001  (said by the other side)
        pipe.send(({}, traceback.format_exc()))
    finally:
        if share is not None:
            share.close()


class RowVectorEnv(VectorEnv[dict[str, np.ndarray], np.ndarray, np.ndarray]):
    """A gymnasium vector environment of shares. An episode depends on its seed alone. Environments do not
    reset themselves (`AutoresetMode.DISABLED`): one whose episode has ended stands still, repeats what it
    said last, earns nothing, and ignores its action until `reset` names it in `options={"reset_mask": …}`.

    info: `success` `(n,)` bool, `score` `(n,)`, `task` `(n,)` str, the instruction in words, `sent` `(n, A)`
    float32, the actions as the limits allowed them, and what else the rows have, `(n,)` each."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # noqa: RUF012  (gymnasium's own declaration)
    task_name: str
    control_hz: float
    max_ticks: int
    observed: Mapping[str, Vector]
    action: Vector

    def __init__(
        self,
        action_space: Space[Any],
        observation_space: Space[Any],
        shares: Sequence[tuple[Sequence[int], Share]],
    ) -> None:
        """Spaces of one environment. shares: each with the numbers of its environments, which count from
        0."""
        self.num_envs = sum(len(indices) for indices, _ in shares)
        self.single_action_space, self.single_observation_space = action_space, observation_space
        self.action_space = batch_space(action_space, self.num_envs)
        self.observation_space = batch_space(observation_space, self.num_envs)
        self._shares = list(shares)
        self._rows: dict[int, Row] = {}

    @property
    def state_names(self) -> tuple[str, ...]:
        return self.observed[STATE].names

    @property
    def action_names(self) -> tuple[str, ...]:
        return self.action.names

    def reset(  # type: ignore[override]
        self,
        *,
        seed: Sequence[int | None] | int | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start the episodes of the seeds given: one for each environment, or one number from which
        environment i takes `seed + i`. With `options={"reset_mask": (n,) bool}` only those environments."""
        if seed is None:
            super().reset(seed=None)
            seeds = self.np_random.integers(1 << 31, size=self.num_envs).tolist()
        else:
            seeds = list(range(seed, seed + self.num_envs)) if isinstance(seed, int) else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments: give one for each")
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(
                f"reset_mask is {mask.dtype} of shape {mask.shape}, not bool of ({self.num_envs},)"
            )
        if not mask.all() and not self._rows:
            raise ValueError("the first reset is one of every environment")
        self._order("reset", {i: int(seeds[i]) for i in np.flatnonzero(mask)})  # type: ignore[arg-type]
        observation, _, _, _, info = self._answer()
        return observation, info

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One control period of the environments whose episodes have not ended; actions `(n, A)`."""
        if not self._rows:
            raise ValueError("reset every environment before the first step")
        actions = np.asarray(actions, np.float64)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions are of shape {actions.shape}, not {self.action_space.shape}")
        over = {i for i, row in self._rows.items() if row.terminated or row.truncated}
        for i in over:
            self._rows[i] = self._rows[i]._replace(reward=0.0)
        self._order("step", {i: actions[i] for i in range(self.num_envs) if i not in over})
        return self._answer()

    def close_extras(self, **kwargs: Any) -> None:
        for _, share in self._shares:
            share.close()

    def _order(self, order: str, rows: Mapping[int, Any]) -> None:
        asked = []
        for indices, share in self._shares:
            if own := {i: rows[i] for i in indices if i in rows}:
                (share.reset if order == "reset" else share.step)(own)
                asked.append(share)
        for share in asked:
            self._rows |= share.answer()

    def _answer(
        self,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        rows = [self._rows[i] for i in range(self.num_envs)]
        observation = {k: np.stack([r.observation[k] for r in rows]) for k in rows[0].observation}
        infos = [r.info for r in rows]
        return (
            observation,
            np.array([r.reward for r in rows]),
            np.array([r.terminated for r in rows]),
            np.array([r.truncated for r in rows]),
            {TASK_INFO.get(key, key): np.stack([i[key] for i in infos]) for key in infos[0]},
        )


class SimExperts:
    """One expert for each environment, from the environments' reset on. noise, mode: see `Task.expert`."""

    def __init__(
        self, envs: Mapping[int, TaskEnv], seeds: Sequence[int], noise: float, mode: str | None
    ) -> None:
        self.envs, self.seeds, self.noise, self.mode = envs, seeds, noise, mode
        self._experts: dict[int, Demonstrator] = {}

    def act(self, observation: Any = None) -> np.ndarray:
        """Actions `(n, A)` float64; those of episodes that have ended mean nothing."""
        if not self._experts:
            for i, env in self.envs.items():
                self._experts[i] = env.scene.expert(self.noise, self.mode)
                self._experts[i].reset(self.seeds[i])
        return np.stack([self._experts[i].act() for i in range(len(self.envs))])


class SimVectorEnv(RowVectorEnv):
    """Environments of one task. An episode is that of `gym.TaskEnv`, bit for bit."""

    def __init__(self, num_envs: int, processes: int = 1, **options: Any) -> None:
        """processes: among which the environments are shared out; 1: this one. options: of `TaskEnv`."""
        if num_envs < 1 or processes < 1:
            raise ValueError(f"{num_envs} environments in {processes} processes: there must be one at least")
        probe = TaskEnv(**options)  # before any process is started: it may refuse the options
        scene = probe.scene
        self.task_name, self.control_hz = scene.task_name, scene.control_hz
        self.max_ticks = round(scene.max_seconds * scene.control_hz)
        joints, task = scene.joints, scene.task
        self.action = Vector(tuple(joints.names), tuple(joints.units))
        self.observed = {STATE: self.action, ENVIRONMENT: Vector(tuple(task.names), tuple(task.units))}
        if probe.depth:
            self.observed |= {DEPTH + name: DEPTH_MM for name in scene.cameras}
            self.observed |= {CAMERA_POSE + name: POSE for name in scene.cameras}
        probe.close()
        processes = min(processes, num_envs)
        where = Here if processes == 1 else Elsewhere
        rows = [range(k, num_envs, processes) for k in range(processes)]
        shares = [(indices, where(indices, options)) for indices in rows]
        super().__init__(probe.action_space, probe.observation_space, shares)

    def expert(self, seeds: Sequence[int], noise: float = 0.0, mode: str | None = None) -> SimExperts:
        """The scripted demonstrators of the episodes of `seeds`, for environments in this process."""
        envs = [share.envs for _, share in self._shares if isinstance(share, Here)]
        if not envs:
            raise ValueError(
                "the scripted experts know scenes of their own process only: leave out processes"
            )
        return SimExperts(envs[0], seeds, noise, mode)


def vector_env(
    task: str, robot: str | None = None, num_envs: int = 8, processes: int = 1, **options: Any
) -> SimVectorEnv:
    """`num_envs` environments of a PyBullet task and a simulated robot; options: more of `TaskEnv`'s."""
    return SimVectorEnv(num_envs, processes, task=task, robot=robot, **options)
