"""Where cameras stand: moved by the seed where that is asked for, and told together with the depth of what
they see."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ulna.datasets.features import CAMERA_POSE, DEPTH
from ulna.robot.rollout import env_features
from ulna.sim.camera import AROUND, NEARER, UP, moved
from ulna.sim.gym import TaskEnv
from ulna.sim.scene import SimScene
from ulna.sim.vector import vector_env

SIZE = (48, 64)


def test_depth_and_pose_tell_where_things_are() -> None:
    env = TaskEnv("reach", "so101", ("front", "wrist"), SIZE, {"views": 1.0}, depth=True)
    for seed in (3, 4):
        observation, _ = env.reset(seed=seed)
        for name, camera in env.scene.cameras.items():
            depth, pose = observation[DEPTH + name] / 1000, observation[CAMERA_POSE + name].astype(np.float64)
            assert (observation[DEPTH + name].dtype, depth.shape) == (np.uint16, SIZE)
            rows, columns = np.indices(SIZE) + 1.0  # the renderer samples a pixel at its far corner
            k = camera.intrinsics.matrix
            x, y = (columns - k[0, 2]) / k[0, 0] * depth, (rows - k[1, 2]) / k[1, 1] * depth
            points = Rotation.from_quat(pose[3:]).apply(np.stack([x, y, depth], -1).reshape(-1, 3)) + pose[:3]
            height = points[depth.ravel() > 0, 2]
            assert (np.abs(height) < 0.002).mean() > 0.5, "most of what is seen is the table"
    env.close()


def test_a_camera_moves_by_the_seed_and_no_physics_with_it() -> None:
    still, moves = (
        SimScene("so101", "lift", ["front"], SIZE, randomisation={"views": strength})
        for strength in (0.0, 1.0)
    )
    poses = []
    for seed in (5, 6, 5):
        still.reset(seed)
        moves.reset(seed)
        np.testing.assert_array_equal(still.task.observe(), moves.task.observe())
        poses.append(moves.cameras["front"].pose())
        assert np.abs(poses[-1] - still.cameras["front"].pose()).max() > 0.01
    np.testing.assert_array_equal(poses[0], poses[2])
    assert np.abs(poses[0] - poses[1]).max() > 0.01
    still.close()
    moves.close()
    for strength in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"views: .* is not between 0"):
            SimScene("so101", "lift", randomisation={"views": strength})


def test_how_far_it_moves() -> None:
    eye, target = np.array([0.7, 0.3, 0.5]), np.array([0.2, 0.0, 0.1])
    assert moved(eye, target, 1, 0.0) is eye
    away = eye - target
    for strength in (0.3, 1.0):
        there = np.array([moved(eye, target, seed, strength) - target for seed in range(300)])
        length = np.linalg.norm(there, axis=1) / np.linalg.norm(away)
        around = np.arctan2(there[:, 1], there[:, 0]) - np.arctan2(away[1], away[0])
        up = np.arcsin(there[:, 2] / np.linalg.norm(there, axis=1)) - np.arcsin(
            away[2] / np.linalg.norm(away)
        )
        for value, most in ((length - 1, NEARER), (around, AROUND), (up, UP)):
            assert 0.9 * strength * most < np.abs(value).max() <= strength * most + 1e-9


def test_demonstrations_have_depth_only_where_it_is_asked_for() -> None:
    plain, deep = (
        vector_env("reach", "so101", 1, cameras=("front",), image_size=SIZE, depth=depth)
        for depth in (False, True)
    )
    more = {k: f for k, f in env_features(deep).items() if k not in env_features(plain)}
    assert set(more) == {DEPTH + "front", CAMERA_POSE + "front"}
    assert (more[DEPTH + "front"].shape, more[DEPTH + "front"].units) == (SIZE, ("mm",))
    assert more[CAMERA_POSE + "front"].units[:3] == ("m", "m", "m")
    observation, _ = deep.reset(seed=[3])
    assert observation[DEPTH + "front"].shape == (1, *SIZE)
    assert set(plain.reset(seed=[3])[0]) == set(env_features(plain)) - {"action"}
    plain.close()
    deep.close()
