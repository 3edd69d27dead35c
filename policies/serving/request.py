"""How a policy is asked, in this process or over the wire: a flat map of observations, as openpi's clients
send it, answered by a map with `actions`. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ...datasets.features import PAST
from .metadata import Metadata
from .protocol import ProtocolError

EXTENSION = "_rt"  # key of the map in a request that openpi's servers do not know; it holds `seed`


class ServedPolicy(Protocol):
    """A policy that answers requests: a checkpoint in this process, or a server's client."""

    @property
    def metadata(self) -> Metadata: ...

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request (see `Request.to_wire`): `actions` `(n, A)` float, the first for now. Ulna's
        policies add `nfe`, the network evaluations spent, and `checkpoint`, the content hash.

        Raises BadRequest where the request does not fit the policy; a client raises PolicyServerError."""
        ...


@dataclass(frozen=True)
class Request:
    """One question to a policy.

    observation: arrays by feature, each `(n_obs_steps, *shape)`, oldest first, or one observation `(*shape)`
    that stands for all of them; and `task`, the instruction in words. seed: of the draw, 0 to 2^63 - 1; None
    draws at random. past: `(n_past_actions, A)` float, the actions sent before now, oldest first."""

    observation: Mapping[str, Any]
    seed: int | None = None
    past: Any = None

    def to_wire(self) -> dict[str, Any]:
        request = dict(self.observation)
        if self.past is not None:
            request[PAST] = self.past
        if self.seed is not None:
            request[EXTENSION] = {"seed": int(self.seed)}
        return request

    @staticmethod
    def from_wire(message: Any) -> Request:
        """ProtocolError says in one sentence what no policy could read."""
        if not isinstance(message, Mapping):
            raise ProtocolError(f"a request is a map of observations, not a {type(message).__name__}")
        if strange := [k for k in message if not isinstance(k, str)]:
            raise ProtocolError(f"observation keys are text, not {strange[0]!r}")
        extension = message.get(EXTENSION)
        seed = extension.get("seed") if isinstance(extension, Mapping) else None
        if seed is not None and (type(seed) is not int or not 0 <= seed < 1 << 63):
            raise ProtocolError(f"{EXTENSION}.seed must be a whole number from 0 to 2^63 - 1, not {seed!r}")
        observation = {k: v for k, v in message.items() if k not in (PAST, EXTENSION)}
        return Request(observation, seed, message.get(PAST))
