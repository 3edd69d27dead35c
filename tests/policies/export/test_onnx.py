"""A policy as an ONNX file: the checkpoint's actions, served without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from contracts.data import CAMERA, FEATURES, WITH_IMAGE
from contracts.recipes import small

from ulna.datasets.features import ENVIRONMENT, STATE
from ulna.datasets.stats import Stats, vector_stats
from ulna.policies.checkpoint import save_checkpoint
from ulna.policies.codec import RELATIVE
from ulna.policies.export.onnx import export_onnx
from ulna.policies.export.program import NotExportable
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.request import Request
from ulna.policies.serving.client import PolicyClient
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.onnx_file import ExportedError, sealed
from ulna.policies.serving.onnx_policy import OnnxPolicy
from ulna.policies.serving.protocol import BadRequest
from ulna.policies.train.record import TrainingRecord
from ulna.robot.cli import main

# noise at every step, clipping, several calls of the network, and actions as differences to the state
CHANGES = {
    "backbone": "ResidualMLP",
    "backbone.width": 32,
    "backbone.depth": 1,
    "codec": "Relative",
    "solver.eta": 1.0,
    "solver.clip": 0.8,
    "sampling_steps": 4,
    "n_past_actions": 1,
}
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
OBSERVATION = {
    STATE: RNG.normal(size=(2, 3)).astype(np.float32),
    ENVIRONMENT: RNG.normal(size=2).astype(np.float32),
    CAMERA: IMAGE,
}


def saved(folder: Path, name: str, changes: dict[str, Any], features: Any = FEATURES) -> Path:
    torch.manual_seed(0)
    recipe = override(small(name, features), changes)
    stats: dict[str, Stats] = {
        k: vector_stats(RNG.normal(size=(50, *f.shape))) for k, f in features.items() if f.dtype != "uint8"
    }
    ahead = (50, recipe.horizon, 3)
    stats[RELATIVE] = vector_stats(RNG.normal(size=ahead))
    save_checkpoint(folder, Policy(recipe, features, stats), TrainingRecord(control_hz=20.0))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("checkpoint") / "flow", "flow", CHANGES, WITH_IMAGE)


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    path = checkpoint.with_name("flow.onnx")
    assert main(["export", str(checkpoint), "--onnx", str(path)]) == 0
    return path


def test_the_same_seed_gives_the_checkpoints_actions(checkpoint: Path, exported: Path) -> None:
    ours, torchs = OnnxPolicy(exported), LocalPolicy(checkpoint)
    assert ours.metadata == torchs.metadata
    for seed in (0, 7, 1 << 40):
        request = Request(OBSERVATION, seed).to_wire()
        reply, expected = ours.infer(request), torchs.infer(request)
        assert reply["actions"].shape == (15, 3)
        assert reply["actions"].dtype == np.float32
        np.testing.assert_allclose(reply["actions"], expected["actions"], atol=1e-4)
        assert (reply["nfe"], reply["checkpoint"]) == (expected["nfe"], expected["checkpoint"])
    assert ours.metadata.control_hz == 20.0
    free = [ours.infer(OBSERVATION)["actions"] for _ in range(2)]
    assert not np.array_equal(*free), "without a seed each draw is another"


def test_a_transformer_over_feature_maps_is_exported(tmp_path: Path) -> None:
    """ACT without its latent's encoder, which only training asks."""
    folder, path = saved(tmp_path / "act", "act", {}, WITH_IMAGE), tmp_path / "act.onnx"
    assert export_onnx(folder, path)["calls"] == 1
    request = Request({**OBSERVATION, STATE: OBSERVATION[STATE][-1], CAMERA: IMAGE[-1]}, 0).to_wire()
    expected = LocalPolicy(folder).infer(request)["actions"]
    np.testing.assert_allclose(OnnxPolicy(path).infer(request)["actions"], expected, atol=1e-4)


def test_what_a_policy_may_be_told_is_an_input_that_may_be_left_out(tmp_path: Path) -> None:
    changes = {"conditions": "Return", "backbone": "ResidualMLP", "backbone.width": 8, "backbone.depth": 1}
    folder, path = saved(tmp_path / "flow", "flow", changes), tmp_path / "flow.onnx"
    assert export_onnx(folder, path)["off_by"] < 1e-4
    ours, torchs = OnnxPolicy(path), LocalPolicy(folder)
    answers = []
    for told in ({}, {"return": np.array([0.2], np.float32)}):
        request = Request({k: v for k, v in OBSERVATION.items() if k != CAMERA} | told, 0).to_wire()
        answers.append(ours.infer(request)["actions"])
        np.testing.assert_allclose(answers[-1], torchs.infer(request)["actions"], atol=1e-4)
    assert not np.allclose(*answers), "it is heard"


