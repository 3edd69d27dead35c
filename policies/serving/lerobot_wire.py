"""LeRobot's async inference: gRPC `transport.AsyncInference`, so that the stock `RobotClient` of LeRobot 0.6
drives one of our policies. Without lerobot and without torch.

The client says `Ready`, sends its instructions (what its robot observes, how many actions it wants), then
observations in pieces, and asks for actions in a loop. Here every connection is a client of its own, and one
that comes back after the server was started anew goes on. Messages are protobuf of a few fields, read here;
what they carry is pickled, and read without unpickling (`pickled`). Source: lerobot 0.6.1, as it was seen to
behave.

Units: LeRobot's robots measure in degrees or percent of a calibrated range and do not say so. A policy of
such data takes the numbers as they are; for one in radians `elements` says how they become radians.

Legend: n actions ahead, A action dimensions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from ...datasets.features import ACTION, IMAGES, POSITION, STATE, Feature, bare, is_image, units_of
from ...datasets.units import Element
from ..request import EXTENSION, TASK
from .metadata import Metadata
from .pickled import INSTRUCTIONS, OBSERVATION, Instance, pickle_actions, unpickle
from .protocol import BadRequest, ProtocolError, brief
from .wire import MAX_ERROR_CHARACTERS, MAX_MESSAGE_BYTES, ServerError, Submit, picture_of

log = logging.getLogger("ulna.serving")

MAX_PIECE_BYTES = 4 << 20  # the client sends 2 MiB at a time
MAX_RECEIVING_BYTES = 256 << 20  # of all clients together, of observations that are not whole yet
MAX_CLIENTS = 256  # then the one that was silent for longest is forgotten
RECEIVE_S = 10.0  # for one observation
WAIT_S = 2.0  # for an observation, before the client is told that there is nothing
THEIRS = ("deg", "%")  # what LeRobot's robots measure joints in


@dataclass
class _Client:
    """What is known of one connection. most: actions that it wants of a chunk. seen: its newest observations
    as (timestep, values)."""

    seen: deque[tuple[int, dict[str, Any]]]
    most: int = 1 << 16
    renamed: dict[str, str] = field(default_factory=dict)
    waiting: _Observation | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    memory: Any = None


@dataclass(frozen=True)
class _Observation:
    """values: by feature, as the policy wants them. order: the names of the client's joints."""

    values: dict[str, Any]
    order: tuple[str, ...]
    task: str
    timestep: int
    at_s: float


