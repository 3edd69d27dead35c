"""GR00T's wire over real sockets, in the words of N1.5, of N1.6 and of msgpack-numpy's clients."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import msgpack
import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ulna.datasets.features import ACTION, ENVIRONMENT, IMAGES, STATE, Feature
from ulna.policies.request import Request
from ulna.policies.serving.groot_messages import pack, unpack
from ulna.policies.serving.groot_modality import Modality
from ulna.policies.serving.groot_wire import GR00TWire
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.models import Models
from ulna.policies.serving.protocol import ProtocolError
from ulna.policies.serving.server import PolicyServer, ServerError

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
VECTOR = Feature((6,), "float32", JOINTS, ("deg",) * 6)
CAMERA = IMAGES + "front"
METADATA = Metadata(
    "climb",
    {STATE: VECTOR, CAMERA: Feature((24, 32, 3), "uint8"), ACTION: VECTOR},
    n_obs_steps=2,
    horizon=16,
    n_action_steps=8,
    control_hz=20.0,
    checkpoint="ab" * 32,
)
ARM = np.arange(5, dtype=np.float32)
HAND = np.array([50], np.float32)
IMAGE = np.full((48, 64, 3), 100, np.uint8)


class Climb:
    """A policy whose action i is the state, plus i."""

    def __init__(self, metadata: Metadata = METADATA) -> None:
        self.metadata, self.requests, self.more = metadata, list[Request](), dict[str, Any]()
        self.go = threading.Event()
        self.go.set()

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.requests.append(Request.from_wire(request))
        self.go.wait(20)
        if self.more.get("fail"):
            raise RuntimeError("a secret of the server")
        ahead = np.arange(self.metadata.n_actions_ahead)[:, None]
        return {"actions": (request[STATE][-1] + ahead).astype(np.float32), **self.more}


class Client:
    """A REQ socket, as GR00T's PolicyClient has one."""

    def __init__(self, address: str, others: bool = False) -> None:
        self.context, self.others = zmq.Context(), others
        self.socket = self.context.socket(zmq.REQ)
        self.socket.setsockopt(zmq.RCVTIMEO, 20_000)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(linger=0)

    def send(self, data: bytes) -> Any:
        self.socket.send(data)
        return unpack(self.socket.recv())[0]

    def call(self, endpoint: str | None = "get_action", data: Any = None, **more: Any) -> Any:
        request = more if endpoint is None else {"endpoint": endpoint, **more}
        return self.send(pack(request if data is None else {**request, "data": data}, self.others))


@pytest.fixture
def policy() -> Climb:
    return Climb()


@pytest.fixture
def address(policy: Climb) -> Iterator[str]:
    wire = GR00TWire(policy.metadata, port=0)
    with PolicyServer(policy, port=0, wires=[wire]).background():
        yield wire.url


def nested(b: int = 1, t: int = 1) -> dict[str, Any]:
    """As N1.6 and later have it: (B, T, …)."""

    def tiled(value: np.ndarray) -> np.ndarray:
        return np.tile(value, (b, t, *(1,) * value.ndim))

    return {
        "video": {"front": tiled(IMAGE)},
        "state": {"single_arm": tiled(ARM), "gripper": tiled(HAND)},
        "language": {"annotation.human.task_description": [["lift"]] * b},
    }


@pytest.mark.parametrize("others", [False, True], ids=["npy", "msgpack-numpy"])
def test_an_observation_of_today_gets_its_actions(address: str, policy: Climb, others: bool) -> None:
    with Client(address, others) as client:
        action, info = client.call(data={"observation": nested(), "options": None})
    assert info == {"checkpoint": "ab" * 32}
    assert {k: (v.shape, v.dtype) for k, v in action.items()} == {
        "single_arm": ((1, 16, 5), np.float32),
        "gripper": ((1, 16, 1), np.float32),
    }
    np.testing.assert_array_equal(action["single_arm"][0, 3], ARM + 3)
    np.testing.assert_array_equal(action["gripper"][0, :, 0], 50 + np.arange(16))
    (request,) = policy.requests
    assert request.task == "lift"
    assert request.observation[STATE].shape == (2, 6), "one tick stands for all"
    assert request.observation[CAMERA].shape == (2, 24, 32, 3)


