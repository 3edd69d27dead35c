"""LeRobot's async wire over real sockets: a client that speaks it by hand, and the stock one."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from contracts.lerobot_client import Client, RemotePolicyConfig, as_lerobots, field

from ulna.datasets.features import ACTION, IMAGES, STATE, Feature
from ulna.datasets.units import Element
from ulna.policies.request import Request
from ulna.policies.serving.lerobot_wire import LeRobotWire
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.models import Models
from ulna.policies.serving.server import PolicyServer, ServerError
from ulna.robot.wires import lerobot_wire

STOCK = Path(__file__).parents[3] / "benchmarks" / "foreign" / "lerobot_client.py"
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
THEIRS = tuple(f"{j}.pos" for j in JOINTS)
UNITS = ("deg",) * 5 + ("%",)
CAMERA = IMAGES + "front"
METADATA = Metadata(
    "climb",
    {
        STATE: Feature((6,), "float32", JOINTS, UNITS),
        CAMERA: Feature((24, 32, 3), "uint8"),
        # in another order than the state, so that nothing fits by accident
        ACTION: Feature((6,), "float32", JOINTS[::-1], UNITS[::-1]),
    },
    n_obs_steps=2,
    horizon=10,
    n_action_steps=8,
    control_hz=20.0,
    checkpoint="ab" * 32,
)
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
RAW: dict[str, Any] = {**{j: 10.0 * (i + 1) for i, j in enumerate(THEIRS)}, "front": IMAGE, "task": "lift"}


class Climb:
    """A policy whose action i is the state, plus i."""

    def __init__(self, metadata: Metadata = METADATA) -> None:
        self.metadata, self.requests = metadata, list[Request]()
        self.thinks_s, self.more = 0.0, dict[str, Any]()

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.requests.append(Request.from_wire(request))
        time.sleep(self.thinks_s)
        if self.more.get("fail"):
            raise RuntimeError("a secret of the server")
        state = dict(zip(self.metadata.features[STATE].names, request[STATE][-1], strict=True))
        now = np.array([state[n] for n in self.metadata.features[ACTION].names])
        ahead = np.arange(self.metadata.n_actions_ahead)[:, None]
        return {"actions": (now + ahead).astype(np.float32), **self.more}


@pytest.fixture
def policy() -> Climb:
    return Climb()


@pytest.fixture
def address(policy: Climb) -> Iterator[str]:
    wire = LeRobotWire(policy.metadata, port=0)
    with PolicyServer(policy, port=0, wires=[wire]).background():
        yield wire.url


def refusal(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **kwargs)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    return caught.value.details()  # type: ignore[attr-defined]


def test_a_client_gets_its_actions_in_its_own_order(address: str, policy: Climb) -> None:
    with Client(address) as client:
        client.instruct(THEIRS, {"front": (48, 64, 3)})
        client.observe(RAW, 7, 100.0, must_go=True)
        actions = client.actions()
    assert [a[1] for a in actions] == list(range(7, 17))
    assert [a[0] for a in actions[:3]] == pytest.approx([100.0, 100.05, 100.1])
    np.testing.assert_array_equal(actions[0][2], [10, 20, 30, 40, 50, 60])
    np.testing.assert_array_equal(actions[9][2], [19, 29, 39, 49, 59, 69])
    request = policy.requests[0]
    assert request.task == "lift"
    assert request.observation[STATE].shape == (2, 6)
    assert request.observation[CAMERA].shape == (2, 24, 32, 3)
    # by area: each pixel the mean of four
    np.testing.assert_allclose(
        request.observation[CAMERA][1], IMAGE.reshape(24, 2, 32, 2, 3).mean((1, 3)), atol=0.51
    )


def test_a_client_gets_no_more_actions_than_it_wants(address: str, policy: Climb) -> None:
    with Client(address) as client:
        client.instruct(THEIRS, {"front": (48, 64, 3)}, actions_per_chunk=4)
        client.observe(RAW)
        assert len(client.actions()) == 4
        policy.more = {"execute": 3}
        client.observe(RAW, 1)
        assert len(client.actions()) == 3


def test_history_is_what_was_seen_at_the_ticks_before(address: str, policy: Climb) -> None:
    with Client(address) as client:
        client.call("Ready")

        def ask(value: float, timestep: int) -> list[float]:
            client.observe({**RAW, "gripper.pos": value}, timestep)
            client.actions()
            return policy.requests[-1].observation[STATE][:, -1].tolist()

        assert ask(1.0, 0) == [1.0, 1.0], "before the first tick the world stood still"
        assert ask(2.0, 1) == [1.0, 2.0]
        assert ask(3.0, 1) == [1.0, 3.0], "the same tick again"
        assert ask(4.0, 9) == [4.0, 4.0], "the tick before is not known"
        client.observe({**RAW, "gripper.pos": 5.0}, 10)
        assert ask(6.0, 11) == [5.0, 6.0], "also of one that was never answered"
        client.call("Ready")
        assert ask(7.0, 12) == [7.0, 7.0], "a new episode"


def test_memory_goes_from_reply_to_request_until_the_client_begins_anew(address: str, policy: Climb) -> None:
    policy.more = {"memory": {"checkpoint": "x", "values": np.ones(2)}}
    with Client(address) as client:
        for timestep in range(2):
            client.observe(RAW, timestep)
            client.actions()
        client.call("Ready")
        client.observe(RAW, 2)
        client.actions()
    assert [r.memory is not None for r in policy.requests] == [False, True, False]


def test_what_came_while_the_policy_thought_is_not_asked_again(address: str, policy: Climb) -> None:
    policy.thinks_s = 0.3
    with Client(address) as client:
        client.observe(RAW, 0)
        got: list[Any] = []
        asking = threading.Thread(target=lambda: got.append(client.actions()))
        asking.start()
        while not policy.requests:
            time.sleep(0.01)
        for timestep in range(1, 4):
            client.observe(RAW, timestep)
        asking.join()
        assert got[0][0][1] == 0
        client.observe(RAW, 4)
        assert client.actions()[0][1] == 4
    assert len(policy.requests) == 2


def test_only_the_newest_observation_is_answered(address: str, policy: Climb) -> None:
    with Client(address) as client:
        for timestep in range(5):
            client.observe(RAW, timestep)
        assert client.actions()[0][1] == 4
    assert len(policy.requests) == 1


def test_without_an_observation_there_is_nothing(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ulna.policies.serving.lerobot_wire.WAIT_S", 0.1)
    with Client(address) as client:
        assert client.actions() == []


def test_several_clients_do_not_disturb_each_other(address: str) -> None:
    with Client(address) as one, Client(address) as other:
        one.instruct(THEIRS, {"front": (48, 64, 3)}, actions_per_chunk=3)
        one.observe(RAW, 5)
        other.instruct(THEIRS[::-1], {"front": (48, 64, 3)})
        other.observe({k: RAW[k] for k in (*THEIRS[::-1], "front", "task")}, 70)
        np.testing.assert_array_equal(other.actions()[0][2], [60, 50, 40, 30, 20, 10])
        actions = one.actions()
        assert (len(actions), actions[0][1]) == (3, 5)


def test_a_client_goes_on_after_the_server_was_started_anew(policy: Climb) -> None:
    wire = LeRobotWire(policy.metadata, port=0)
    with PolicyServer(policy, port=0, wires=[wire]).background(), Client(wire.url) as client:
        client.instruct(THEIRS, {"front": (48, 64, 3)})
    again = PolicyServer(policy, port=0, wires=[LeRobotWire(policy.metadata, port=wire.port)])
    with again.background(), Client(wire.url) as client:
        client.observe(RAW, 30)
        assert client.actions()[0][1] == 30


@pytest.mark.parametrize(
    ("joints", "cameras", "more", "says"),
    [
        (THEIRS[:5], {"front": (48, 64, 3)}, {}, "the robot has no gripper, which is in the policy's"),
        (THEIRS, {"top": (48, 64, 3)}, {}, "has no camera front, which the policy sees: its cameras are top"),
        (THEIRS, {}, {}, "its cameras are none"),
        (THEIRS, {"front": (48, 64, 3)}, {"actions_per_chunk": 0}, "at least 1, not 0"),
        (THEIRS, {"front": (48, 64, 3)}, {"actions_per_chunk": True}, "at least 1, not True"),
        (
            THEIRS,
            {"front": (48, 64, 3)},
            {"pretrained_name_or_path": "who/deadbeef01"},
            "wants the checkpoint deadbeef, and this server has abababab",
        ),
    ],
)
def test_a_robot_that_does_not_fit_is_told_before_it_moves(
    address: str, joints: Any, cameras: Any, more: dict[str, Any], says: str
) -> None:
    with Client(address) as client:
        assert says in refusal(client.instruct, joints, cameras, **more)


def test_a_client_may_want_the_checkpoint_that_took_anothers_place(policy: Climb) -> None:
    models = Models({"policy": policy}, lambda folder: Climb(replace(METADATA, checkpoint="cd" * 32)))
    wire = LeRobotWire(METADATA, port=0)
    with PolicyServer(models, port=0, wires=[wire]).background(), Client(wire.url) as client:
        models.load("policy", "new")
        client.instruct(THEIRS, {"front": (48, 64, 3)}, pretrained_name_or_path="cdcdcdcd")
        old = {"pretrained_name_or_path": "abababab"}
        assert "this server has cdcdcdcd" in refusal(client.instruct, THEIRS, {"front": (48, 64, 3)}, **old)


def test_what_fits_is_served_whatever_it_is_called(address: str) -> None:
    with Client(address) as client:
        client.instruct(THEIRS, {"front": (48, 64, 3)}, pretrained_name_or_path="abababab")
        client.instruct(THEIRS, {"front": (48, 64, 3)}, pretrained_name_or_path="lerobot/act_so101")
        client.instruct(THEIRS, {"top": (48, 64, 3)}, rename_map={"observation.images.top": CAMERA})
        client.observe({**{j: RAW[j] for j in THEIRS}, "top": IMAGE}, 0)
        assert client.actions()


@pytest.mark.parametrize(
    ("observation", "says"),
    [
        ({k: v for k, v in RAW.items() if k != "gripper.pos"}, "the robot has no gripper"),
        ({k: v for k, v in RAW.items() if k != "front"}, "no image front"),
        (RAW | {"front": IMAGE[:20]}, "the policy wants uint8 (24, 32, 3), or larger"),
        (RAW | {"front": IMAGE.astype(np.float32)}, "observation.images.front is float32"),
        (RAW | {"front": IMAGE[..., 0]}, "or larger"),
        (RAW | {"front": "picture"}, "is a str"),
        (RAW | {"gripper.pos": float("nan")}, "the robot has no gripper"),
        (RAW | {"gripper.pos": True}, "the robot has no gripper"),
        (RAW | {"task": 3}, "the instruction in words"),
        ([1, 2], "a map from names"),
    ],
)
def test_an_observation_that_does_not_fit_costs_one_sentence(
    address: str, observation: Any, says: str
) -> None:
    with Client(address) as client:
        assert says in refusal(client.observe, observation)
        client.observe(RAW, 3)
        assert client.actions()[0][1] == 3, "the same connection goes on"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "state, or no bytes"),
        (b"x", "ends too early"),
        (field(2, b"pickle"), "state, or no bytes"),
        (bytes([0x08, 3]) + field(2, b"not a pickle"), "instruction"),
        (bytes([0x08, 3]) + field(2, as_lerobots(RemotePolicyConfig())), "TimedObservation"),
        (bytes([0x08, 3]) + field(2, as_lerobots({"observation": RAW})), "TimedObservation"),
        (bytes([0x08, 9]) + field(2, b""), "state, or no bytes"),
        (bytes([0x09]) + bytes(8), "no LeRobot client sends"),
        (b"\xff" * 12, "64 bits"),
    ],
)
def test_malformed_messages_cost_one_sentence(address: str, data: bytes, says: str) -> None:
    with Client(address) as client:
        sending = client.channel.stream_unary("/transport.AsyncInference/SendObservations")
        assert says in refusal(sending, iter([data]), timeout=20)
        client.observe(RAW)
        assert client.actions()


def test_a_pickle_that_runs_something_runs_nothing(address: str, tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/owned",)

    with Client(address) as client:
        for name in ("SendPolicyInstructions",):
            assert "names 'posix.system'" in refusal(client.call, name, field(1, pickle.dumps(Runs())))
        assert "names 'posix.system'" in refusal(client.send, pickle.dumps(Runs()))
        assert "names 'posix.system'" in refusal(client.observe, Runs())
    assert not (tmp_path / "owned").exists()


def laughs(depth: int) -> list[Any]:
    """Lists that hold one list twice: a few bytes for each level, and twice the text."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value, value]
    return value


