"""The computer at the robot: what requirements-robot.lock holds is enough there, and holds nothing heavy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from contracts.policy import Follow
from contracts.twin import twin

from ulna.datasets.features import ACTION, STATE, Feature
from ulna.drivers.servos import so101
from ulna.policies.serving.server import PolicyServer

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements-robot.lock"
HEAVY = {"torch", "torchvision", "lerobot", "diffusers", "transformers", "accelerate", "pybullet", "datasets"}

# `ulna` where only the packages of the lock can be imported
ON_IT = f"""
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
lines = Path({str(LOCK)!r}).read_text().splitlines()
locked = {{line.partition("==")[0].lower().replace("_", "-") for line in lines if line[:1].isalnum()}}
owners = packages_distributions()
class Absent:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        of = {{d.lower().replace("_", "-") for d in owners.get(top, ())}} - {{"ulna"}}
        if of and not of & locked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from ulna.robot.cli import main
sys.exit(main(sys.argv[1:]))
"""


def ulna(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ON_IT, *argv], capture_output=True, text=True, check=False, timeout=120
    )


def test_the_lock_is_what_the_script_writes() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "robot-requirements"), "--check"]
    run = subprocess.run(script, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_lock_has_hashes_no_addresses_and_nothing_heavy() -> None:
    text = LOCK.read_text()
    names = set(re.findall(r"^([\w.-]+)==", text, re.MULTILINE))
    assert not names & HEAVY
    assert {"numpy", "opencv-python", "pyserial", "websockets", "msgpack", "zarr"} <= names
    assert "safetensors" in names, "[safety.guard] reads its pairs with it"
    assert text.count("--hash=sha256:") > len(names)
    assert "://" not in text
    whole = (ROOT / "requirements.lock").read_text()
    assert all(
        block in whole for block in re.findall(r"^[\w.-]+==.*?(?=^\w|\Z)", text, re.MULTILINE | re.DOTALL)
    )


@pytest.mark.parametrize(
    "command", ["deploy", "record", "teleoperate", "calibrate", "doctor", "devices", "setup"]
)
def test_what_a_robots_computer_does_explains_itself_there(command: str) -> None:
    run = ulna(command, "--help")
    assert run.returncode == 0, run.stderr
    assert f"ulna {command}" in run.stdout


@pytest.mark.parametrize(
    ("argv", "package"),
    [(["recipes"], "torch"), (["serve", "x"], "torch"), (["twin", "so101"], "pybullet")],
)
def test_what_it_does_not_do_is_said_in_one_sentence(argv: list[str], package: str) -> None:
    run = ulna(*argv)
    assert run.returncode == 1
    assert f"this needs the package {package}, which is not installed on this computer" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.realtime
def test_a_policy_is_deployed_and_recorded_there(tmp_path: Path) -> None:
    """A served policy on the twin of an arm, through its real driver."""
    joints = Feature((6,), "float32", tuple(so101.JOINTS.names), tuple(so101.JOINTS.units))
    policy = Follow({STATE: joints, ACTION: joints}, n_obs_steps=1)
    policy.infer = (
        lambda request: {  # type: ignore[method-assign]
            "actions": np.repeat(request[STATE].reshape(-1, 6)[-1:], 8, 0).astype(np.float32)
        }
    )
    with twin("so101") as device, PolicyServer(policy, port=0).background() as server:
        argv = ["deploy", "--robot", device["toml"], "--server", server.url, "--max-seconds", "1"]
        run = ulna(*argv, "--out", str(tmp_path / "data"), "--json")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["episodes"][0]["ticks"] == 20
    assert result["decisions"] == 5
    info = ulna("data", "info", str(tmp_path / "data"))
    assert "1 episodes, 20 frames" in info.stdout