def test_the_reply_names_the_checkpoint_that_took_anothers_place(policy: Climb) -> None:
    models = Models({"policy": policy}, lambda folder: Climb(replace(METADATA, checkpoint="cd" * 32)))
    wire = GR00TWire(METADATA, port=0)
    with PolicyServer(models, port=0, wires=[wire]).background(), Client(wire.url) as client:
        models.load("policy", "new")
        assert client.call(data={"observation": nested()})[1] == {"checkpoint": "cd" * 32}


def test_the_reply_is_in_the_senders_bytes(address: str) -> None:
    with Client(address) as client:
        for others in (False, True):
            client.socket.send(pack({"data": {"observation": nested()}}, others))
            assert unpack(client.socket.recv())[1] is others


def test_an_observation_of_n1_5_gets_the_actions_alone(address: str, policy: Climb) -> None:
    flat = {
        "video.front": IMAGE[None],
        "state.single_arm": ARM[None].astype(np.float64),
        "state.gripper": HAND[None].astype(np.float64),
        "annotation.human.action.task_description": ["lift"],
    }
    with Client(address) as client:
        config = client.call("get_modality_config")
        assert isinstance(config["state"]["as_json"], dict)
        action = client.call(None, flat)
        assert {k: v.shape for k, v in action.items()} == {
            "action.single_arm": (16, 5),
            "action.gripper": (16, 1),
        }
        old = client.call("get_modality_config")
        assert json.loads(old["state"]["as_json"])["modality_keys"] == ["single_arm", "gripper"]
    assert policy.requests[0].task == "lift"


def test_a_batch_is_answered_row_by_row(address: str, policy: Climb) -> None:
    observation = {
        "video.front": np.tile(IMAGE, (3, 2, 1, 1, 1)),
        "state.single_arm": np.arange(30, dtype=np.float32).reshape(3, 2, 5),
        "state.gripper": np.zeros((3, 2, 1), np.float32),
        "annotation.human.coarse_action": ["a", "b", "c"],
    }
    with Client(address) as client:
        action, _ = client.call(data={"observation": observation, "options": {}})
    np.testing.assert_array_equal(
        action["action.single_arm"][:, 0], [range(5, 10), range(15, 20), range(25, 30)]
    )
    assert sorted(str(r.task) for r in policy.requests) == ["a", "b", "c"]
    first = next(r for r in policy.requests if r.task == "a")
    np.testing.assert_array_equal(first.observation[STATE][:, 0], [0, 5])


def test_longer_histories_are_cut_and_shorter_refused(policy: Climb) -> None:
    policy.metadata = replace(METADATA, n_obs_steps=3)
    wire = GR00TWire(policy.metadata, port=0)
    with PolicyServer(policy, port=0, wires=[wire]).background(), Client(wire.url) as client:
        assert "single_arm" in client.call(data={"observation": nested(t=5)})[0]
        assert policy.requests[0].observation[STATE].shape == (3, 6)
        error = client.call(data={"observation": nested(t=2)})["error"]
        assert "2 ticks: the policy wants 3, or one that stands for all" in error


def test_ping_and_what_the_server_tells_of_itself(address: str) -> None:
    with Client(address) as client:
        assert client.call("ping") == {"status": "ok", "message": "Server is running"}
        told = client.call("get_modality_config")
        assert all(v["__ModalityConfig_class__"] for v in told.values())
        assert {k: v["as_json"] for k, v in told.items()} == {
            "video": {"delta_indices": [-1, 0], "modality_keys": ["front"]},
            "state": {"delta_indices": [-1, 0], "modality_keys": ["single_arm", "gripper"]},
            "action": {"delta_indices": list(range(16)), "modality_keys": ["single_arm", "gripper"]},
            "language": {"delta_indices": [0], "modality_keys": ["annotation.human.task_description"]},
        }
        assert "not ended from afar" in client.call("kill")["error"]
        assert client.call("ping")["status"] == "ok"


