"""LeRobot's pickles are read without unpickling, and nothing else is."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import pickletools
import struct
import subprocess
import tracemalloc
from typing import Any

import numpy as np
import pytest
from contracts.lerobot_client import Loader, RemotePolicyConfig, TimedObservation, as_lerobots
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.policies.serving.pickled import MODULE, Instance, pickle_actions, unpickle
from ulna.policies.serving.protocol import ProtocolError

OBSERVATION = {
    "shoulder_pan.pos": 1.5,
    "single": np.float32(2.5),
    "double": np.float64(-1.0),
    "count": -(2**40),
    "front": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    "columns": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    "nothing": None,
    "many": [1, (2, 3), (4, 5, 6, 7), {"a": True, "b": b"bytes"}, "x" * 300],
    "task": "lift",
}


@pytest.mark.parametrize("protocol", [4, 5])
def test_an_observation_comes_back_as_it_was(protocol: int) -> None:
    same = np.zeros(3)
    sent = TimedObservation(timestamp=1.0, timestep=7, observation={**OBSERVATION, "a": same, "b": same})
    read = unpickle(as_lerobots(sent, protocol))
    assert isinstance(read, Instance)
    assert read.name == "TimedObservation"
    assert (read.fields["timestamp"], read.fields["timestep"]) == (1.0, 7)
    back = read.fields["observation"]
    for key, value in sent.__dict__["observation"].items():
        if isinstance(value, np.ndarray):
            assert back[key].dtype == value.dtype
            np.testing.assert_array_equal(back[key], value)
            assert not back[key].flags.writeable
        elif key == "many":
            assert back[key][:3] == value[:3]
            assert back[key][4] == value[4]
        else:
            assert back[key] == value
            assert type(back[key]) is type(value)


def test_instructions_are_read() -> None:
    features = {"observation.state": {"dtype": "float32", "shape": (2,), "names": ["a.pos", "b.pos"]}}
    read = unpickle(as_lerobots(RemotePolicyConfig(lerobot_features=features, actions_per_chunk=50)))
    assert read == Instance("RemotePolicyConfig", {"lerobot_features": features, "actions_per_chunk": 50})


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20).filter(bool),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=9), x, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=9), plain, max_size=6), st.sampled_from([4, 5]))
def test_plain_values_come_back(value: dict[str, Any], protocol: int) -> None:
    assert unpickle(pickle.dumps(value, protocol)) == value


def refusal(program: bytes) -> str:
    """What is said of it; "" where it is read."""
    try:
        unpickle(program)
    except ProtocolError as error:
        return str(error)
    return ""


class Runs:
    """What a hostile pickle is: it runs `call(*args)` where it is unpickled."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


class Builds:
    def __reduce__(self) -> Any:
        return (np.ndarray, ((2,),), (1, (2,), np.dtype("O"), False, [Runs(os.system, "true"), 1]))


HOSTILE = {
    "os.system": Runs(os.system, "touch /tmp/owned"),
    "posix.system": Runs(os.popen, "true"),
    "eval": Runs(eval, "1"),
    "exec": Runs(exec, "1"),
    "getattr": Runs(getattr, "x", "__class__"),
    "import": Runs(builtins.__import__, "os"),
    "open": Runs(open, "/etc/passwd"),
    "Popen": Runs(subprocess.Popen, ["true"]),
    "a class": TimedObservation,
    "a class of ours": TimedObservation(x=1),
    "an array of objects": np.array([Runs(os.system, "true")], dtype=object),
    "a struct": np.zeros(1, [("a", "f4")]),
    "text array": np.array(["a"]),
    "built": Builds(),
    "a set": {1, 2},
    "a complex number": 1j,
    "a long number": 1 << 80,
    "a range": range(3),
    "a number as a key": {1: 2},
    "a list of lists in a key": {(1, 2): 3},
}


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_client_sends_is_refused(name: str, protocol: int) -> None:
    for value in (HOSTILE[name], {"observation": HOSTILE[name]}, [1, HOSTILE[name]]):
        with pytest.raises(ProtocolError):
            unpickle(pickle.dumps(value, protocol))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3])
def test_older_pickles_are_refused(protocol: int) -> None:
    with pytest.raises(ProtocolError, match=r"protocol|instruction"):
        unpickle(pickle.dumps({"a": 1.0}, protocol))


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