class LeRobotWire:
    """For one policy at `host:port`, in the clear and without a key, as the stock client speaks. Port 0 picks
    a free one.

    elements: of `observation.state` and `action`, how each number of LeRobot's robot becomes the policy's
    (`value · scale + offset`); none: as they are. ValueError where the policy's units are not LeRobot's and
    nothing says how they become so."""

    def __init__(
        self,
        metadata: Metadata,
        host: str = "127.0.0.1",
        port: int = 8080,
        elements: Mapping[str, tuple[Element, ...]] | None = None,
    ) -> None:
        self.metadata, self.host, self.port = metadata, host, port
        self.elements = dict(elements or {})
        for key, feature in metadata.features.items():
            if not is_image(key) and len(feature.names) != feature.shape[0]:
                raise ValueError(
                    f"the policy's {key} has no names, by which the joints of LeRobot's robots are found: "
                    "state them with `ulna data units CHECKPOINT --names …`"
                )
            if key in (STATE, ACTION) and key not in self.elements:
                _require_their_units(key, feature)
        if goals := sorted(set(metadata.conditions) - {TASK}):
            raise ValueError(
                f"the policy must be told {goals[0]}, for which LeRobot's clients have no word: serve it to "
                "Ulna's own"
            )
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self._receiving = 0

    @property
    def url(self) -> str:
        return f"{self.host}:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self, submit: Submit, metadata: Callable[[], Metadata]) -> AsyncIterator[None]:
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_PIECE_BYTES),
                ("grpc.so_reuseport", 0),  # else a second server would get half of the clients
            ],
            maximum_concurrent_rpcs=4 * MAX_CLIENTS,
        )

        async def act(message: bytes, peer: str) -> bytes:
            return await self._act(peer, submit)

        async def instruct(message: bytes, peer: str) -> bytes:
            return await self._instruct(message, peer, metadata())

        handlers = {
            "Ready": grpc.unary_unary_rpc_method_handler(_told(self._ready)),
            "SendPolicyInstructions": grpc.unary_unary_rpc_method_handler(_told(instruct)),
            "SendObservations": grpc.stream_unary_rpc_method_handler(_told(self._observe)),
            "GetActions": grpc.unary_unary_rpc_method_handler(_told(act)),
        }
        service = grpc.method_handlers_generic_handler("transport.AsyncInference", handlers)
        server.add_generic_rpc_handlers((service,))
        try:
            self.port = server.add_insecure_port(self.url)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise ServerError(
                f"cannot listen for LeRobot's clients on {self.host}: is a server running there already? "
                "Choose another --lerobot-port"
            )
        await server.start()
        try:
            yield
        finally:
            await server.stop(grace=None)

    def _client(self, peer: str) -> _Client:
        if peer not in self._clients:
            self._clients[peer] = _Client(deque(maxlen=max(self.metadata.n_obs_steps, 1)))
            while len(self._clients) > MAX_CLIENTS:
                self._clients.popitem(last=False)
        self._clients.move_to_end(peer)
        return self._clients[peer]

    async def _ready(self, message: bytes, peer: str) -> bytes:
        self._clients.pop(peer, None)
        self._client(peer)
        return b""

    async def _instruct(self, message: bytes, peer: str, now: Metadata) -> bytes:
        """Fit the client to the policy before its robot moves. now: of the checkpoint that answers."""
        said = unpickle(_fields(message).get(1, b""))
        if not isinstance(said, Instance) or said.name != INSTRUCTIONS:
            raise ProtocolError("policy instructions are a RemotePolicyConfig")
        client, f = self._client(peer), said.fields
        most, renamed, offers = (f.get(k) for k in ("actions_per_chunk", "rename_map", "lerobot_features"))
        name = f.get("pretrained_name_or_path")
        if type(most) is not int or most < 1:
            raise ProtocolError(f"actions_per_chunk is a whole number of at least 1, not {brief(most)}")
        if type(name) is not str:
            raise ProtocolError(f"pretrained_name_or_path is text, not {brief(name)}")
        if not isinstance(renamed or {}, dict) or not all(type(v) is str for v in (renamed or {}).values()):
            raise ProtocolError("rename_map goes from names to names")
        _require_checkpoint(name, now.checkpoint)
        client.most, client.renamed = most, dict(renamed or {})
        if isinstance(offers, dict):
            self._require_offered(offers, client.renamed)
        log.info(
            "a LeRobot client %s, which asks for %.60s, gets %s %s",
            *(peer, name, now.recipe, now.checkpoint[:8]),
        )
        return b""

    def _require_offered(self, offers: Mapping[str, Any], renamed: Mapping[str, str]) -> None:
        state = offers.get(STATE)
        names = state.get("names") if isinstance(state, dict) else None
        # each once: a short message may name a long text thousands of times
        joints = list(dict.fromkeys(n for n in names or () if type(n) is str))
        cameras = {renamed.get(k, k): v for k, v in offers.items() if k.startswith(IMAGES)}
        for key in self.metadata.features:
            if is_image(key):
                if key not in cameras:
                    raise BadRequest(
                        f"the robot has no camera {key.removeprefix(IMAGES)}, which the policy sees: "
                        f"its cameras are {', '.join(k.removeprefix(IMAGES) for k in cameras) or 'none'}"
                    )
            else:
                self._positions(key, joints)

    def _positions(self, key: str, joints: list[str]) -> list[int]:
        """Where the elements of the feature `key` stand among the client's joints."""
        feature = self.metadata.features[key]
        where = {_plain(name): i for i, name in enumerate(joints)}
        if missing := [n for n in bare(feature.names) if _plain(n) not in where]:
            raise BadRequest(
                f"the robot has no {missing[0]}, which is in the policy's {key}: its joints are "
                f"{', '.join(joints)[:300] or 'none'}"
            )
        return [where[_plain(n)] for n in bare(feature.names)]

    async def _observe(self, pieces: AsyncIterator[bytes], peer: str) -> bytes:
        """One observation, in pieces; it takes the place of one that still waits."""
        held, parts = 0, []
        try:
            async with asyncio.timeout(RECEIVE_S):
                async for piece in pieces:
                    values = _fields(piece)
                    part, state = values.get(2, b""), values.get(1, 0)
                    if not isinstance(part, bytes) or state not in (1, 2, 3):
                        raise ProtocolError("a piece of an observation has no state, or no bytes")
                    held, self._receiving = held + len(part), self._receiving + len(part)
                    if held > MAX_MESSAGE_BYTES:
                        raise ProtocolError(f"an observation may have {MAX_MESSAGE_BYTES >> 20} MiB")
                    if self._receiving > MAX_RECEIVING_BYTES:
                        raise BadRequest("the server receives too much at once: send smaller images")
                    parts.append(part)
                    if state == 3:
                        break
            message = b"".join(parts)
            client = self._client(peer)
            observation = await asyncio.to_thread(self._read, message, client.renamed)
        except TimeoutError:
            raise ProtocolError(f"an observation took longer than {RECEIVE_S:g} s to arrive") from None
        finally:
            self._receiving -= held
        while client.seen and client.seen[-1][0] >= observation.timestep:
            client.seen.pop()
        client.seen.append((observation.timestep, observation.values))
        client.waiting = observation
        client.arrived.set()
        return b""

    def _read(self, message: bytes, renamed: Mapping[str, str]) -> _Observation:
        said = unpickle(message)
        if not isinstance(said, Instance) or said.name != OBSERVATION:
            raise ProtocolError("an observation is a TimedObservation")
        raw, timestep, at_s = (said.fields.get(k) for k in ("observation", "timestep", "timestamp"))
        if type(raw) is not dict:
            raise ProtocolError("an observation is a map from names")
        if type(timestep) is not int or not 0 <= timestep < 1 << 40:
            raise ProtocolError(f"an observation's timestep is a whole number, not {brief(timestep)}")
        if not isinstance(at_s, float) or not math.isfinite(at_s):
            raise ProtocolError(f"an observation's timestamp is a finite number, not {brief(at_s)}")
        numbers = {k: v for k, v in raw.items() if _is_number(v)}
        order = tuple(numbers)
        values = {}
        for key, feature in self.metadata.features.items():
            if key == ACTION:
                self._positions(key, list(order))
            elif is_image(key):
                cameras = {renamed.get(IMAGES + k, IMAGES + k): k for k in raw}
                if key not in cameras:
                    raise BadRequest(
                        f"the observation has no image {key.removeprefix(IMAGES)}, which the policy sees"
                    )
                values[key] = picture_of(key, raw[cameras[key]], feature)
            else:
                values[key] = self._vector(key, feature, numbers)
        task = raw.get("task", "")
        if type(task) is not str:
            raise ProtocolError(f"the task is the instruction in words, not a {type(task).__name__}")
        return _Observation(values, order, task, timestep, at_s)

    def _vector(self, key: str, feature: Feature, numbers: Mapping[str, Any]) -> np.ndarray:
        theirs = list(numbers)
        row = np.array([numbers[theirs[i]] for i in self._positions(key, theirs)], np.float64)
        for i, e in enumerate(self.elements.get(key, ())):
            row[i] = row[i] * e.scale + e.offset
        return row.astype(feature.dtype)

    async def _act(self, peer: str, submit: Submit) -> bytes:
        """The next chunk, or nothing where no observation comes."""
        client = self._client(peer)
        try:
            async with asyncio.timeout(WAIT_S):
                await client.arrived.wait()
        except TimeoutError:
            return b""
        observation, client.waiting = client.waiting, None
        client.arrived.clear()
        if observation is None:  # a second question of the same client was faster
            return b""
        request: dict[str, Any] = {**self._history(client, observation), TASK: observation.task}
        if client.memory is not None:
            request[EXTENSION] = {"memory": client.memory}
        reply = await submit(f"lerobot {peer}", request)
        client.memory = reply.get("memory")
        # what came meanwhile was sent because the client's queue ran low, and this reply fills it
        client.waiting = None
        client.arrived.clear()
        return _message(1, self._actions(reply, observation, client.most))

    def _history(self, client: _Client, now: _Observation) -> dict[str, Any]:
        """The request's observations. A LeRobot client sends one at every tick only while it wants actions:
        where earlier ticks are not known, the world stood still."""
        n, seen = self.metadata.n_obs_steps, dict(client.seen)
        steps = [now.values]
        for timestep in range(now.timestep - 1, now.timestep - n, -1):
            steps.append(seen.get(timestep, steps[-1]))
        return {k: np.stack([step[k] for step in reversed(steps)]) for k in now.values}

    def _actions(self, reply: Mapping[str, Any], to: _Observation, most: int) -> bytes:
        """The actions in the order and units of the client's joints."""
        chunk_nA = np.asarray(reply["actions"], np.float64)
        chunk_nA = chunk_nA[: min(most, int(reply.get("execute") or most))]
        for i, e in enumerate(self.elements.get(ACTION, ())):
            chunk_nA[:, i] = (chunk_nA[:, i] - e.offset) / e.scale
        chunk_nA = chunk_nA[:, np.argsort(self._positions(ACTION, list(to.order)))]
        period_s = 1 / (self.metadata.control_hz or 30.0)
        return pickle_actions(chunk_nA.astype(np.float32).tolist(), to.timestep, to.at_s, period_s)