def test_memory_lasts_until_reset(address: str, policy: Climb) -> None:
    policy.more = {"memory": {"checkpoint": "x", "values": np.ones(2)}}
    with Client(address) as client, Client(address) as other:
        for _ in range(2):
            client.call(data={"observation": nested()})
        other.call(data={"observation": nested()})
        assert client.call("reset", {"options": None}) == {}
        client.call(data={"observation": nested()})
    assert [r.memory is not None for r in policy.requests] == [False, True, False, False]


def test_a_token_is_asked_of_every_request(policy: Climb) -> None:
    wire = GR00TWire(policy.metadata, port=0, token="open sesame")
    with PolicyServer(policy, port=0, wires=[wire]).background(), Client(wire.url) as client:
        for wrong in ({}, {"api_token": "sesame"}, {"api_token": 7}, {"api_token": None}):
            assert client.call("ping", **wrong) == {"error": "Unauthorized: Invalid API token"}
        assert client.call("ping", api_token="open sesame")["status"] == "ok"


def without(observation: dict[str, Any], kind: str, name: str, value: Any = None) -> dict[str, Any]:
    part = {k: v for k, v in observation[kind].items() if k != name}
    return {**observation, kind: part | ({} if value is None else {name: value})}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            {"observation": without(nested(), "video", "front")},
            "wants video.front of the shape (B, T, H, W, 3)",
        ),
        (
            {"observation": without(nested(), "state", "gripper")},
            "wants state.gripper of the shape (B, T, D)",
        ),
        ({"observation": without(nested(), "state", "gripper", HAND)}, "got float32 (1,)"),
        ({"observation": without(nested(), "state", "gripper", np.zeros((1, 1, 2)))}, "of 2 elements"),
        ({"observation": without(nested(), "state", "gripper", np.array([[["a"]]]))}, "wants 1 numbers"),
        ({"observation": without(nested(), "state", "gripper", np.zeros((2, 1, 1)))}, "as many"),
        ({"observation": without(nested(), "video", "front", IMAGE[None, None, :8])}, "or larger"),
        ({"observation": without(nested(), "video", "front", IMAGE[None, None] / 255)}, "is float64"),
        ({"observation": nested(65)}, "1 to 64 rows"),
        ({"observation": {**nested(2), "language": {"task": ["a", "b", "c"]}}}, "one for each row"),
        ({"observation": {**nested(), "language": {"task": [[3]]}}}, "the instruction is text"),
        ({"observation": [1]}, "an observation is a map"),
        ({"observation": {1: 2}}, "not msgpack"),
        ([1], "the data of get_action are a map"),
        ({}, "wants video.front"),
    ],
)
def test_an_observation_that_does_not_fit_costs_one_sentence(address: str, data: Any, says: str) -> None:
    with Client(address) as client:
        error = client.call(data=data)["error"]
        assert says in error
        assert len(error) < 300
        assert client.call(data={"observation": nested()})[0], "the same connection goes on"


def npy(header: str, data: bytes = b"") -> dict[str, Any]:
    text = header.encode()
    return {
        "__ndarray_class__": True,
        "as_npy": b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data,
    }


numpys = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [1], b"data": bytes(4)}


