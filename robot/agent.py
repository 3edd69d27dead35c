"""Agents: whatever decides the next action. Teleoperators, experts and policies all keep this contract, so
one episode loop records, evaluates and deploys."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from ..datasets.features import STATE, Features, is_image, require_same
from ..drivers.config import require_known
from ..policies.request import TASK, ServedPolicy
from .robot import Observation
from .session import Session

if TYPE_CHECKING:
    from .config import Rig

AGENTS = ("expert", "hold")  # of a simulated robot; those of people are in `robot.people`


class Agent(Protocol):
    """tag: who acted, as stored with the episode (`expert`, `human`, `policy flow 1a2b3c4d`).

    An agent may also be a `HearsSent`, `Foresees`, `Watches`, `Intervenes`, `Ends`, or have `Buttons`."""

    tag: str

    def reset(self, task: str, seed: int) -> None:
        """An episode begins; the same seed gives the same behaviour."""
        ...

    def act(self, observation: Observation) -> np.ndarray:
        """The next action `(A,)`, in the robot's action feature."""
        ...


@runtime_checkable
class HearsSent(Protocol):
    """An agent that is told what became of its actions."""

    def sent(self, action: np.ndarray) -> None:
        """After every tick: what was really sent, `(A,)` float32, limits applied."""
        ...


@runtime_checkable
class Foresees(Protocol):
    """An agent that knows what it will do next."""

    def ahead(self) -> np.ndarray | None:
        """After `act`: the actions `(n, A)` that are to follow, one a control period."""
        ...


@runtime_checkable
class Watches(Protocol):
    """An agent in whose place another may act for a while."""

    def watch(self, observation: Observation) -> None:
        """Instead of `act`: somebody else acts in this tick. What was planned is dropped."""
        ...


@runtime_checkable
class Intervenes(Protocol):
    """An agent in which not only a policy acts. flags: of the last `act`, of `datasets.flags`: INTERVENTION
    where it was a person's override, DIRECTED where a director moved the robot."""

    @property
    def flags(self) -> int: ...


@runtime_checkable
class Ends(Protocol):
    """An agent that may end its episode. outcome: whether the task was done, as far as it can tell."""

    @property
    def ended(self) -> bool: ...

    @property
    def outcome(self) -> bool | None: ...


@runtime_checkable
class Buttons(Protocol):
    """An agent whose device has buttons; their words are those of `drivers.teleoperator`."""

    def events(self) -> tuple[str, ...]:
        """The words pressed since the last call, in `act`."""
        ...

    def idle(self) -> tuple[str, ...]:
        """`events` between episodes, when nobody acts: the device is read, and moves nothing."""
        ...


class HoldAgent:
    """Stays where the robot stood when the episode began: the baseline that must fail."""

    tag = "hold"

    def reset(self, task: str, seed: int) -> None:
        self._at: np.ndarray | None = None

    def act(self, observation: Observation) -> np.ndarray:
        if self._at is None:
            self._at = observation.values[STATE].copy()
        return self._at


class ExpertAgent:
    """The scripted demonstrator of a simulated task."""

    tag = "expert"

    def __init__(self, scene: Any, noise: float = 0.0, mode: str | None = None) -> None:
        self.scene, self.noise, self.mode = scene, noise, mode

    def reset(self, task: str, seed: int) -> None:
        self._expert = self.scene.expert(self.noise, self.mode)
        self._expert.reset(seed)

    def act(self, observation: Observation) -> np.ndarray:
        return self._expert.act(observation.values)


def make_agent(name: str, rig: Rig, noise: float = 0.0, mode: str | None = None) -> Agent:
    """An agent that needs neither a policy nor a person."""
    require_known("agent", name, AGENTS)
    if name == "expert" and rig.sim is None:
        raise ValueError(
            "the scripted expert knows simulated scenes only: use --agent leader, gamepad, browser, ..."
        )
    return HoldAgent() if name == "hold" else ExpertAgent(rig.sim, noise, mode)


class PolicyAgent:
    """Runs a policy: keeps the last `n_obs_steps` observations, requests a chunk when the decoder wants one.

    ValueError or FeatureMismatch, both sides shown, for a robot whose features or control rate are not the
    policy's; larger camera images are resized to the policy's by area. latencies_s and nfe grow by one entry
    per decision over all episodes.

    The policy is told the task of the episode. goal: what its conditions need beside it and the robot does
    not observe, such as `goal.observation.state` or a prompt, by key; ValueError where something lacks. What
    the policy remembers goes from one reply to the next request, and is forgotten at `reset`."""

    def __init__(
        self,
        policy: ServedPolicy,
        robot_features: Features,
        control_hz: float | None = None,
        goal: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.policy, self.metadata = policy, policy.metadata
        features, rate = self.metadata.features, self.metadata.control_hz
        if not features:
            raise ValueError("the server does not say what its policy needs: is it an Ulna server?")
        self._session = Session(self.metadata, goal)
        if control_hz and rate and abs(control_hz - rate) > 0.01 * rate:
            raise ValueError(
                f"the policy was trained on {rate:g} Hz data and the robot runs at {control_hz:g} Hz: "
                "set the robot's control_hz to the policy's"
            )
        vectors = {k: f for k, f in features.items() if not is_image(k)}
        images = {k: f for k, f in features.items() if is_image(k)}
        require_same(robot_features, vectors, "the robot", "the policy")
        for key, feature in images.items():
            offer = robot_features.get(key)
            if offer is None or any(a < b for a, b in zip(offer.shape[:2], feature.shape[:2], strict=True)):
                require_same(robot_features, images, "the robot", "the policy")
        asked = {k: f for k, f in self.metadata.conditions.items() if k not in (TASK, *(goal or {}))}
        observed = {k: f for k, f in asked.items() if k in robot_features}
        require_same(robot_features, observed, "the robot", "the policy")
        if missing := sorted(set(asked) - set(observed)):
            feature = asked[missing[0]]
            raise ValueError(
                f"the policy must be told {missing[0]}, {feature.dtype} {feature.shape}, which the robot "
                "does not observe: give it as the agent's goal"
            )
        self.tag = f"policy {self.metadata.recipe or '?'} {self.metadata.checkpoint[:8]}".rstrip()
        self.latencies_s: list[float] = []
        self.nfe: list[int] = []

    def reset(self, task: str, seed: int) -> None:
        self._session.reset(task, seed)

    def act(self, observation: Observation) -> np.ndarray:
        request = self._session.request(observation.values)
        if request is not None:
            began = time.monotonic()
            reply = self.policy.infer(request.to_wire())
            self.latencies_s.append(time.monotonic() - began)
            self.nfe.append(int(reply.get("nfe", 0)))
            self._session.answer(reply["actions"], reply.get("memory"), reply.get("execute"))
        return self._session.next()

    def watch(self, observation: Observation) -> None:
        self._session.watch(observation.values)

    def sent(self, action: np.ndarray) -> None:
        self._session.sent(action)
