"""Ulna inside LeRobot: found by LeRobot's own discovery, and its robots, teleoperators, cameras, tasks and
policies behind LeRobot's interfaces."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.servo_arm import bench

from ulna.datasets.features import ACTION, ENVIRONMENT, IMAGES, STATE, Feature, Features
from ulna.datasets.formats.lerobot_export import export_lerobot
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.stats import vector_stats
from ulna.datasets.store import EpisodeStore
from ulna.drivers.arm import DeviceError
from ulna.drivers.servos.so101 import JOINTS, NAMES
from ulna.policies.checkpoint import load_checkpoint, save_checkpoint
from ulna.policies.lerobot.export import export_lerobot as export_policy
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipes.mip import regression_mlp
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.train.record import TrainingRecord
from ulna.robot.lerobot_words import in_lerobots

PLUGINS = Path(__file__).parents[2] / "robot" / "lerobot_plugins"
SPOKEN = tuple(f"{n}.pos" for n in NAMES)
HOME = np.array([0.0, -0.6, 0.7, 1.2, 0.0, 0.6])
FEATURES: Features = {
    STATE: Feature((6,), "float32", NAMES, ("rad",) * 6),
    IMAGES + "front": Feature((32, 32, 3), "uint8"),
    ACTION: Feature((6,), "float32", NAMES, ("rad",) * 6),
}
IN_DEGREES = {k: v for k, v in FEATURES.items() if k in (STATE, ACTION)}


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The plug-ins, as they are imported where they are installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path_factory.mktemp("calibration")))
        patch.syspath_prepend(str(PLUGINS))
        yield importlib.import_module("lerobot_robot_ulna")


@pytest.fixture
def calibrations(tmp_path: Path) -> dict[str, Any]:
    return {"calibration_dir": tmp_path / "calibration", "id": "mine"}


def device(config: Any) -> Any:
    from lerobot.utils.import_utils import make_device_from_device_class

    return make_device_from_device_class(config)


def test_lerobot_finds_all_five_in_one_wheel(
    plugins: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lerobot.cameras import CameraConfig
    from lerobot.configs import PreTrainedConfig
    from lerobot.envs import EnvConfig
    from lerobot.policies import get_policy_class
    from lerobot.robots import RobotConfig
    from lerobot.teleoperators import TeleoperatorConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    source, files = tmp_path / "source", [p for p in PLUGINS.rglob("*") if p.suffix in (".py", ".toml")]
    for path in files:
        (source / path.relative_to(PLUGINS)).parent.mkdir(parents=True, exist_ok=True)
        (source / path.relative_to(PLUGINS)).write_bytes(path.read_bytes())
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=source, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {n for n in archive.namelist() if n.endswith(".py")} == {
            p.relative_to(PLUGINS).as_posix() for p in files if p.suffix == ".py"
        }
        archive.extractall(tmp_path / "installed")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    with caplog.at_level("INFO"):
        register_third_party_plugins()
    assert "Imported third-party plugin: lerobot_robot_ulna" in caplog.text
    assert "Could not import" not in caplog.text
    bases = (RobotConfig, TeleoperatorConfig, CameraConfig, PreTrainedConfig, EnvConfig)
    found = {base.get_choice_class("ulna").__name__ for base in bases}
    assert found == set(plugins.__all__)
    assert get_policy_class("ulna").__name__ == "UlnaPolicy"


# robots


def test_a_simulated_robot_is_moved_in_degrees(plugins: Any, calibrations: dict[str, Any]) -> None:
    robot = device(plugins.UlnaRobotConfig(file="sim:so101", task="lift", views="front", **calibrations))
    assert tuple(robot.action_features) == SPOKEN
    assert robot.observation_features == {**dict.fromkeys(SPOKEN, float), "front": (96, 96, 3)}
    with pytest.raises(ConnectionError, match="not connected"):
        robot.get_observation()
    with robot:
        before = robot.get_observation()
        assert before["front"].shape == (96, 96, 3)
        assert before["front"].dtype == np.uint8
        goal = {n: before[n] + 3.0 for n in SPOKEN}
        sent = robot.send_action(goal)
        assert sent == pytest.approx(goal, abs=1e-3)
        for _ in range(30):
            robot.send_action(goal)
        after = robot.get_observation()
        for name in SPOKEN[:5]:
            assert after[name] == pytest.approx(goal[name], abs=1.5)
        far = robot.send_action({n: 500.0 for n in SPOKEN})  # what the limits let through is told
        assert far["shoulder_pan.pos"] - goal["shoulder_pan.pos"] == pytest.approx(
            np.degrees(JOINTS.max_velocity[0]) / 20, abs=1.5
        )
        for _ in range(40):
            far = robot.send_action({n: 500.0 for n in SPOKEN})
        assert far["shoulder_pan.pos"] == pytest.approx(np.degrees(JOINTS.upper[0]), abs=0.1)
        assert far["gripper.pos"] == pytest.approx(100, abs=1e-3)
        with pytest.raises(ValueError, match=r"the action lacks gripper\.pos"):
            robot.send_action({n: 0.0 for n in SPOKEN[:5]})
    assert not robot.is_connected
    robot.connect()  # and once more
    robot.disconnect()


@pytest.mark.parametrize("file", ["sim:ur5e", "sim:panda"])
def test_other_arms_stay_in_radians(plugins: Any, calibrations: dict[str, Any], file: str) -> None:
    robot = device(plugins.UlnaRobotConfig(file=file, task="reach", views="front", **calibrations))
    assert all(n.endswith(".pos") for n in robot.action_features)
    with robot:
        seen = robot.get_observation()
        state = robot.rig.robot.observe().values[STATE]
        assert [seen[n] for n in robot.action_features] == pytest.approx(state.tolist())


def test_the_expert_teleoperates(plugins: Any, calibrations: dict[str, Any]) -> None:
    """In LeRobot's order: the teleoperator is connected first."""
    config = plugins.UlnaTeleoperatorConfig(file="sim:so101", device="expert", **calibrations)
    robot = device(
        plugins.UlnaRobotConfig(file="sim:so101", task="reach", seed=3, views="front", **calibrations)
    )
    with device(config) as teleop, robot:
        assert teleop.action_features == robot.action_features
        for seed in (3, 4):
            for _ in range(200):
                robot.send_action(teleop.get_action())
                if robot.rig.scene.success():
                    break
            assert robot.rig.scene.success(), seed
            robot.reset(4)
        with pytest.raises(ConnectionError, match="connected already"):
            teleop.connect()