def test_the_file_is_plain_onnx_and_says_what_it_is(exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model)
    notes = {p.key: p.value for p in model.metadata_props}
    assert set(notes) == {"ulna.metadata", "ulna.stats", "ulna.sampling", "ulna.sha256"}
    assert json.loads(notes["ulna.sampling"]) == {"noise": [4, 16, 3], "nfe": 4}
    assert set(json.loads(notes["ulna.stats"])) >= {STATE, "action"}
    assert model.graph.input[0].name == "noise"
    assert [o.name for o in model.graph.output] == ["actions"]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({STATE: OBSERVATION[STATE]}, "lacks observation.environment_state"),
        ({**OBSERVATION, STATE: np.zeros(4)}, r"observation.state is float64 \(4,\)"),
        ({**OBSERVATION, STATE: np.full(3, np.nan)}, "not finite"),
        ({**OBSERVATION, "_rt": {"options": {"steps": 9}}}, "options.steps cannot change an exported policy"),
        ({**OBSERVATION, "_rt": {"options": {"steering": []}}}, "options.steering cannot change"),
    ],
)
def test_a_request_that_does_not_fit_is_one_sentence(exported: Path, request_: Any, says: str) -> None:
    policy = OnnxPolicy(exported)
    with pytest.raises(BadRequest, match=says):
        policy.infer(request_)
    assert policy.infer({**OBSERVATION, "_rt": {"options": {"steps": 4}}})["nfe"] == 4


def test_a_damaged_file_is_one_sentence(exported: Path, tmp_path: Path) -> None:
    data, path = exported.read_bytes(), tmp_path / "x.onnx"
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    for wrong in (bytes(changed), data[:-1], data[: len(data) // 2], data + b"\0", b"", b"PK\x03\x04"):
        path.write_bytes(wrong)
        with pytest.raises(ExportedError, match="damaged"):
            OnnxPolicy(path)
    path.write_bytes(sealed(b"no model"))
    with pytest.raises(ExportedError, match="cannot be served by this version"):
        OnnxPolicy(path)
    with pytest.raises(ExportedError, match="ulna export"):
        OnnxPolicy(tmp_path / "none.onnx")


SERVE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        heavy = ("torch", "lerobot", "diffusers", "transformers", "accelerate", "onnx", "pybullet")
        if name.split(".")[0] in heavy:
            raise ModuleNotFoundError(f"there is no {name} on this computer")
sys.meta_path.insert(0, Absent())
from ulna.robot.cli import main
sys.exit(main(["serve", sys.argv[1], "--port", "0", "--json"]))
"""


def test_it_is_served_where_there_is_no_torch(checkpoint: Path, exported: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(exported)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        assert line, server.communicate()[1]
        request = Request(OBSERVATION, 3).to_wire()
        with PolicyClient(json.loads(line)["url"]) as client:
            actions = client.infer(request)["actions"]
    finally:
        server.terminate()
        server.communicate()
    np.testing.assert_allclose(actions, LocalPolicy(checkpoint).infer(request)["actions"], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("ebt", {}, "gives an energy"),
        ("imc", {}, "several chunks"),
        ("vq_bet", {}, "gives codes"),
        ("ptp", {"steering": "PastVerification"}, "hooks steer"),
        ("mip", {"context": "Recurrent"}, "carries a memory"),
        ("mip", {"codec": "Delta", "n_past_actions": 1}, "wants the last command"),
        ("mip", {"conditions": "Words"}, "told what to do in words"),
    ],
)
def test_what_cannot_be_exported_says_why(tmp_path: Path, name: str, changes: Any, says: str) -> None:
    folder = saved(tmp_path / "c", name, changes)
    with pytest.raises(NotExportable, match=says):
        export_onnx(folder, tmp_path / "x.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["c"], "nothing half-written"


def test_a_wrong_command_is_one_sentence(
    tmp_path: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, says in (
        (["export", str(tmp_path), "--onnx", "x.bin"], "is to end in .onnx"),
        (["export", str(tmp_path / "none"), "--onnx", str(tmp_path / "x.onnx")], "no checkpoint folder"),
        (["export", str(tmp_path), "--onnx", str(tmp_path / "no" / "x.onnx")], "there is no folder"),
        (["serve", str(exported), "--steer", "CFG"], "leave --steer"),
        (["serve", str(exported), "--device", "cuda"], "leave --steer"),
        (["serve", str(tmp_path / "none.onnx")], "no exported policy"),
    ):
        assert main(argv) == 1
        error = capsys.readouterr().err
        assert says in error
        assert "Traceback" not in error
