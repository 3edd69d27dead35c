"""Agents: whatever decides the next action. Teleoperators, experts and policies all keep this contract, so
one episode loop records, evaluates and deploys."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from ..datasets.features import ACTION, STATE, Features, is_image, require_same
from ..drivers.config import require_known
from ..policies.decoders import decoder_for
from ..policies.request import Request, ServedPolicy
from .robot import Observation

if TYPE_CHECKING:
    from .config import Rig

AGENTS = ("expert", "hold")  # of a simulated robot; those of people are in `robot.people`


class Agent(Protocol):
    """tag: who acted, as stored with the episode (`expert`, `human`, `policy flow 1a2b3c4d`).

    An agent may also be a `HearsSent`, an `Intervenes` or have `Buttons`."""

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
class Intervenes(Protocol):
    """An agent that may be a person's override of a policy. intervening: the last `act` was one."""

    @property
    def intervening(self) -> bool: ...


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
    per decision over all episodes."""

    def __init__(
        self, policy: ServedPolicy, robot_features: Features, control_hz: float | None = None
    ) -> None:
        self.policy, self.metadata = policy, policy.metadata
        features, rate = self.metadata.features, self.metadata.control_hz
        if not features:
            raise ValueError("the server does not say what its policy needs: is it an Ulna server?")
        self.decoder = decoder_for(self.metadata)
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
        self.tag = f"policy {self.metadata.recipe or '?'} {self.metadata.checkpoint[:8]}".rstrip()
        self.latencies_s: list[float] = []
        self.nfe: list[int] = []
        self.reset("", 0)

    def reset(self, task: str, seed: int) -> None:
        self.task, self.seed = task, seed
        self._decisions = 0
        self._history: deque[dict[str, np.ndarray]] = deque(maxlen=self.metadata.n_obs_steps)
        self._past: deque[np.ndarray] = deque(maxlen=self.metadata.n_past_actions)
        self.decoder.reset()

    def act(self, observation: Observation) -> np.ndarray:
        features = {k: f for k, f in self.metadata.features.items() if k != ACTION}
        latest = {k: _at_size(observation.values[k], f.shape) for k, f in features.items()}
        # before the first tick the world stood still
        while len(self._history) < self.metadata.n_obs_steps - 1:
            self._history.append(latest)
        self._history.append(latest)
        if self.decoder.wants_chunk():
            history = {k: np.stack([step[k] for step in self._history]) for k in features}
            request = Request(history, self._decision_seed(), self._complete_past(), self.task)
            began = time.monotonic()
            reply = self.policy.infer(request.to_wire())
            self.latencies_s.append(time.monotonic() - began)
            self.nfe.append(int(reply.get("nfe", 0)))
            self._decisions += 1
            execute = reply.get("execute")
            self.decoder.push(np.asarray(reply["actions"]), None if execute is None else int(execute))
        return self.decoder.next()

    def sent(self, action: np.ndarray) -> None:
        """What the robot made of the last action, limits applied: the past that the policy learned from."""
        self._past.append(action)

    def _complete_past(self) -> np.ndarray | None:
        """`Request.past`, `(n_past_actions, A)` float32; None where the policy does not need it, or where the
        episode has sent fewer actions so far."""
        n = self.metadata.n_past_actions
        if not self.metadata.needs_past or len(self._past) < n:
            return None
        return np.stack(self._past).astype(np.float32)

    def _decision_seed(self) -> int:
        digest = hashlib.sha256(f"{self.seed} {self._decisions}".encode()).digest()
        return int.from_bytes(digest[:6], "big")


def _at_size(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if value.ndim != 3 or value.shape == shape:
        return value
    import cv2

    return cv2.resize(value, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