def one(value: Any) -> bytes:
    return msgpack.packb({"x": value})  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (b"\x92\x01\x02", "a request is a map, not a list"),
        (pack({"endpoint": "shell"}), "no endpoint 'shell'"),
        (pack({"endpoint": [1]}), "no endpoint"),
        (one(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}")), "other bytes"),
        (one(npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", bytes(8))), "not allowed"),
        (one(npy("{'descr': [('a','<f8')], 'fortran_order': False, 'shape': (1,)}", bytes(8))), "allowed"),
        (one(npy("{" * 9000)), "header is broken"),
        (one(npy("__import__('os')")), "header is broken"),
        (one({"__ndarray_class__": True, "as_npy": b"PK\x03\x04"}), "and this is none"),
        (one({"__ndarray_class__": True}), "and this is none"),
        (one({**numpys, b"type": "|O", b"kind": b"O"}), "objects"),
        (one({**numpys, b"type": "|O"}), "not allowed"),
        (one({**numpys, b"type": [["a", "<f4"]], b"kind": b"V"}), "lacks"),
        (one({**numpys, b"type": None}), "lacks"),
        (one({**numpys, b"shape": [1 << 40]}), "other bytes"),
        (one({**numpys, b"shape": [-1]}), "16 whole numbers"),
        (one(msgpack.ExtType(5, b"1234")), "not msgpack"),
        (one(msgpack.Timestamp(1)), "not msgpack"),
        (one([[]] * 70_000), "not msgpack"),
        (one([[0] * 60_000, [0] * 60_000]), "holds more"),
        (one([{}] * 40_000), "holds more"),
    ],
)
def test_malformed_messages_are_answered_and_others_unharmed(address: str, message: bytes, says: str) -> None:
    with Client(address) as client, Client(address) as other:
        error = client.send(message)["error"]
        assert says in error
        assert len(error) < 300
        assert other.call(data={"observation": nested()})[0]
        assert client.call("ping")["status"] == "ok"


def test_a_client_of_n1_is_told_in_its_way(address: str) -> None:
    with Client(address) as client:
        client.socket.send(b"PK\x03\x04 what torch.save writes")
        assert client.socket.recv() == b"ERROR"


def test_a_policy_that_fails_keeps_its_secrets(address: str, policy: Climb) -> None:
    policy.more = {"fail": True}
    with Client(address) as client:
        assert client.call(data={"observation": nested()}) == {
            "error": "the policy failed on this observation; the server's log says why"
        }


def test_one_that_asks_before_it_is_answered_gets_one_sentence(address: str, policy: Climb) -> None:
    """A DEALER need not wait for replies, as a REQ socket must."""
    policy.go.clear()
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.RCVTIMEO, 20_000)
    socket.connect(address)
    for _ in range(2):
        socket.send_multipart([b"", pack({"data": {"observation": nested()}})])
    assert "one question at a time" in unpack(socket.recv_multipart()[-1])[0]["error"]
    with Client(address) as other:
        assert other.call("ping")["status"] == "ok", "others are answered while a policy thinks"
    policy.go.set()
    assert len(unpack(socket.recv_multipart()[-1])[0]) == 2
    context.destroy(linger=0)


def test_a_port_in_use_and_an_address_of_another_machine_are_one_sentence(address: str) -> None:
    port = int(address.rpartition(":")[2])
    for host, at in (("127.0.0.1", port), ("192.0.2.7", 0)):
        with (
            pytest.raises(ServerError, match="another --groot-port"),
            PolicyServer(Climb(), port=0, wires=[GR00TWire(METADATA, host, at)]).background(),
        ):
            pass


arrays = hnp.arrays(
    st.sampled_from(["<f4", "<f8", "|u1", "<i8", "|b1", "<f2"]), hnp.array_shapes(min_dims=1, min_side=0)
)


@given(st.dictionaries(st.text(max_size=9).filter(lambda k: k != "nd"), arrays, max_size=4), st.booleans())
def test_messages_round_trip(message: dict[str, np.ndarray], others: bool) -> None:
    back, said = unpack(pack(message, others))
    assert said == (others and bool(message))
    for key, value in message.items():
        assert back[key].dtype == value.dtype
        np.testing.assert_array_equal(back[key], value)