def test_a_short_message_that_unfolds_is_never_written_out(address: str) -> None:
    bomb = laughs(20)
    with Client(address) as client:
        for name in ("actions_per_chunk", "pretrained_name_or_path"):
            said = refusal(client.instruct, THEIRS, {"front": (48, 64, 3)}, **{name: bomb})
            assert name in said
            assert said.endswith(", not a list")
        for more in ({"timestep": bomb}, {"at_s": bomb}):
            assert refusal(client.observe, RAW, **more).endswith(", not a list")
        code = pickle.dumps(bomb, 4)[2:-1]
        dtype = b"\x80\x04\x8c\x05numpy\x8c\x05dtype\x93" + code + b"\x89\x88\x87R."
        assert "arrays of a list are not read" in refusal(client.send, dtype)
        assert refusal(client.instruct, ["odd"] * 1000).endswith("its joints are odd"), "each once"


def test_large_observations_arrive_in_pieces_and_have_a_bound(
    address: str, policy: Climb, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(address) as client:
        client.observe(RAW | {"front": np.zeros((1200, 1600, 3), np.uint8)})
        assert client.actions()
        monkeypatch.setattr("ulna.policies.serving.lerobot_wire.MAX_MESSAGE_BYTES", 3 << 20)
        assert "may have 3 MiB" in refusal(
            client.observe, RAW | {"front": np.zeros((1200, 1600, 3), np.uint8)}
        )
        monkeypatch.setattr("ulna.policies.serving.lerobot_wire.MAX_RECEIVING_BYTES", 1000)
        assert "too much at once" in refusal(client.observe, RAW)
        monkeypatch.undo()
        client.observe(RAW)
        assert client.actions(), "what was refused is not held"


def test_an_observation_that_drips_is_given_up(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ulna.policies.serving.lerobot_wire.RECEIVE_S", 0.2)
    stop = threading.Event()

    def drip() -> Iterator[bytes]:
        yield bytes([0x08, 1]) + field(2, b"x")
        stop.wait(20)

    with Client(address) as client:
        sending = client.channel.stream_unary("/transport.AsyncInference/SendObservations")
        assert "longer than 0.2 s" in refusal(sending, drip(), timeout=20)
        stop.set()


def test_a_policy_that_fails_keeps_its_secrets(address: str, policy: Climb) -> None:
    policy.more = {"fail": True}
    with Client(address) as client:
        client.observe(RAW)
        with pytest.raises(grpc.RpcError, match="log says why") as caught:
            client.actions()
        assert "secret" not in str(caught.value)
        policy.more = {}
        client.observe(RAW)
        assert client.actions()


def test_a_port_in_use_is_one_sentence(address: str) -> None:
    port = int(address.rpartition(":")[2])
    with (
        pytest.raises(ServerError, match="another --lerobot-port"),
        PolicyServer(Climb(), port=0, wires=[LeRobotWire(METADATA, port=port)]).background(),
    ):
        pass


def in_radians(**changes: Any) -> Metadata:
    rad = ("rad",) * 6
    features = {k: replace(METADATA.features[k], units=rad) for k in (STATE, ACTION)}
    return replace(METADATA, features=features, n_obs_steps=1, **changes)


@pytest.mark.parametrize(
    ("units", "says"),
    [(("rad",) * 6, "is of rad, and LeRobot's robots send degrees"), ((), "is of no stated unit")],
)
def test_a_policy_in_other_units_is_not_served_as_it_is(units: tuple[str, ...], says: str) -> None:
    features = {k: replace(METADATA.features[k], units=units) for k in (STATE, ACTION)}
    with pytest.raises(ValueError, match=says):
        LeRobotWire(replace(METADATA, features=features))


def test_a_policy_without_names_or_with_a_goal_is_not_served() -> None:
    with pytest.raises(ValueError, match="has no names"):
        LeRobotWire(replace(METADATA, features={ACTION: Feature((6,), "float32", (), UNITS)}))
    with pytest.raises(ValueError, match=r"told goal\.observation\.state"):
        LeRobotWire(replace(METADATA, conditions={f"goal.{STATE}": METADATA.features[STATE]}))


def test_degrees_become_radians_as_our_drivers_count_them_and_back() -> None:
    """LeRobot's degrees are from the middle of the range; the gripper is in percent."""
    policy = Climb(in_radians())
    wire = lerobot_wire(policy.metadata, "127.0.0.1", 0, "degrees")
    with PolicyServer(policy, port=0, wires=[wire]).background(), Client(wire.url) as client:
        client.observe({**dict.fromkeys(THEIRS, 90.0), "gripper.pos": 0.0}, 0)
        actions = client.actions()
    from ulna.drivers.servos import so101

    seen = policy.requests[0].observation[STATE][-1]
    middle = (so101.JOINTS.lower + so101.JOINTS.upper) / 2
    np.testing.assert_allclose(seen[:5], middle[:5] + np.pi / 2 * 4095 / 4096, rtol=1e-6)
    np.testing.assert_allclose(seen[5], so101.JOINTS.lower[5], rtol=1e-6)
    np.testing.assert_allclose(actions[0][2], [90.0] * 5 + [0.0], atol=1e-4)
    np.testing.assert_allclose(actions[1][2][0], 90 + 180 / np.pi * 4096 / 4095, rtol=1e-5)


def test_percent_need_the_calibration_of_the_robot() -> None:
    with pytest.raises(ValueError, match="--calibration FILE"):
        lerobot_wire(in_radians(), "127.0.0.1", 0, "percent")


@pytest.mark.parametrize(
    ("metadata", "units", "says"),
    [
        (METADATA, "degrees", "leave --lerobot-units out"),
        (in_radians(), "grad", "--units is radians"),
        (
            in_radians(),
            "degrees,elbow_flex=m",
            "the client's elbow_flex becomes m, and the policy's is in rad",
        ),
    ],
)
def test_units_that_contradict_are_one_sentence(metadata: Metadata, units: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        lerobot_wire(metadata, "127.0.0.1", 0, units)


def test_radians_may_be_stated_and_pass_as_they_are() -> None:
    wire = lerobot_wire(in_radians(), "127.0.0.1", 0, "radians")
    assert isinstance(wire, LeRobotWire)
    assert set(wire.elements[STATE]) == {Element(j, "rad") for j in JOINTS}


def test_arms_are_told_apart_however_their_joints_are_spelled() -> None:
    names = tuple(f"{arm}.{j}" for arm in ("left", "right") for j in JOINTS)
    feature = Feature((12,), "float32", names, UNITS * 2)
    policy = Climb(replace(METADATA, features={STATE: feature, ACTION: feature}, n_obs_steps=1))
    wire = LeRobotWire(policy.metadata, port=0)
    theirs = [f"{arm}_{j}" for arm in ("right", "left") for j in THEIRS]
    with PolicyServer(policy, port=0, wires=[wire]).background(), Client(wire.url) as client:
        client.observe({k: float(i) for i, k in enumerate(theirs)})
        np.testing.assert_array_equal(client.actions()[0][2], range(12))
    assert policy.requests[0].observation[STATE][0].tolist() == [*range(6, 12), *range(6)]


def test_the_stock_client_runs_its_robot(address: str, policy: Climb, tmp_path: Path) -> None:
    """LeRobot's own `RobotClient`, in a process of its own."""
    policy.thinks_s = 0.02
    command = [sys.executable, str(STOCK), address, "40", "--camera", "front"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["started"]
    assert result["errors"] == []
    assert result["actions"] >= 40
    assert list(result["first"][0].values()) == [10, 20, 30, 40, 50, 60]
    # where another chunk has come by then, the client means both
    assert all(
        v <= w <= v + 1 for v, w in zip([10, 20, 30, 40, 50, 60], result["first"][1].values(), strict=True)
    )
    assert policy.requests[0].task == "lift the cube"
