"""Agents: whatever decides the next action. Teleoperators, experts and policies all keep this contract, so
one episode loop records, evaluates and deploys."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from ..datasets.features import STATE, Features, is_image, require_same
from ..datasets.uvd import DEMONSTRATION
from ..drivers.config import require_known
from ..policies.request import TASK, Request, ServedPolicy
from ..policies.serving.client import PolicyServerError
from .asking import Answered, Asker
from .prompts import PROMPT, SHOW_SOME, Prompts
from .robot import Observation
from .session import Session, can_stand

if TYPE_CHECKING:
    from .charge import Charge
    from .config import Rig
    from .strategies.strategy import Strategy

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

    def skip(self, ticks: int) -> None:
        """Before the next `act`: the program was held up for longer than it makes up for, and the arms have
        executed so many of those that were to follow."""
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
    """Runs a policy: keeps the last `n_obs_steps` observations, asks for a chunk when the strategy wants one,
    and executes it as the strategy says.

    strategy: by default that of the policy's decoder, with which each tick waits for the chunk that it needs.
    One that does not wait asks from a thread of its own, which then has the policy to itself; where no chunk
    has an action for a tick, the last one is repeated (`starved` counts how often), and PolicyServerError
    ends a stand of more than the strategy's `patience_s`. charge: the world stands still while the policy
    thinks, so what its answer costs is charged in ticks instead, without a thread; nobody then gives up.
    Where the robot's state does not say how to stand still, the first answer of an episode is free.

    ValueError or FeatureMismatch, both sides shown, for a robot whose features or control rate are not the
    policy's; larger camera images are resized to the policy's by area. latencies_s and nfe grow by one entry
    per decision over all episodes.

    The policy is told the task of the episode. goal: what its conditions need beside it and the robot does
    not observe, such as `goal.observation.state`, by key, or for a policy that is told subgoals a
    demonstration (see `Session`); prompts: of which it is shown some of the task; ValueError where something
    lacks. What the policy remembers goes from one reply to the next request, and is forgotten at `reset`."""

    def __init__(
        self,
        policy: ServedPolicy,
        robot_features: Features,
        control_hz: float | None = None,
        goal: Mapping[str, np.ndarray] | None = None,
        strategy: Strategy | None = None,
        charge: Charge | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        self.policy, self.metadata = policy, policy.metadata
        features, rate = self.metadata.features, self.metadata.control_hz
        if not features:
            raise ValueError("the server does not say what its policy needs: is it an Ulna server?")
        self._session = Session(self.metadata, goal, strategy, robot_features, prompts)
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
        given = {k.replace(DEMONSTRATION, "goal.", 1) for k in goal or {} if self.metadata.subgoals}
        given |= {TASK, *(goal or {}), *(() if prompts is None else prompts.keys)}
        asked = {k: f for k, f in self.metadata.conditions.items() if k not in given}
        observed = {k: f for k, f in asked.items() if k in robot_features}
        require_same(robot_features, observed, "the robot", "the policy")
        if missing := sorted(set(asked) - set(observed)):
            feature = asked[missing[0]]
            if missing[0].startswith(PROMPT):
                raise ValueError(SHOW_SOME)
            raise ValueError(
                f"the policy must be told {missing[0]}, {feature.dtype} {feature.shape}, which the robot "
                "does not observe: give it as the agent's goal"
            )
        self.tag = f"policy {self.metadata.recipe or '?'} {self.metadata.checkpoint[:8]}".rstrip()
        self.strategy, self.charge = self._session.strategy, charge
        self.shown = None if prompts is None else str(prompts)
        self._control_hz = control_hz or rate
        if charge is not None and charge.ms != 0 and not self._control_hz:
            raise ValueError("a latency is charged in control ticks: say at what rate the robot runs")
        self._asker = None if self.strategy.waits or charge is not None else Asker(policy)
        if self._asker is not None and not can_stand(robot_features):
            raise ValueError(
                "the robot's state does not say by which action it stands still until the first answer is "
                "there: use the strategy receding"
            )
        self._standing_since: float | None = None
        self._starved_before = self._too_late_before = 0
        self.latencies_s: list[float] = []
        self.nfe: list[int] = []
        self.delays: list[int] = []

    @property
    def starved(self) -> int:
        """Ticks of all episodes for which no chunk had an action."""
        return self._starved_before + self._session.starved

    @property
    def too_late(self) -> int:
        """Answers of all episodes that came when all their actions were for ticks that were over."""
        return self._too_late_before + self._session.too_late

    @property
    def switches(self) -> list[int]:
        """Ticks of this episode at which another chunk took over."""
        return self._session.switches

    def reset(self, task: str, seed: int) -> None:
        if self._asker is not None:
            self._asker.forget()
        self._starved_before, self._too_late_before = self.starved, self.too_late
        self._session.reset(task, seed)

    def act(self, observation: Observation) -> np.ndarray:
        session, asker = self._session, self._asker
        if asker is not None and (came := asker.answer()) is not None:
            self._answer(came)
        session.observe(observation.values)
        if asker is None or not asker.busy:
            request = session.ask()
            if request is not None:
                self._ask(session.tick, request)
        action = session.next()
        if asker is not None:
            self._require_patience()
        return action

    def ahead(self) -> np.ndarray | None:
        """`(n, A)`: the actions that are to be executed after the one that `act` gave last, at the control
        period; None where nothing is planned."""
        return self._session.ahead()

    def skip(self, ticks: int) -> None:
        self._session.skip(ticks)

    def watch(self, observation: Observation) -> None:
        """Instead of `act`: somebody else acts in this tick. What was planned is dropped."""
        if self._asker is not None:
            self._asker.forget()
        self._standing_since = None
        self._session.watch(observation.values)

    def sent(self, action: np.ndarray) -> None:
        self._session.sent(action)

    def close(self) -> None:
        """No more questions will be asked. Does not close the policy."""
        if self._asker is not None:
            self._asker.close()

    def _ask(self, tick: int, request: Request) -> None:
        if self._asker is not None:
            self._asker.ask(tick, request.to_wire())
            return
        began = time.monotonic()
        reply = self.policy.infer(request.to_wire())
        self._answer(Answered(tick, reply, time.monotonic() - began))

    def _answer(self, came: Answered) -> None:
        reply, nfe = came.reply, int(came.reply.get("nfe", 0))
        self.latencies_s.append(came.seconds)
        self.nfe.append(nfe)
        delay = 0
        if self.charge is not None and self._control_hz and self._session.can_wait:
            delay = self.charge.ticks(came.seconds, nfe, self._control_hz)
        memory, execute = reply.get("memory"), reply.get("execute")
        self._session.answer(reply["actions"], memory, execute, asked=came.asked, delay=delay)
        self.delays.append(delay if self._asker is None else self._session.tick - came.asked)

    def _require_patience(self) -> None:
        """PolicyServerError where the robot has stood still for too long."""
        if not self._session.starving:
            self._standing_since = None
            return
        now = time.monotonic()
        self._standing_since = self._standing_since or now
        patience_s: float = getattr(self.strategy, "patience_s", math.inf)
        if now - self._standing_since < patience_s:
            return
        ahead = self.metadata.n_actions_ahead
        reason = "it does not answer" if not self.delays else f"its answers take {self.delays[-1]} ticks"
        if self._session.too_late:
            reason += f", and its chunks have only {ahead} actions"
        raise PolicyServerError(
            f"the policy has given no action for {patience_s:g} s: {reason}; the arm stands still"
        )