def test_npy_files_in_columns_are_read() -> None:
    value = np.asfortranarray(np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(unpack(pack({"x": value}))[0]["x"], value)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, value, version=(2, 0))
    back = unpack(msgpack.packb({"x": {"__ndarray_class__": True, "as_npy": buffer.getvalue()}}) or b"")[0][
        "x"
    ]
    np.testing.assert_array_equal(back, value)


@given(st.binary(max_size=200))
def test_any_bytes_either_decode_or_are_refused_in_one_way(data: bytes) -> None:
    try:
        unpack(data)
    except ProtocolError:
        return


def named(*names: str) -> Metadata:
    feature = Feature((len(names),), "float32", names)
    return Metadata(features={STATE: feature, ACTION: feature})


def test_groups_by_the_names_of_the_joints() -> None:
    several = named("left.a", "left.gripper", "right.a", "right.b", "right.gripper")
    assert Modality.of(several).state == {
        "left_arm": (0,),
        "left_gripper": (1,),
        "right_arm": (2, 3),
        "right_gripper": (4,),
    }
    imported = named("left_arm.0", "left_arm.1", "gripper", "waist.0")
    assert Modality.of(imported).action == {"left_arm": (0, 1), "gripper": (2,), "waist": (3,)}
    unnamed = Metadata(features={ACTION: Feature((3,), "float32"), STATE: Feature((2,), "float32")})
    assert Modality.of(unnamed).state == {"single_arm": (0, 1)}


def test_groups_by_a_file(tmp_path: Path, policy: Climb) -> None:
    path = tmp_path / "modality.json"
    parts = {"arm": {"start": 0, "end": 5}, "hand": {"start": 5, "end": 6}}
    said = {
        "state": parts,
        "action": parts,
        "video": {"webcam": {"original_key": CAMERA}, "top": {"original_key": IMAGES + "top"}},
        "annotation": {"human.validity": {}, "human.action.task_description": {}},
    }
    path.write_text(json.dumps(said))
    modality = Modality.of(METADATA, path)
    assert modality.video == {"webcam": CAMERA}
    assert modality.language == "annotation.human.action.task_description"
    wire = GR00TWire(METADATA, port=0, modality=modality)
    observation = {
        "video": {"webcam": IMAGE[None, None]},
        "state": {"arm": ARM[None, None], "hand": HAND[None, None]},
    }
    with PolicyServer(policy, port=0, wires=[wire]).background(), Client(wire.url) as client:
        assert set(client.call(data={"observation": observation})[0]) == {"arm", "hand"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"state": {"arm": {"start": 0, "end": 5}}}, "not each of the policy's 6 elements once"),
        ({"action": {"arm": {"start": 0, "end": 6}, "b": {"start": 5, "end": 6}}}, "elements once"),
        ({"video": {}}, "no video is observation.images.front"),
        ({"state": 3}, "cannot be read as GR00T's modality.json"),
        ({"state": {"arm": {"start": 0}}}, "cannot be read"),
    ],
)
def test_a_file_that_leaves_something_out_is_one_sentence(tmp_path: Path, change: Any, says: str) -> None:
    whole = {"arm": {"start": 0, "end": 6}}
    said = {"state": whole, "action": whole, "video": {"front": {"original_key": CAMERA}}, **change}
    path = tmp_path / "modality.json"
    path.write_text(json.dumps(said))
    with pytest.raises(ValueError, match=says):
        Modality.of(METADATA, path)
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        Modality.of(METADATA, path)
    with pytest.raises(ValueError, match="there is no file"):
        Modality.of(METADATA, tmp_path / "none.json")


def test_what_the_wire_has_no_word_for_is_not_served() -> None:
    more = replace(METADATA, features={**METADATA.features, ENVIRONMENT: Feature((2,), "float32")})
    with pytest.raises(ValueError, match=r"wants observation\.environment_state, for which GR00T's wire"):
        GR00TWire(more)
    goal = replace(METADATA, conditions={f"goal.{STATE}": VECTOR})
    with pytest.raises(ValueError, match=r"wants goal\.observation\.state"):
        GR00TWire(goal)
