"""What a server says of its policy: read back as it was, refused where it does not fit, never asked of
openpi's."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ulna.datasets.features import ACTION, STATE, Feature
from ulna.policies.request import Request
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.protocol import ProtocolError, pack, unpack

METADATA = Metadata(
    recipe="flow",
    features={STATE: Feature((2,), "float32", ("x", "y"), ("m", "m")), ACTION: Feature((2,), "float32")},
    n_obs_steps=2,
    horizon=16,
    n_past_actions=1,
    n_action_steps=8,
    sampling_steps=10,
    control_hz=20.0,
    checkpoint="abc",
    needs_past=True,
)


def test_metadata_comes_back_the_same_over_the_wire() -> None:
    for metadata in (METADATA, Metadata()):
        assert Metadata.from_json(unpack(pack(metadata.to_json()))) == metadata
        assert Metadata.from_json(json.loads(json.dumps(metadata.to_json()))) == metadata
    assert METADATA.n_actions_ahead == 15
    asked = replace(
        METADATA, conditions={"task": Feature((), "str"), f"goal.{STATE}": METADATA.features[STATE]}
    )
    assert Metadata.from_json(unpack(pack(asked.to_json()))) == asked
    before = asked.to_json()
    del before["conditions"]
    assert Metadata.from_json(before) == METADATA, "a server from before conditions does not tell"


def test_what_is_not_ulnas_is_passed_over() -> None:
    assert Metadata.from_json({"reset_pose": [0.0], "horizon": "far"}) == Metadata(), "as openpi's may say"
    assert Metadata.from_json(METADATA.to_json() | {"colour": "blue"}) == METADATA


def test_a_server_from_before_needs_past_is_understood() -> None:
    """Its horizon began now, and it gave the number of past actions only where it needed them."""
    before = METADATA.to_json() | {"horizon": 15}
    del before["needs_past"]
    assert Metadata.from_json(before) == METADATA
    free = before | {"n_past_actions": 0}
    assert Metadata.from_json(free) == replace(METADATA, horizon=15, n_past_actions=0, needs_past=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_obs_steps": 0}, "its n_obs_steps cannot be 0"),
        ({"horizon": True}, "its horizon cannot be True"),
        ({"control_hz": -1.0}, "its control_hz cannot be -1"),
        ({"checkpoint": 7}, "its checkpoint cannot be 7"),
        ({"needs_past": 1}, "its needs_past cannot be 1"),
        ({"features": {STATE: {"shape": [2], "dtype": "float32"}}}, "its features cannot be"),
        ({"features": {ACTION: {"shape": ["2"], "dtype": "float32"}}}, "its features cannot be"),
        ({"conditions": {"task": "words"}}, "its conditions cannot be"),
        ({"n_past_actions": 16}, "leaves no action ahead"),
        ({"n_past_actions": 0}, "none of its chunk's actions are past"),
    ],
)
def test_metadata_that_does_not_fit_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Metadata.from_json(METADATA.to_json() | change)
    incomplete = METADATA.to_json()
    del incomplete["horizon"]
    with pytest.raises(ValueError, match="it lacks horizon"):
        Metadata.from_json(incomplete)


def test_a_request_is_openpis_map_with_our_two_keys() -> None:
    past = np.ones((1, 2), np.float32)
    wire = Request({STATE: np.zeros(2)}, 7, past, "lift").to_wire()
    assert list(wire) == [STATE, "task", "action.past", "_rt"]
    assert wire["_rt"] == {"seed": 7}
    back = Request.from_wire(wire)
    assert (list(back.observation), back.seed, back.task) == ([STATE], 7, "lift")
    assert Request.from_wire({STATE: 1, "prompt": "lift"}).task == "lift", "as openpi's clients say it"
    assert back.past is past
    assert Request.from_wire({STATE: 1}) == Request({STATE: 1})
    assert Request({STATE: 1}).to_wire() == {STATE: 1}


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ([1], "a map of observations, not a list"),
        ({1: 2}, "keys are text, not 1"),
        ({"_rt": {"seed": -1}}, "seed must be a whole number"),
        ({"_rt": {"seed": 1 << 63}}, "seed must be a whole number"),
        ({"_rt": {"delay": -2}}, "delay must be a whole number of ticks"),
        ({"_rt": {"options": [1]}}, "options must be a map"),
        ({"task": 3}, "task is the instruction in words, not a int"),
    ],
)
def test_a_request_that_no_policy_could_read_is_one_sentence(message: Any, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        Request.from_wire(message)
