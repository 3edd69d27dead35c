"""How a policy is asked, in this process or over the wire, and all that one decision knows. On the wire it is
a flat map of observations, as openpi's clients send it, answered by a map with `actions`. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..datasets.features import PAST
from .serving.metadata import Metadata
from .serving.protocol import ProtocolError, brief

EXTENSION = "_rt"  # key of the map in a request that openpi's servers do not know
MOST_OPTIONS = 256  # values in a request's options
TASK, PROMPT = "task", "prompt"  # keys of the instruction in words: ours and LeRobot's, openpi's


class ServedPolicy(Protocol):
    """A policy that answers requests: a checkpoint in this process, or a server's client."""

    @property
    def metadata(self) -> Metadata: ...

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request (see `Request.to_wire`): `actions` `(n, A)` float, the first for now. Ulna's
        policies add `nfe`, the network evaluations spent, and `checkpoint`, the content hash; `memory`, to be
        sent with the next request of the episode, where the policy remembers; and `execute`, how many of the
        actions to use before asking again, where the policy says so.

        Raises BadRequest where the request does not fit the policy; a client raises PolicyServerError."""
        ...


@dataclass(frozen=True)
class Request:
    """One question to a policy, or inside the policy B of them, where every value has a leading axis B and
    arrays are tensors."""

    observation: Mapping[str, Any]
    """Arrays by feature, each `(n_obs_steps, *shape)`, oldest first, or one observation `(*shape)` that
    stands for all of them. Also what the policy's conditions need: `goal.<feature>` `(*shape)`,
    `prompt.<feature>` `(prompts, length, *shape)`."""
    seed: Any = None
    """Of the draw, 0 to 2^63 - 1; None draws at random. Inside the policy one for the batch, or B of them:
    then every row is what it would be alone."""
    past: Any = None
    """`(n_past_actions, A)` float, the actions sent before now, oldest first."""
    task: Any = None
    """The instruction in words."""
    previous: Any = None
    """`(n, A)` float: what is left of the last reply's actions, the first for now."""
    delay: int | None = None
    """Control ticks that will pass until the reply is used."""
    memory: Any = None
    """What the last reply of the episode gave under this name; None at its first decision."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of this decision only: `steps`, of the sampler; `steering`, a list of hooks `{"part": name, field:
    value}`, after the policy's own."""
    deadline_ms: float | None = None
    """How long a reply is of use, from the request's arrival at the server; later it is not computed. A
    duration, so that clocks need not agree."""

    def to_wire(self) -> dict[str, Any]:
        request = dict(self.observation)
        if self.task is not None:
            request[TASK] = self.task
        if self.past is not None:
            request[PAST] = self.past
        extension: dict[str, Any] = {} if self.seed is None else {"seed": int(self.seed)}
        for name in ("previous", "delay", "memory", "deadline_ms"):
            if (value := getattr(self, name)) is not None:
                extension[name] = value
        if self.options:
            extension["options"] = dict(self.options)
        return request | ({EXTENSION: extension} if extension else {})

    @staticmethod
    def from_wire(message: Any) -> Request:
        """ProtocolError says in one sentence what no policy could read."""
        if not isinstance(message, Mapping):
            raise ProtocolError(f"a request is a map of observations, not a {type(message).__name__}")
        if strange := [k for k in message if not isinstance(k, str)]:
            raise ProtocolError(f"observation keys are text, not {brief(strange[0])}")
        extension = message.get(EXTENSION)
        if not isinstance(extension, Mapping):
            extension = {}
        seed, delay, options = extension.get("seed"), extension.get("delay"), extension.get("options", {})
        if seed is not None and (type(seed) is not int or not 0 <= seed < 1 << 63):
            raise ProtocolError(
                f"{EXTENSION}.seed must be a whole number from 0 to 2^63 - 1, not {brief(seed)}"
            )
        if delay is not None and (type(delay) is not int or not 0 <= delay < 1 << 31):
            raise ProtocolError(f"{EXTENSION}.delay must be a whole number of ticks, not {brief(delay)}")
        if not isinstance(options, Mapping) or not all(isinstance(k, str) for k in options):
            raise ProtocolError(f"{EXTENSION}.options must be a map from names, not {brief(options)}")
        if not _is_small(options):
            raise ProtocolError(
                f"{EXTENSION}.options hold up to {MOST_OPTIONS} numbers and short words, no arrays"
            )
        deadline = extension.get("deadline_ms")
        if deadline is not None and not (_is_number(deadline) and 0 < deadline < 1e9):
            raise ProtocolError(
                f"{EXTENSION}.deadline_ms must be milliseconds from now, not {brief(deadline)}"
            )
        task = message.get(TASK, message.get(PROMPT))
        if task is not None and not isinstance(task, str):
            raise ProtocolError(f"{TASK} is the instruction in words, not a {type(task).__name__}")
        observation = {k: v for k, v in message.items() if k not in (PAST, EXTENSION, TASK, PROMPT)}
        past, previous, memory = message.get(PAST), extension.get("previous"), extension.get("memory")
        return Request(observation, seed, past, task, previous, delay, memory, options, deadline)


def _is_small(options: Any) -> bool:
    """Whether they are what one writes by hand: they are shown in sentences, and compared."""
    left, inside = MOST_OPTIONS, [options]
    while inside and left:
        value, left = inside.pop(), left - 1
        if isinstance(value, Mapping):
            inside += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            inside += value
        elif isinstance(value, str) and len(value) <= 200:
            continue
        elif not (value is None or isinstance(value, bool | int | float | np.number)):
            return False
        if len(inside) > left:
            return False
    return not inside


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
