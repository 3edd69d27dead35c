"""GR00T's wire: ZMQ requests with msgpack in them, so that its clients drive one of our policies.

A request is `{"endpoint", "data", "api_token"}`; the endpoints are `ping`, `get_action` (where none is
named), `get_modality_config` and `reset`; `kill` is refused. N1.5 puts the observation into `data`, flat
(`video.front`), and gets the actions alone; N1.6 and later put it under `observation`, nested or flat, and
get `[actions, info]`. Errors are `{"error": sentence}`. Numbers are in the policy's own units: the protocol
has no word for others. Source: NVIDIA/Isaac-GR00T (`gr00t/policy`, `gr00t/eval`).

Legend: B rows of a batch, T ticks, n actions ahead, D elements of a group."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zmq
import zmq.asyncio

from ...datasets.features import STATE
from ..request import EXTENSION, TASK
from .groot_messages import pack, unpack
from .groot_modality import Modality, configs
from .metadata import Metadata
from .protocol import BadRequest, ProtocolError, brief
from .wire import MAX_ERROR_CHARACTERS, MAX_MESSAGE_BYTES, ServerError, Submit, picture_of

log = logging.getLogger("ulna.serving")

MAX_CLIENTS = 256  # then the one that was silent for longest is forgotten
MAX_WAITING = 64  # requests of all clients; further ones wait in their senders
MAX_BATCH = 64
TORCH = b"PK\x03\x04"  # how the pickles of GR00T N1's clients begin


@dataclass
class _Client:
    """What is known of one socket. memory: of each row of its batch. old: it speaks as N1.5 does."""

    memory: list[Any] = field(default_factory=list)
    old: bool = False
    asking: bool = False


class GR00TWire:
    """For one policy at `host:port`, in the clear. Port 0 picks a free one. Whoever reaches it can take the
    machine's memory, token or not: a message of many frames is held without a bound until its last one.

    token: what clients must send as their `api_token`; empty: nothing. ValueError where `modality` leaves
    something of the policy out."""

    def __init__(
        self,
        metadata: Metadata,
        host: str = "127.0.0.1",
        port: int = 5555,
        modality: Modality | None = None,
        token: str = "",
    ) -> None:
        self.metadata, self.host, self.port, self._token = metadata, host, port, token
        self.modality = modality or Modality.of(metadata)
        self._clients: OrderedDict[bytes, _Client] = OrderedDict()

    @property
    def url(self) -> str:
        return f"tcp://{self.host}:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self, submit: Submit, metadata: Callable[[], Metadata]) -> AsyncIterator[None]:
        context = zmq.asyncio.Context()
        server = context.socket(zmq.ROUTER)
        # of a frame: libzmq bounds neither the frames of a message nor their bytes together
        server.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        server.setsockopt(zmq.LINGER, 0)
        server.setsockopt(zmq.RCVHWM, 2)  # of each client
        try:
            address = socket.gethostbyname(self.host)
            server.bind(f"tcp://{address}:{self.port or '*'}")
            self.port = int(server.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        except (zmq.ZMQError, OSError) as error:
            context.destroy(linger=0)
            raise ServerError(
                f"cannot listen for GR00T's clients on {self.host}:{self.port} ({error}): choose another "
                "--groot-port, and a --host of this machine"
            ) from None
        serving = asyncio.create_task(self._serve(server, submit))
        try:
            yield
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
            context.destroy(linger=0)

    async def _serve(self, server: Any, submit: Submit) -> None:
        room = asyncio.Semaphore(MAX_WAITING)

        async def answer(envelope: list[bytes], message: bytes) -> None:
            try:
                reply = await self._reply(envelope[0], message, submit)
                await server.send_multipart([*envelope, reply])
            finally:
                room.release()

        async with asyncio.TaskGroup() as tasks:
            while True:
                await room.acquire()
                *envelope, message = await server.recv_multipart()
                tasks.create_task(answer(envelope, message))

    async def _reply(self, peer: bytes, message: bytes, submit: Submit) -> bytes:
        """Never raises: a bad message costs its sender one sentence."""
        others = False
        if message.startswith(TORCH):
            log.warning(
                "a client of GR00T N1 sends pickles, which are not read: use the client of N1.5 or later"
            )
            return b"ERROR"
        try:
            request, others = unpack(message)
            return pack(await self._endpoint(peer, request, submit), others)
        except (ProtocolError, BadRequest) as error:
            sentence = str(error)
        except Exception:
            log.exception("the policy failed")
            sentence = "the policy failed on this observation; the server's log says why"
        return pack({"error": sentence[:MAX_ERROR_CHARACTERS]}, others)

    async def _endpoint(self, peer: bytes, request: Any, submit: Submit) -> Any:
        if not isinstance(request, dict):
            raise ProtocolError(f"a request is a map, not a {type(request).__name__}")
        token = request.get("api_token", "")
        if self._token and not hmac.compare_digest(str(token).encode(), self._token.encode()):
            raise BadRequest("Unauthorized: Invalid API token")
        endpoint, data = request.get("endpoint", "get_action"), request.get("data") or {}
        client = self._client(peer)
        if endpoint == "ping":
            return {"status": "ok", "message": "Server is running"}
        if endpoint == "get_modality_config":
            return self._configs(client.old)
        if endpoint == "reset":
            client.memory = []
            return {}
        if endpoint == "kill":
            raise BadRequest("this server is not ended from afar: it may serve others")
        if endpoint != "get_action":
            raise ProtocolError(
                f"there is no endpoint {brief(endpoint)}: get_action, get_modality_config, reset, ping"
            )
        if not isinstance(data, dict):
            raise ProtocolError(f"the data of get_action are a map, not a {type(data).__name__}")
        if client.asking:
            raise BadRequest("ask one question at a time")
        client.asking = True
        try:
            return await self._actions(peer, client, data, submit)
        finally:
            client.asking = False

    def _client(self, peer: bytes) -> _Client:
        client = self._clients.setdefault(peer, _Client())
        self._clients.move_to_end(peer)
        while len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)
        return client

    def _configs(self, old: bool) -> dict[str, Any]:
        return {
            name: {"__ModalityConfig_class__": True, "as_json": json.dumps(config) if old else config}
            for name, config in configs(self.modality, self.metadata).items()
        }

    async def _actions(self, peer: bytes, client: _Client, data: dict[str, Any], submit: Submit) -> Any:
        client.old = "observation" not in data
        observation = data if client.old else data["observation"]
        if not isinstance(observation, dict):
            raise ProtocolError(f"an observation is a map, not a {type(observation).__name__}")
        nested = any(isinstance(observation.get(k), dict) for k in ("video", "state", "language"))
        batched, rows = self._rows(_flat(observation))
        if len(client.memory) != len(rows):
            client.memory = [None] * len(rows)
        for row, memory in zip(rows, client.memory, strict=True):
            if memory is not None:
                row[EXTENSION] = {"memory": memory}
        sessions = (f"gr00t {peer.hex()} {i}" for i in range(len(rows)))
        replies = await asyncio.gather(*(submit(s, row) for s, row in zip(sessions, rows, strict=True)))
        client.memory = [r.get("memory") for r in replies]
        chunk_BnA = np.stack([np.asarray(r["actions"], np.float32) for r in replies])
        prefix = "" if nested else "action."
        actions = {
            prefix + group: np.ascontiguousarray(chunk_BnA[:, :, list(indices)])
            for group, indices in self.modality.action.items()
        }
        if not batched:
            actions = {k: v[0] for k, v in actions.items()}
        return actions if client.old else [actions, {"checkpoint": replies[0]["checkpoint"]}]

    def _rows(self, flat: Mapping[str, Any]) -> tuple[bool, list[dict[str, Any]]]:
        """(whether the observation is a batch, a request for each of its rows)."""
        arrays: dict[str, np.ndarray] = {}
        for kind, names, rank in (("video", self.modality.video, 4), ("state", self.modality.state, 2)):
            for name in names:
                value = flat.get(f"{kind}.{name}")
                if not isinstance(value, np.ndarray) or value.ndim not in (rank, rank + 1):
                    got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else "none"
                    shape = "(B, T, H, W, 3)" if kind == "video" else "(B, T, D)"
                    raise BadRequest(
                        f"the policy wants {kind}.{name} of the shape {shape}, and got {got}: "
                        "get_modality_config tells the names"
                    )
                arrays[f"{kind}.{name}"] = value if value.ndim == rank + 1 else value[None]
        batched = any(flat[k] is v for k, v in arrays.items())
        sizes = {len(v) for v in arrays.values()}
        if len(sizes) != 1 or not 1 <= (b := sizes.pop()) <= MAX_BATCH:
            raise BadRequest(f"a batch is of 1 to {MAX_BATCH} rows, and all of its arrays are of as many")
        tasks = _tasks(flat, b)
        return batched, [self._row({k: v[i] for k, v in arrays.items()}, tasks[i]) for i in range(b)]

    def _row(self, arrays: Mapping[str, np.ndarray], task: str) -> dict[str, Any]:
        features, request = self.metadata.features, dict[str, Any]()
        for name, key in self.modality.video.items():
            frames = self._ticks(f"video.{name}", arrays[f"video.{name}"])
            request[key] = np.stack([picture_of(f"video.{name}", f, features[key]) for f in frames])
        if STATE in features:
            width = features[STATE].shape[0]
            parts = {g: self._ticks(f"state.{g}", arrays[f"state.{g}"]) for g in self.modality.state}
            state_TD = np.empty((self.metadata.n_obs_steps, width), np.float64)
            for group, indices in self.modality.state.items():
                part = parts[group]
                if part.shape[1] != len(indices) or part.dtype.kind not in "fiu":
                    raise BadRequest(
                        f"state.{group} is {part.dtype} of {part.shape[1]} elements: the policy wants "
                        f"{len(indices)} numbers"
                    )
                state_TD[:, list(indices)] = part
            request[STATE] = state_TD
        return {**request, TASK: task}

    def _ticks(self, key: str, rows: np.ndarray) -> np.ndarray:
        """The newest `n_obs_steps` of what was sent; one stands for all."""
        n = self.metadata.n_obs_steps
        if len(rows) == 1:
            return np.repeat(rows, n, 0)
        if len(rows) < n:
            raise BadRequest(
                f"{key} is of {len(rows)} ticks: the policy wants {n}, or one that stands for all"
            )
        return rows[-n:]


def _flat(observation: Mapping[str, Any]) -> dict[str, Any]:
    """`{"video": {"front": …}}` as `{"video.front": …}`; language keys keep their names."""
    flat = {}
    for key, value in observation.items():
        if not isinstance(key, str):
            raise ProtocolError(f"observation keys are text, not {brief(key)}")
        if key in ("video", "state") and isinstance(value, dict):
            flat |= {f"{key}.{name}": v for name, v in value.items()}
        elif key == "language" and isinstance(value, dict):
            flat |= {str(name): v for name, v in value.items()}
        else:
            flat[key] = value
    return flat


def _tasks(flat: Mapping[str, Any], b: int) -> list[str]:
    """The instruction of each row: of the first key that is one, as text, or as lists of it."""
    value: Any = next((v for k, v in flat.items() if k == TASK or k.startswith("annotation.")), "")
    while isinstance(value, list | tuple | np.ndarray) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return [str(value)] * b
    rows = list(value) if isinstance(value, list | tuple | np.ndarray) else []
    rows = [v[0] if isinstance(v, list | tuple) and v else v for v in rows]
    if len(rows) != b or not all(isinstance(v, str) for v in rows):
        raise BadRequest("the instruction is text, or one for each row of the batch")
    return [str(v) for v in rows]
