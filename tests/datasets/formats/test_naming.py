"""What a foreign array is called here: conventions, `--map`, `--drop`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, DEPTH, IMAGES, STATE, Feature
from ulna.datasets.formats.naming import Naming, join_rows, joined, place


def kinds(text: str) -> dict[str, Any]:
    """`top:image state` → {"top": "image", "state": "vector"}."""
    return {n: k or "vector" for n, _, k in (w.partition(":") for w in text.split())}


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        (
            "image:image wrist_image:image state actions",
            {
                IMAGES + "image": "image",
                IMAGES + "wrist_image": "wrist_image",
                STATE: "state",
                ACTION: "actions",
            },
        ),
        (
            "exterior_image_1_left:image wrist_image_left:image gripper_position joint_position actions",
            {
                IMAGES + "exterior_image_1_left": "exterior_image_1_left",
                IMAGES + "wrist_image_left": "wrist_image_left",
                STATE: "joint_position gripper_position",
                ACTION: "actions",
            },
        ),
        (
            "observation.state action.gripper action.arm",
            {STATE: STATE, ACTION: "action.arm action.gripper"},
        ),
        (
            "observation.state.arm observation.state.hand action",
            {STATE: "observation.state.arm observation.state.hand", ACTION: ACTION},
        ),
        (  # DROID: whole vectors, and beside them each way to say them
            f"{STATE} {STATE}.joint_position {STATE}.cartesian_position action action.cartesian_velocity",
            {
                STATE: STATE,
                "observation.state.joint_position": "observation.state.joint_position",
                "observation.state.cartesian_position": "observation.state.cartesian_position",
                ACTION: ACTION,
            },
        ),
        (  # alternatives of a state do not make one
            "observation.state.joint_pos observation.state.ee_pos action",
            {
                "observation.state.joint_pos": "observation.state.joint_pos",
                "observation.state.ee_pos": "observation.state.ee_pos",
                ACTION: ACTION,
            },
        ),
        (
            "observation.left.image:image observation.right.image:image observation.top:image action",
            {
                IMAGES + "left_image": "observation.left.image",
                IMAGES + "right_image": "observation.right.image",
                IMAGES + "top": "observation.top",
                ACTION: ACTION,
            },
        ),
        (
            f"{IMAGES}l.image:image images.top:image obs.rgb.f:image {IMAGES}top:depth action.9 action.10",
            {
                IMAGES + "l.image": "observation.images.l.image",
                IMAGES + "top": "images.top",
                IMAGES + "f": "obs.rgb.f",
                DEPTH + "top": "observation.images.top",
                ACTION: "action.9 action.10",
            },
        ),
        (
            "obs/policy/joint_pos obs/actions actions observations.qvel qpos note:other next.reward:aside",
            {
                "observation.policy.joint_pos": "obs/policy/joint_pos",
                "observation.actions": "obs/actions",
                ACTION: "actions",
                "observation.qvel": "observations.qvel",
                STATE: "qpos",
            },
        ),
    ],
)
def test_conventions(arrays: str, parts: dict[str, str]) -> None:
    placement = place(kinds(arrays), Naming(), "x")
    assert placement.parts == {k: tuple(v.split()) for k, v in parts.items()}
    used = {n for v in placement.parts.values() for n in v}
    assert set(placement.left_out) == kinds(arrays).keys() - used


def test_the_convention_that_was_taken_is_noted() -> None:
    notes = place(kinds("image:image state actions reward:aside"), Naming(), "x").notes
    assert notes["convention"] == ["openpi (actions, state)"]
    assert notes["renamed"] == {"image": IMAGES + "image", "state": STATE, "actions": ACTION}
    assert notes["left_out"] == ["reward"]
    assert place(kinds("action.a action.b"), Naming(), "x").notes["joined"] == {ACTION: "action.a + action.b"}


@pytest.mark.parametrize(
    ("renames", "drops", "parts"),
    [
        ({"q_*": STATE, "u": ACTION}, [], {STATE: "q_2 q_10", ACTION: "u", IMAGES + "top": "top"}),
        (
            {"q_10": STATE, "q_*": "observation.rest", "u": ACTION},
            ["top"],
            {"observation.rest": "q_2", STATE: "q_10", ACTION: "u"},
        ),
        ({"u": ACTION}, [IMAGES + "*", "observation.q_2"], {"observation.q_10": "q_10", ACTION: "u"}),
        (
            {"u": ACTION, "reward": "observation.reward"},
            ["q_*", "top"],
            {ACTION: "u", "observation.reward": "reward"},
        ),
    ],
)
def test_map_and_drop(renames: dict[str, str], drops: list[str], parts: dict[str, str]) -> None:
    arrays = kinds("q_10 q_2 u top:image reward:aside words:other")
    placement = place(arrays, Naming(renames, drops), "x")
    assert placement.parts == {k: tuple(v.split()) for k, v in parts.items()}


def test_what_the_user_maps_comes_before_what_the_format_says() -> None:
    arrays, known = kinds("eef gripper joints actions"), {STATE: ("eef", "gripper")}
    assert place(arrays, Naming(), "x", known).parts[STATE] == ("eef", "gripper")
    parts = place(arrays, Naming({"joints": STATE}), "x", known).parts
    assert parts[STATE] == ("joints",)
    assert parts["observation.eef"] == ("eef",)
    assert place(arrays, Naming(drops=["gripper"]), "x", known).parts[STATE] == ("eef",)


@pytest.mark.parametrize(
    ("arrays", "renames", "drops", "says"),
    [
        ("state", {}, [], "x has no action; it has state: name it with --map NAME=action"),
        ("action state", {"stat": STATE}, [], "x has no array stat to rename: did you mean state"),
        ("action", {}, ["zzz"], "nothing that --drop zzz names; it has action"),
        ("action a", {"a": "arm"}, [], "a feature is called action, observation.<name>"),
        ("action a", {"a": IMAGES}, [], "a feature is called action, observation.<name>"),
        ("action a", {"a": "observation.a/b"}, [], "cannot be a folder's"),
        ("action a", {"a": IMAGES + "a"}, [], "a holds numbers, and cannot become observation.images.a"),
        ("action a:image", {"a": STATE}, [], "a holds images, and cannot become observation.state"),
        ("action a:other", {"a": STATE}, [], "a holds no numbers"),
        ("action a:image b:image", {"*": IMAGES + "c", "action": ACTION}, [], "two arrays would be called"),
        (
            "action state observation.x",
            {"state": "observation.x"},
            [],
            "two arrays would be called",
        ),
        ("action a", {"a": STATE}, ["a"], "both renamed by --map and left out by --drop"),
        ("action", {}, ["action"], "x has no action"),
        (
            "action.joint_position action.cartesian_position",
            {},
            [],
            "several ways to say it, action.cartesian_position, action.joint_position: say which with --map",
        ),
        ("action.arm_position action.arm_velocity", {}, [], "several ways to say it"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    arrays: str, renames: dict[str, str], drops: list[str], says: str
) -> None:
    with pytest.raises(StoreError) as error:
        place(kinds(arrays), Naming(renames, drops), "x")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_joined_features_keep_or_get_names() -> None:
    arm, hand = Feature((2,), "float64", ("a", "b"), ("rad", "rad")), Feature((1,), "float32", ("w",), ("m",))
    assert joined({"action.arm": arm, "action.hand": hand}) == Feature(
        (3,), "float32", ("a", "b", "w"), ("rad", "rad", "m")
    )
    two = joined({"action.left": Feature((2,), "int64", ("a", "b")), "action.right": Feature((2,), "int64")})
    assert two == Feature((4,), "int64", ("left.a", "left.b", "right.0", "right.1"))
    assert joined({"l.x": Feature((1,), "int64"), "r.x": Feature((), "bool")}).names == ("l.x", "r.x")
    rows = join_rows([np.ones((3, 2)), np.zeros((3, 1, 1))], Feature((3,), "float32"))
    np.testing.assert_array_equal(rows, np.array([[1, 1, 0]] * 3, np.float32))
    assert rows.dtype == np.float32