HEAD = b"\x80\x04"
DTYPE = named("numpy", "dtype")


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (named("os", "system") + text("true") + b"\x85R.", "names 'os.system'"),
        (named(MODULE, "pickle"), "names"),
        (named(MODULE, "TimedAction") + b")\x81.", "names"),
        (named(MODULE + ".x", "TimedObservation"), "names"),
        (named("numpy", "ndarray") + b")\x81.", "makes an object"),
        (named(MODULE, "TimedObservation") + b")R.", "calls what no"),
        (named(MODULE, "TimedObservation") + text("x") + b"\x85\x81.", "makes an object"),
        (named(MODULE, "TimedObservation") + b")\x81" + b"]b.", "fields"),
        (text("x") + text("y") + b"\x85R.", "calls what no"),
        (b"]}b.", "builds what needs no state"),
        (b"cos\nsystem\n.", "instruction"),
        (b"\x82\x01.", "instruction"),
        (b"P0\n.", "instruction"),
        (b"(.", "before it is whole"),
        (b"(\x94.", "remembers a mark"),
        (b"(l.", "instruction"),
        (b"N(t.N.", "malformed"),
        (b"NN.", "malformed"),
        (b".", "malformed"),
        (b"h\x05.", "malformed"),
        (b"t.", "no mark"),
        (b"\x87.", "more than it has"),
        (b"N\x85\x86.", "more than it has"),
        (b"NNa.", "appends to"),
        (b"]K\x01K\x02s.", "sets items"),
        (b"}(K\x01u.", "sets items"),
        (b"}K\x01K\x02s.", "maps go from text"),
        (b"\x8d" + struct.pack("<Q", 1 << 62) + b"x.", "too early"),
        (b"\x8e" + struct.pack("<Q", (1 << 64) - 1) + b"x.", "too early"),
        (b"\x8a\xff" + b"\xff" * 255 + b".", "64 bits"),
        (b"\x8c\x02\xff\xff.", "malformed"),
        (b"N.N", "behind its end"),
        (b"\x80\x03N.", "protocol 3"),
        (b"]" * 30_000 + b".", "more than"),
        (DTYPE + text("f4") + b"\x89\x88\x87R.", "before it is whole"),
        (DTYPE + text("O8") + b"\x89\x88\x87R.", "not read"),
        (DTYPE + text("V8") + b"\x89\x88\x87R.", "not read"),
        (DTYPE + text("(9999999,)f8") + b"\x89\x88\x87R.", "not read"),
        (DTYPE + b"N\x89\x88\x87R.", "not read"),
        (DTYPE + text("f4") + b"\x85R.", "malformed"),
    ],
)
def test_programs_that_lie_end_in_one_sentence(program: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says) as caught:
        unpickle(HEAD + program)
    assert len(str(caught.value)) < 200


def array_program(shape: bytes, data: bytes, code: str = "f8") -> bytes:
    state = b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    dtype = DTYPE + text(code) + b"\x89\x88\x87R" + state + b"b"
    head = (
        named("numpy._core.multiarray", "_reconstruct") + named("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
    )
    return HEAD + head + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb."


def test_an_array_is_no_larger_than_its_bytes() -> None:
    assert unpickle(array_program(b"K\x01\x85", b"C\x08" + bytes(8))).tolist() == [0.0]
    enormous = b"\x8a\x08" + struct.pack("<q", 1 << 60) + b"\x85"
    for shape in (enormous, b"J\xff\xff\xff\xff\x85", b"N", b"G\x00\x00\x00\x00\x00\x00\x00\x00\x85"):
        with pytest.raises(ProtocolError):
            unpickle(array_program(shape, b"C\x08" + bytes(8)))
    with pytest.raises(ProtocolError):
        unpickle(array_program(b"K\x01\x85", text("12345678")))


def test_a_bomb_stays_as_small_as_it_is() -> None:
    """Memo entries far out, values that hold each other, a billion laughs: with Python's reader some of these
    take gigabytes."""
    bombs = [
        HEAD + b"Nr\xff\xff\xff\x7f.",
        HEAD + b"]\x94" + b"(" + b"h\x00" * 9000 + b"e.",
        HEAD
        + b"]\x94"
        + b"".join(b"](" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"e\x94" for i in range(200)),
        HEAD + b"(" * 19_000 + b".",
        HEAD + b"\x95" + struct.pack("<Q", 1 << 63) + b"N.",
        HEAD + b"\x8c\x01x" + b"\x94" + b"]\x94" + b"(" + b"h\x00" * 19_000 + b"e.",
    ]
    tracemalloc.start()
    try:
        for bomb in bombs:
            assert len(refusal(bomb)) < 200
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for program in (data, HEAD + data):
        assert len(refusal(program)) < 300


WHOLE = as_lerobots(TimedObservation(timestamp=1.0, timestep=7, observation=OBSERVATION))


@settings(max_examples=400)
@given(st.data())
def test_a_message_with_wrong_bytes_is_read_or_refused(data: st.DataObject) -> None:
    changed = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(changed)))
    for program in (bytes(changed), WHOLE[:cut]):
        assert len(refusal(program)) < 300


def test_the_reply_names_only_lerobots_action_and_torchs_tensor() -> None:
    chunk = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    data = pickle_actions(chunk.tolist(), 7, 100.0, 0.05)
    assert len(data) < 17_000

    named = [arg for op, arg, _ in pickletools.genops(data) if op.name == "SHORT_BINUNICODE"]
    assert named == [MODULE, "TimedAction", "torch", "tensor"]
    actions = Loader(io.BytesIO(data)).load()
    assert [a[1] for a in actions] == list(range(7, 57))
    assert actions[2][0] == pytest.approx(100.1)
    np.testing.assert_array_equal(np.array([a[2] for a in actions], np.float32), chunk)
    assert Loader(io.BytesIO(pickle_actions([], 0, 0.0, 0.1))).load() == []
