"""Tasks of other projects, each in an environment of its own: gym-pusht's Push-T, `external:PushT`, and
Meta-World's pick-place-v3, `external:PickPlace`, as tasks of `head_to_head.py` and of studies.

    python benchmarks/external.py [pusht metaworld]      make the environments, under runs/foreign/
    python benchmarks/head_to_head.py external:PushT external:PickPlace \\
        --methods flow act lerobot_act lerobot_diffusion
    PYTHONPATH=benchmarks ulna study FILE                whose task has one of these names

Legend: n environments, k of them, A action dimensions."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import foreign_samples
import numpy as np
from foreign_samples import Tool, environment
from gymnasium.spaces import Box, Dict, Space
from pusht_expert import PushTExpert

from ulna.robot.study import lerobot as messages
from ulna.robot.study.study import StudyError
from ulna.sim.planar.env import Vector
from ulna.sim.vector import Row, RowVectorEnv

FOREIGN = Path(__file__).parent / "foreign"
TOOLS = {
    "pusht": Tool(
        "pusht_env",
        ("gym-pusht==0.1.6", "pymunk==6.11.1", "gymnasium==1.2.3", "shapely==2.1.2", "numpy==2.2.6"),
        False,
    ),
    "metaworld": Tool(
        "metaworld_env",
        (
            *("metaworld==3.1.1", "mujoco==3.3.0", "gymnasium==1.2.3", "scipy==1.16.3", "numpy==2.2.6"),
            "packaging",  # which gymnasium's MuJoCo needs and does not ask for
        ),
        False,
    ),
}
PROCESSES = 2
MEMORY_S = 0.475  # in which a disturbance falls to 1/e, as that of the experts of `ulna.sim`
GRACE_S = 5.0


def environment_name(name: str) -> str:
    return f"external-{name}"


def interpreter(name: str) -> Path:
    """The Python of the environment of `TOOLS[name]`. StudyError where it is not made yet."""
    tool, folder = TOOLS[name], foreign_samples.RUNS / f"env-{environment_name(name)}"
    made = folder / "made.txt"
    if not made.is_file() or made.read_text() != "\n".join(tool.packages):
        raise StudyError(
            f"there is no environment with {tool.packages[0]} yet: make it with "
            f"`python benchmarks/external.py {name}`"
        )
    return folder / "bin" / "python"


class ForeignShare:
    """Environments of the task in the file `task`, in a process of `python`; see `foreign/external_rows.py`.
    A `Share` of a `RowVectorEnv`. StudyError where that process cannot be started, dies, or answers with an
    error."""

    def __init__(self, python: Path, task: Path) -> None:
        self.task = task.stem
        quiet = {"PYGAME_HIDE_SUPPORT_PROMPT": "1", "SDL_VIDEODRIVER": "dummy"}
        try:
            self._process = subprocess.Popen(
                [str(python), str(FOREIGN / "external_rows.py"), messages.__file__, str(task)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1", **quiet},
            )
        except OSError as error:
            raise StudyError(f"cannot start {python} for {self.task}: {error.strerror}") from None
        self._asked: list[int] = []
        self._sent = np.zeros(0)
        try:
            self.about: dict[str, Any] = json.loads(str(self._ask(order="about")["about"]))
        except StudyError:
            self.close()
            raise
        self.low, self.high = (np.array(self.about[k], np.float64) for k in ("low", "high"))

    def reset(self, seeds: Mapping[int, int]) -> None:
        self._asked = list(seeds)
        self._sent = np.clip(np.zeros((len(seeds), len(self.low))), self.low, self.high)  # nothing yet
        self._write(order="reset", index=self._asked, seed=list(seeds.values()))

    def step(self, actions: Mapping[int, np.ndarray]) -> None:
        self._asked = list(actions)
        self._sent = np.clip(np.stack(list(actions.values())), self.low, self.high)
        self._write(order="step", index=self._asked, action=self._sent)

    def answer(self) -> dict[int, Row]:
        answer = self._read()
        observed = {k: answer[k] for k in self.about["observed"]}
        numbers = {k.removeprefix("info."): v for k, v in answer.items() if k.startswith("info.")}
        success = numbers.pop("success").astype(bool)
        rows = {}
        for j, i in enumerate(self._asked):
            info = {
                "success": bool(success[j]),
                "score": float(success[j]),
                "instruction": self.about["instruction"],
                "sent": self._sent[j].astype(np.float32),
                **{k: float(v[j]) for k, v in numbers.items()},
            }
            terminated, truncated = (bool(answer[k][j]) for k in ("terminated", "truncated"))
            seen, reward = {k: v[j] for k, v in observed.items()}, float(answer["reward"][j])
            rows[i] = Row(seen, reward, terminated, truncated, info)
        return rows

    def expert(self, indices: Sequence[int]) -> np.ndarray:
        """What the package's own demonstrator would do now, `(k, A)`."""
        return self._ask(order="expert", index=list(indices))["action"]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # what could not be written to a process that has died
            self._process.stdin.close()  # it ends on that
        self._process.stdout.close()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, **values: Any) -> dict[str, np.ndarray]:
        self._write(**values)
        return self._read()

    def _write(self, **values: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the answer says that it has died
            messages.write_message(self._process.stdin, values)  # type: ignore[arg-type]

    def _read(self) -> dict[str, np.ndarray]:
        assert self._process.stdout is not None
        answer = messages.read_message(self._process.stdout)  # type: ignore[arg-type]
        if answer is None:
            raise StudyError(f"the process with {self.task} has died: its words are above")
        if "error" in answer:
            raise StudyError(f"{self.task}: {answer['error']}")
        return answer


class ExternalEnv(RowVectorEnv):
    """Environments of the task in the file `task`, in processes of another Python. An episode depends on its
    seed alone."""

    only_successes = True
    """Of its demonstrations those that fail are not kept."""

    def __init__(self, num_envs: int, python: Path, task: Path, processes: int = PROCESSES) -> None:
        """processes: among which the environments are shared out."""
        if num_envs < 1 or processes < 1:
            raise ValueError(f"{num_envs} environments in {processes} processes: there must be one at least")
        processes = min(processes, num_envs)
        self.foreign: list[tuple[Sequence[int], ForeignShare]] = []
        try:
            for k in range(processes):
                self.foreign.append((range(k, num_envs, processes), ForeignShare(python, task)))
        except StudyError:
            for _, share in self.foreign:
                share.close()
            raise
        first = self.foreign[0][1]
        about = first.about
        self.task_name, self.control_hz = about["task_name"], float(about["control_hz"])
        self.max_ticks = int(about["max_ticks"])
        self.observed = {k: Vector(*map(tuple, of)) for k, of in about["observed"].items()}
        self.action = Vector(*map(tuple, about["action"]))
        low, high = first.low.astype(np.float32), first.high.astype(np.float32)
        seen: dict[str, Space[Any]] = {
            k: Box(-np.inf, np.inf, (len(e.names),), np.float32) for k, e in self.observed.items()
        }
        super().__init__(Box(low, high, dtype=np.float32), Dict(seen), self.foreign)


class Disturbance:
    """On the targets of n experts, one stream for each seed. noise: its standard deviation."""

    def __init__(self, seeds: Sequence[int], noise: float, control_hz: float, dimensions: int) -> None:
        self.noise, self.memory = noise, float(np.exp(-1 / (MEMORY_S * control_hz)))
        self._rngs = [np.random.default_rng([s, 7]) for s in seeds]
        self._now = np.zeros((len(seeds), dimensions))

    def draw(self) -> np.ndarray:
        fresh = np.stack([r.standard_normal(self._now.shape[1]) for r in self._rngs])
        self._now = self.memory * self._now + self.noise * np.sqrt(1 - self.memory**2) * fresh
        return self._now


class PickPlace(ExternalEnv):
    """Meta-World's pick-place-v3."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, interpreter("metaworld"), FOREIGN / "metaworld_env.py")

    def expert(self, seeds: Sequence[int], noise: float = 0.0) -> MetaWorldExperts:
        """Meta-World's scripted demonstrators. noise: on the hand's targets, m."""
        return MetaWorldExperts(self, seeds, noise)


class MetaWorldExperts:
    GAIN = 10.0  # of Meta-World's experts: action for each metre from the hand to where it is to go

    def __init__(self, env: ExternalEnv, seeds: Sequence[int], noise: float) -> None:
        self.env, self.disturbance = env, Disturbance(seeds, noise, env.control_hz, 3)

    def act(self, observation: Any = None) -> np.ndarray:
        """Actions `(n, A)` float64."""
        actions = np.zeros((self.env.num_envs, len(self.env.action.names)))
        for indices, share in self.env.foreign:
            actions[list(indices)] = share.expert(indices)
        actions[:, :3] += self.GAIN * self.disturbance.draw()
        return np.clip(actions, -1, 1)


class PushT(ExternalEnv):
    """gym-pusht's. The demonstrator is ours; a pixel counts as a millimetre of its disturbance."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, interpreter("pusht"), FOREIGN / "pusht_env.py")

    def expert(self, seeds: Sequence[int], noise: float = 0.0) -> PushTExperts:
        return PushTExperts(self, seeds, noise)


class PushTExperts:
    PIXELS = 1e3  # a metre

    def __init__(self, env: ExternalEnv, seeds: Sequence[int], noise: float) -> None:
        self.experts = [PushTExpert() for _ in seeds]
        self.disturbance = Disturbance(seeds, noise * self.PIXELS, env.control_hz, 2)

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Actions `(n, 2)` float64, px."""
        agents, corners = observation["observation.state"], observation["observation.environment_state"]
        targets = [e.act(a, c) for e, a, c in zip(self.experts, agents, corners, strict=True)]
        return np.stack(targets) + self.disturbance.draw()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{' or '.join(TOOLS)}: all by default")
    names = parser.parse_args().names
    if strange := [n for n in names if n not in TOOLS]:
        parser.error(f"there is no {strange[0]}: there is {', '.join(TOOLS)}")
    for name in names or TOOLS:
        print(environment(environment_name(name), TOOLS[name]))


if __name__ == "__main__":
    main()
