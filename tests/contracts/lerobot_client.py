"""What LeRobot's async client sends, without LeRobot, which takes many seconds to import. That the stock
client sends the same is held by `test_the_stock_client`, which runs it."""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import grpc
import numpy as np

from ulna.policies.serving.pickled import MODULE


class RemotePolicyConfig:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class TimedObservation(RemotePolicyConfig): ...


def as_lerobots(value: Any, protocol: int = 4) -> bytes:
    """The pickle of `value` as if the two classes above were LeRobot's."""
    ours, theirs = (b"\x8c" + bytes([len(m)]) + m.encode() for m in (__name__, MODULE))
    return pickle.dumps(value, protocol).replace(ours, theirs)


class Loader(pickle.Unpickler):
    """Reads the replies as the client does; actions become (timestamp, timestep, numbers)."""

    def find_class(self, module: str, name: str) -> Any:
        known = {(MODULE, "TimedAction"): lambda *fields: fields, ("torch", "tensor"): np.float32}
        return known[module, name]


class Client:
    """One connection, as `RobotClient` has one."""

    def __init__(self, address: str) -> None:
        # else all connections of one process are one
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def call(self, name: str, data: bytes = b"") -> bytes:
        return self.channel.unary_unary(f"/transport.AsyncInference/{name}")(data, timeout=20)

    def instruct(
        self, joints: Sequence[str], cameras: Mapping[str, tuple[int, ...]] | None = None, **more: Any
    ) -> None:
        features: dict[str, Any] = {
            f"observation.images.{k}": {
                "dtype": "image",
                "shape": v,
                "names": ["height", "width", "channels"],
            }
            for k, v in (cameras or {}).items()
        }
        features["observation.state"] = {"dtype": "float32", "shape": (len(joints),), "names": list(joints)}
        config = {
            "policy_type": "act",
            "pretrained_name_or_path": "who/what",
            "lerobot_features": features,
            "actions_per_chunk": 50,
            "device": "cpu",
            "rename_map": {},
            **more,
        }
        self.call("Ready")
        self.call("SendPolicyInstructions", field(1, as_lerobots(RemotePolicyConfig(**config))))

    def observe(
        self, observation: Any, timestep: int = 0, at_s: float | None = None, must_go: bool = False
    ) -> None:
        at_s = time.time() if at_s is None else at_s
        said = {"timestamp": at_s, "timestep": timestep, "observation": observation, "must_go": must_go}
        self.send(as_lerobots(TimedObservation(**said)))

    def send(self, data: bytes, size: int = 2 << 20) -> None:
        """In pieces of up to `size` bytes, as the client cuts them."""

        def pieces() -> Iterator[bytes]:
            for at in range(0, len(data), size):
                state = 3 if at + size >= len(data) else 1 if at == 0 else 2
                yield bytes([0x08, state]) + field(2, data[at : at + size])

        self.channel.stream_unary("/transport.AsyncInference/SendObservations")(pieces(), timeout=20)

    def actions(self) -> list[tuple[float, int, np.ndarray]]:
        """[] where the server has nothing."""
        message = self.call("GetActions")
        if not message:
            return []
        at = 1
        while message[at] >= 0x80:
            at += 1
        return Loader(io.BytesIO(message[at + 1 :])).load()


def field(number: int, data: bytes) -> bytes:
    """A protobuf field of bytes."""
    length, size = b"", len(data)
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data