def test_a_leader_moves_robots_of_lerobots_own(
    plugins: Any, calibrations: dict[str, Any], tmp_path: Path
) -> None:
    with bench("so101_leader", tmp_path) as b:
        file = tmp_path / "my.toml"
        file.write_text(
            'name = "my"\ncontrol_hz = 20.0\n[arms.arm]\ndriver = "so101"\nport = "/nowhere"\ncalibration = '
            f'"{b.calibration}"\n[leaders.arm]\ndriver = "so101-leader"\nport = "{b.link}"\n'
            f'calibration = "{b.calibration}"\nstale_s = 1.5\n'
        )
        config = plugins.UlnaTeleoperatorConfig(file=str(file), **calibrations)
        with device(config) as teleop:
            assert tuple(teleop.action_features) == SPOKEN
            action = teleop.get_action()
        expected = in_lerobots(IN_DEGREES).values(ACTION, b.plant.position)
        assert list(action.values()) == pytest.approx(expected.tolist(), abs=0.2)
        hand = plugins.UlnaTeleoperatorConfig(file=str(file), device="keyboard", **calibrations)
        with device(hand) as teleop, pytest.raises(DeviceError, match=r"take --robot\.type=ulna"):
            teleop.get_action()
    with pytest.raises(DeviceError, match="there is no teleoperator"):
        device(plugins.UlnaTeleoperatorConfig(file=str(file), device="telepathy", **calibrations))


