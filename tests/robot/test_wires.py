"""`ulna serve` with the wires of other projects: what does not fit is said before it listens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from contracts.data import FEATURES
from contracts.recipes import small

from ulna.datasets.features import ENVIRONMENT
from ulna.datasets.stats import vector_stats
from ulna.policies.checkpoint import save_checkpoint
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.train.record import TrainingRecord
from ulna.robot.cli import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In radians, of what an arm observes."""
    features = {k: f for k, f in FEATURES.items() if k != ENVIRONMENT}
    rng = np.random.default_rng(0)
    stats = {k: vector_stats(rng.normal(size=(50, *f.shape))) for k, f in features.items()}
    policy = Policy(override(small("mip"), {"codec": "Absolute"}), features, stats)
    folder = tmp_path_factory.mktemp("c") / "mip"
    save_checkpoint(folder, policy, TrainingRecord(control_hz=20.0))
    return folder


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--lerobot-port", "8080"], "say what the client's robot sends with --lerobot-units"),
        (["--lerobot-port", "8080", "--lerobot-units", "grad"], "--units is radians"),
        (["--lerobot-port", "8080", "--lerobot-calibration", "x.json"], "degrees or percent"),
        (["--lerobot-port", "8080", "--lerobot-units", "degrees"], "say what grip is in"),
        (["--lerobot-port", "70000"], "--lerobot-port must lie in 0..65535"),
        (["--groot-port", "-1"], "--groot-port must lie in 0..65535"),
        (["--groot-port", "5555", "--groot-modality", "none.json"], "there is no file none.json"),
    ],
)
def test_a_wire_that_does_not_fit_is_one_sentence(
    checkpoint: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(checkpoint), "--port", "0", *options]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