def _require_checkpoint(name: str, checkpoint: str) -> None:
    """What a client calls the policy is its own affair, unless it is a content hash."""
    named = name.rpartition("/")[2].lower()
    if re.fullmatch("[0-9a-f]{8,64}", named) and not checkpoint.startswith(named):
        raise BadRequest(f"the client wants the checkpoint {named[:8]}, and this server has {checkpoint[:8]}")


def _require_their_units(key: str, feature: Feature) -> None:
    units = units_of(feature)
    if units and all(u in THEIRS for u in units):
        return
    of = ", ".join(dict.fromkeys(units)) if units else "no stated unit"
    raise ValueError(
        f"the policy's {key} is of {of}, and LeRobot's robots send degrees or percent: say what the client's "
        "robot sends with --lerobot-units degrees|percent|radians, and for percent its calibration with "
        "--lerobot-calibration FILE"
    )


def _plain(name: str) -> str:
    """LeRobot calls a joint `left_elbow.pos` that is `left.elbow` here."""
    return name.removesuffix(POSITION).replace(".", "_")


def _is_number(value: Any) -> bool:
    kind = isinstance(value, int | float | np.integer | np.floating)
    return kind and not isinstance(value, bool) and math.isfinite(value)


def _told(handler: Callable[[Any, str], Awaitable[bytes]]) -> Callable[..., Awaitable[bytes]]:
    """`handler(message, peer)` as gRPC calls it; the client is told in one sentence what it did wrong."""

    async def call(message: Any, context: grpc.aio.ServicerContext) -> bytes:
        try:
            return await handler(message, context.peer())
        except (ProtocolError, BadRequest) as error:
            code, sentence = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except Exception:
            log.exception("the policy failed")
            code = grpc.StatusCode.INTERNAL
            sentence = "the policy failed on this observation; the server's log says why"
        await context.abort(code, sentence[:MAX_ERROR_CHARACTERS])
        raise AssertionError("abort raises")

    return call


def _fields(message: bytes) -> dict[int, Any]:
    """The fields of a protobuf message by their numbers: whole numbers and bytes. ProtocolError."""
    fields: dict[int, Any] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 64, 7):
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ProtocolError("a message holds a number of more than 64 bits")

    try:
        while at < len(message):
            tag = number()
            value: Any = number()
            if tag & 7 == 2:  # bytes, of that length
                if at + value > len(message):
                    raise IndexError
                at, value = at + value, message[at : at + value]
            elif tag & 7:
                raise ProtocolError("a message holds a field that no LeRobot client sends")
            fields[tag >> 3] = value
    except IndexError:
        raise ProtocolError("a message ends too early") from None
    return fields


def _message(number: int, data: bytes) -> bytes:
    """A protobuf message of one field of bytes."""
    length, size = b"", len(data)
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data