def test_a_camera_of_a_robots_file(plugins: Any, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(
        'name = "my"\ncontrol_hz = 20.0\n[arms.arm]\ndriver = "so101"\nport = "/nowhere"\n'
        'calibration = "c.json"\n[cameras.front]\ndriver = "opencv"\ndevice = "http://127.0.0.1:9/x"\n'
        "height = 48\nwidth = 64\nfps = 20.0\n"
    )
    camera = device(plugins.UlnaCameraConfig(file=str(file), view="front"))
    assert (camera.width, camera.height, camera.fps) == (64, 48, 20)
    with pytest.raises(ConnectionError, match="not connected"):
        camera.read()
    with pytest.raises(DeviceError, match="there is no camera"):
        device(plugins.UlnaCameraConfig(file=str(file), view="frnt"))
    with pytest.raises(DeviceError, match="width of front is 64, not 640"):
        device(plugins.UlnaCameraConfig(file=str(file), view="front", width=640))


# tasks


def test_make_env_makes_our_tasks(plugins: Any) -> None:
    from lerobot.envs import env_to_policy_features, make_env
    from lerobot.envs.utils import preprocess_observation

    config = plugins.UlnaEnvConfig(task="lift", views="front", image_size=32)
    features = env_to_policy_features(config)
    assert {k: f.shape for k, f in features.items()} == {
        STATE: (6,),
        ENVIRONMENT: features[ENVIRONMENT].shape,
        IMAGES + "front": (3, 32, 32),
        ACTION: (6,),
    }
    env: Any = make_env(config, n_envs=2)["ulna"][0]
    try:
        observation, _ = env.reset(seed=[1, 2])
        shown = preprocess_observation(observation)
        assert set(shown) == {STATE, ENVIRONMENT, IMAGES + "front"}
        assert all(len(t) for t in env.call("task_description"))
        assert env.call("_max_episode_steps")[0] > 50
        experts = [e.unwrapped.env.scene.expert() for e in env.envs]  # type: ignore[attr-defined]
        for i, expert in enumerate(experts):
            expert.reset(i + 1)
        words = in_lerobots(IN_DEGREES)
        terminated, info = np.zeros(2, bool), {}
        for _ in range(300):
            actions = np.stack([words.values(ACTION, e.act()) for e in experts]).astype(np.float32)
            _, _, terminated, _, info = env.step(actions)
            if terminated.any():
                break
        assert terminated.any()
        assert info["is_success"][terminated].all()
    finally:
        env.close()


# policies


def checkpoint(folder: Path, features: Features = FEATURES) -> Path:
    """One of random weights, in radians."""
    near = HOME + 0.2 * np.random.default_rng(0).standard_normal((200, 6))
    stats = {key: vector_stats(near) for key in (STATE, ACTION)}
    torch.manual_seed(0)
    changes = {"codec": "Absolute", "backbone.width": 32, "backbone.depth": 1, "n_obs_steps": 2}
    policy = Policy(override(regression_mlp(features), changes), features, stats)
    save_checkpoint(folder, policy, TrainingRecord(control_hz=20.0, robot="sim:so101"))
    return folder


@pytest.mark.parametrize("exported", [False, True], ids=["with a config", "by ulna export"])
def test_a_checkpoint_decides_the_same_inside_lerobot(plugins: Any, tmp_path: Path, exported: bool) -> None:
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import get_policy_class, make_pre_post_processors

    folder = checkpoint(tmp_path / "policy")
    if exported:
        assert export_policy(folder, tmp_path / "theirs").type == "ulna"
        folder = tmp_path / "theirs"
    else:
        (folder / "config.json").write_text('{"type": "ulna", "device": "cpu"}')
    config: Any = PreTrainedConfig.from_pretrained(folder)
    policy: Any = get_policy_class("ulna").from_pretrained(folder, config=config)
    assert (config.n_obs_steps, config.horizon) == (2, 16)
    local, words = LocalPolicy(folder), in_lerobots(IN_DEGREES)
    rng = np.random.default_rng(1)
    states = (HOME + 0.1 * rng.standard_normal((12, 6))).astype(np.float32)
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    pre, post = make_pre_post_processors(config, pretrained_path=str(folder) if exported else None)
    batch, chunk = {}, np.zeros((16, 6))
    for _ in range(2):  # the second episode knows nothing of the first
        policy.reset()
        for t, state in enumerate(states):
            batch = {
                STATE: torch.from_numpy(words.values(STATE, state)),
                IMAGES + "front": torch.from_numpy(image).movedim(-1, 0).float() / 255,
                "task": "lift",
            }
            with torch.inference_mode():
                action = post(policy.select_action(pre(batch)))
            if t % 8 == 0:
                seen = {STATE: np.stack([states[max(t - 1, 0)], state]), IMAGES + "front": image}
                chunk = words.values(ACTION, local.infer(seen)["actions"])
            np.testing.assert_allclose(action[0].numpy(), chunk[t % 8], atol=2e-3)
    chunks = policy.predict_action_chunk(pre(batch))
    assert chunks.shape == (1, 16, 6)
    policy.reset()
    with pytest.raises(ValueError, match=r"the policy needs observation\.images\.front"):
        policy.select_action({STATE: torch.zeros(1, 6)})


def test_a_checkpoint_runs_many_rows(plugins: Any, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "policy", IN_DEGREES)
    (folder / "config.json").write_text('{"type": "ulna", "device": "cpu", "units": "radians"}')
    from lerobot_policy_ulna.modeling_ulna import UlnaPolicy  # type: ignore[import-not-found]

    policy = UlnaPolicy.from_pretrained(folder)
    policy.reset()
    states = torch.from_numpy(np.float32(HOME + np.arange(3)[:, None] / 10))
    actions = policy.select_action({STATE: states, "task": ["a", "b", "c"]})
    alone = LocalPolicy(folder).infer({STATE: states[2].numpy()})["actions"][0]
    np.testing.assert_allclose(actions[2].numpy(), alone, atol=1e-5)


def test_lerobot_trains_our_recipes(plugins: Any, tmp_path: Path) -> None:
    from lerobot.configs import FeatureType
    from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
    from lerobot.datasets.factory import resolve_delta_timestamps
    from lerobot.policies import make_policy, make_pre_post_processors

    store = EpisodeStore.create(tmp_path / "data", IN_DEGREES, 20.0, "my-so101")
    with EpisodeWriter(store) as writer:
        for phase in range(3):
            writer.start({"task": "wave", "agent": "test"})
            for t in range(40):
                q = (HOME + 0.3 * np.sin(0.3 * t + phase) * np.ones(6)).astype(np.float32)
                at = (t * 50_000_000, t * 50_000_000)
                writer.tick({STATE: q, ACTION: q}, {STATE: at, ACTION: at})
            writer.end({"success": True})
    store = EpisodeStore.open(tmp_path / "data")
    words = in_lerobots(store.features, robot=store.robot)
    export_lerobot(store, tmp_path / "lerobot", words=words)

    settings = {"backbone.width": "64", "backbone.depth": "2"}
    config = plugins.UlnaConfig(recipe="regression_mlp", settings=settings, device="cpu", push_to_hub=False)
    meta: Any = LeRobotDatasetMetadata("test/wave", tmp_path / "lerobot")
    policy: Any = make_policy(config, ds_meta=meta)
    assert config.output_features[ACTION].type is FeatureType.ACTION
    pre, _ = make_pre_post_processors(config, dataset_stats=meta.stats)
    data = LeRobotDataset(
        "test/wave", tmp_path / "lerobot", delta_timestamps=resolve_delta_timestamps(config, meta)
    )
    batch = pre(next(iter(torch.utils.data.DataLoader(data, batch_size=64, shuffle=True))))
    optimiser = config.get_optimizer_preset().build(policy.get_optim_params())
    policy.train()
    losses = []
    for _ in range(30):
        loss, told = policy.forward(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(told["loss"])
    assert losses[-1] < 0.3 * losses[0]
    policy.save_pretrained(tmp_path / "policy")
    ours = load_checkpoint(tmp_path / "policy")
    assert ours.features[ACTION].units == ("deg",) * 5 + ("%",)
    assert ours.features[ACTION].names == NAMES
    again = type(policy).from_pretrained(tmp_path / "policy")
    state = {STATE: torch.from_numpy(words.values(STATE, HOME.astype(np.float32)))[None], "task": ["wave"]}
    policy.eval()
    for p in (policy, again):
        p.reset()
    np.testing.assert_allclose(policy.select_action(state), again.select_action(state), atol=1e-3)


def test_what_cannot_be_trained_there_is_said(plugins: Any) -> None:
    with pytest.raises(DeviceError, match="recipe"):
        plugins.UlnaConfig(recipe="flwo", device="cpu")
