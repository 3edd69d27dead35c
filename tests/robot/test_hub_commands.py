"""`ulna push`, `ulna pull`, and `hub:OWNER/NAME` in other commands, with a hub on this computer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from contracts.data import FEATURES, WITH_IMAGE, frame
from contracts.lerobot_made import FRONT, LENGTHS, make_lerobot, make_store
from contracts.recipes import small
from hub_endpoint import TOKEN, HubEndpoint, hub_here

from ulna.datasets.features import IMAGES
from ulna.datasets.formats.lerobot_store import LeRobotStore
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.stats import compute_stats
from ulna.datasets.store import EpisodeStore
from ulna.policies.checkpoint import load_checkpoint, save_checkpoint
from ulna.policies.lerobot.folder import _pulled, checkpoint_folder
from ulna.policies.opened import open_policy
from ulna.policies.policy import Policy
from ulna.policies.train.record import TrainingRecord
from ulna.robot.cli import main
from ulna.robot.evaluate import save_report
from ulna.robot.report.evaluation import ClosedLoop, Outcome

# of huggingface_hub's way to upload with httpx
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, a store; `flow`, a checkpoint for it, which was evaluated, and `bare`, one that was not."""
    root = tmp_path_factory.mktemp("made")
    store = make_store(root / "data")
    features = {k: store.features[k] for k in FEATURES}
    stats = compute_stats(store, list(features))
    record = TrainingRecord(
        data="/home/someone/secret/pipe|data",
        tasks=["fold 0"],
        episodes=[[0, 1]],
        control_hz=20.0,
        robot="sim:so101",
        steps=7,
        parameters=1234,
        device="cpu",
        machine="a machine",
        versions={"ulna": "0.1"},
    )
    for name in ("flow", "bare"):
        save_checkpoint(root / name, Policy(small("flow", features), features, stats), record)
    outcomes = [Outcome(1000 + i, i != 3, 10, 1.0) for i in range(20)]
    report = ClosedLoop("lift", "sim:so101", "flow", ["a"], ["rad"], 20.0, outcomes, versions={"ulna": "0.1"})
    own = load_checkpoint(root / "flow").content_hash
    save_report(root / "flow", "lift-sim-so101", replace(report, checkpoint=own))
    save_report(root / "flow", "older", replace(report, checkpoint="a" * 64))
    return root


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubEndpoint]:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda s: None)
    monkeypatch.setenv("ULNA_CACHE", str(tmp_path / "cache" / "frames"))
    with hub_here(tmp_path, monkeypatch) as hub:
        yield hub
    _pulled.cache_clear()


def card_of(hub: HubEndpoint, key: str) -> tuple[dict[str, Any], str]:
    text = hub.files(key)["README.md"].decode()
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def run(capfd: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    """What the command prints; of a failure the sentence."""
    capfd.readouterr()
    assert main(list(argv)) == code, capfd.readouterr().err
    out, error = capfd.readouterr()
    assert TOKEN not in out + error
    assert "Traceback" not in error
    return out if code == 0 else error.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_dataset_goes_as_lerobot_with_its_card(
    hub: HubEndpoint, made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = run(capfd, "push", f"{made}/data", "ann/lift", "--license", "cc-by-4.0", "--tag", "first", "--json")
    answer = json.loads(out)
    assert (answer["kind"], answer["private"]) == ("dataset", True)
    repo = hub.repos["datasets/ann/lift"]
    assert repo.private
    assert repo.tags == {"v3.0": answer["commit"], "first": answer["commit"]}
    files = hub.files("datasets/ann/lift")
    assert {"meta/info.json", "data/chunk-000/file-000.parquet", "frames.jpg"} < set(files)
    header, card = card_of(hub, "datasets/ann/lift")
    assert header["license"] == "cc-by-4.0"
    assert header["tags"] == ["LeRobot", "ulna", "arm"]
    assert header["configs"] == [{"config_name": "default", "data_files": "data/*/*.parquet"}]
    assert "| episodes | 3 (2 succeeded, 1 failed, 0 not judged) |" in card
    assert "| frames | 88 at 20 Hz, 4 s |" in card
    assert "| fold 0 | 2 |" in card
    assert "| observation.state | float32 | 3 | a, b, grip | rad |" in card
    assert "| observation.images.front | uint8 | 64×96×3 |  | pixels |" in card
    picture = cv2.imdecode(np.frombuffer(files["frames.jpg"], np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (3 * 128, 5 * 192, 3)  # an episode a row, five times
    red = picture[64::128, 96::192, 2].astype(float)
    want = [[4 * t + 20 for t in np.linspace(0, n - 1, 5).round()] for n in LENGTHS]
    assert np.abs(red - want).max() < 8
    assert not (tmp_path / "cache" / "push").exists() or not any((tmp_path / "cache" / "push").iterdir())

    out = run(capfd, "pull", "ann/lift", "--out", f"{tmp_path}/pulled")
    assert f"ulna train flow --data {tmp_path}/pulled" in out
    assert not any(p.is_symlink() for p in (tmp_path / "pulled").rglob("*"))
    assert [e.length for e in LeRobotStore(tmp_path / "pulled").episodes] == list(LENGTHS)
    assert "3 episodes, 88 frames" in run(capfd, "data", "info", f"{tmp_path}/pulled")
    assert "3 episodes" in run(capfd, "data", "check", "hub:ann/lift")
    assert "exists" in run(capfd, "pull", "ann/lift", "--out", f"{tmp_path}/pulled", code=1)
    hub.faults.status["GET /api"] = (503, 1000)
    assert "of the cache, as the hub cannot be reached" in run(capfd, "pull", "ann/lift")


@pytest.mark.slow
def test_a_policy_is_trained_from_the_hub_and_served_from_it(
    hub: HubEndpoint, made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(capfd, "push", str(make_lerobot(tmp_path / "x")), "ann/lift")
    hub.requests.clear()
    words = ["--observe", "observation.state", "--steps", "2", "--batch-size", "8", "--device", "cpu"]
    run(
        capfd,
        *("train", "flow", "--data", "hub:ann/lift", "--out", f"{tmp_path}/flow", "--episodes", "0,1"),
        *(*words, "--backbone.widths", "16", "32", "--track", "none"),
    )
    assert not [r for r in hub.requests if ".mp4" in r], "no camera was asked for"
    run(capfd, "push", f"{tmp_path}/flow", "ann/flow")
    words = ["--open-loop", "hub:ann/flow", "--data", "hub:ann/lift", "--episodes", "2"]
    assert "flow on episodes 2 of hub:ann/lift" in run(capfd, "evaluate", *words)
    opened = open_policy("hub:ann/flow")
    assert opened.policy.content_hash == load_checkpoint(tmp_path / "flow").content_hash
    assert opened.control_hz == 20.0
    # the report lies beside the checkpoint in the cache, and goes up with it
    run(capfd, "push", "hub:ann/flow", "ann/flow")
    _, card = card_of(hub, "models/ann/flow")
    assert "No evaluation: nobody has measured" in card
    assert "Against recorded actions" in card


def test_a_checkpoint_goes_with_its_evidence_and_nothing_else(
    hub: HubEndpoint, made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (made / "flow" / "state.safetensors").write_bytes(b"of the optimiser")
    (made / "flow" / "evil.pkl").write_bytes(b"x")
    run(capfd, "push", f"{made}/flow", "ann/flow", "--public", "--tag", "v1")
    files = hub.files("models/ann/flow")
    assert set(files) == {
        *("model.safetensors", "recipe.json", "features.json", "stats.json", "train.json", "hash.json"),
        *("validation/lift-sim-so101.json", "validation/older.json", "README.md", ".gitattributes"),
    }
    assert not hub.repos["models/ann/flow"].private
    header, card = card_of(hub, "models/ann/flow")
    assert (header["pipeline_tag"], header["library_name"]) == ("robotics", "ulna")
    assert "license" not in header
    assert "| lift | sim:so101 | 19 of 20 (95 %) | 76 to 99 % | 1000 to 1019 | ulna 0.1 |" in card
    assert "Left out, as they are no reports on these weights: older.json." in card
    assert "ulna serve hub:ann/flow --port 8000" in card
    assert "pipe\\|data: 2 episodes" in card
    assert "secret" not in card

    run(capfd, "push", f"{made}/bare", "ann/bare")
    _, card = card_of(hub, "models/ann/bare")
    assert "No evaluation: nobody has measured how often this policy succeeds." in card

    out = run(capfd, "pull", "ann/flow", "--revision", "v1", "--out", f"{tmp_path}/got")
    assert "serve it: ulna serve" in out
    assert load_checkpoint(tmp_path / "got").content_hash == load_checkpoint(made / "flow").content_hash
    assert "ulna serve hub:ann/flow@v1\n" in run(capfd, "pull", "ann/flow", "--revision", "v1")
    repo = hub.repos["models/ann/flow"]
    theirs = repo.tags["act"] = repo.commit({"config.json": hub.put(b"{}", False)}, "LeRobot's")
    out = run(capfd, "pull", "ann/flow", "--revision", "act").strip()
    assert checkpoint_folder(out.rpartition(" ")[2]).name == theirs
    repo.commit(repo.commits[repo.order[-2]], "as before")
    other = hub.put(b"other bytes", True)
    repo.commit({**repo.commits[repo.order[-1]], "stats.json": other, "x.bin": other}, "somebody's change")
    assert "its content hash differs" in run(capfd, "pull", "ann/flow", code=1)
    assert not any("x.bin" in r for r in hub.requests), "nothing that could be a pickle is fetched"


def test_findings_refuse_a_push_and_stand_in_the_card(
    hub: HubEndpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = EpisodeStore.create(tmp_path / "black", WITH_IMAGE, 20.0, "arm")
    rng = np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        writer.start({"task": "a\n| b", "agent": "human"})
        for t in range(60):
            row = frame(rng, FEATURES, t) | {IMAGES + "front": np.zeros((24, 32, 3), np.uint8)}
            writer.tick(row, dict.fromkeys(row, (10**12 + t * 50_000_000, 10**12 + t * 50_000_000)))
        writer.end({"success": True})
    sentence = run(capfd, "push", f"{tmp_path}/black", "ann/black", code=2)
    assert "severe things, first" in sentence
    assert "--despite-findings" in sentence
    assert not hub.repos
    run(capfd, "push", f"{tmp_path}/black", "ann/black", "--despite-findings")
    _, card = card_of(hub, "datasets/ann/black")
    assert "| severe | 0 |" in card
    assert "| a \\| b | 1 |" in card


def test_an_interrupted_push_of_a_store_goes_on(
    hub: HubEndpoint, made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    hub.faults.status["commit/main"] = (403, 1)
    assert "may not do that" in run(capfd, "push", f"{made}/data", "ann/lift", code=1)
    (staged,) = (tmp_path / "cache" / "push").iterdir()
    assert set(hub.files("datasets/ann/lift")) == {".gitattributes"}
    monkeypatch.setattr("ulna.robot.hub.staging.export_lerobot", None)  # a second export would fail
    run(capfd, "push", f"{made}/data", "ann/lift")
    assert len(hub.uploads) == len(set(hub.uploads))
    assert not staged.exists()


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["push", "{made}/data", "lift"], 1, "write OWNER/NAME"),
        (["push", "{made}/nothing", "ann/x"], 1, "there is no checkpoint folder"),
        (["push", "{made}", "ann/x"], 2, "neither a dataset nor a checkpoint"),
        (["push", "lerobot:x", "ann/x"], 2, "ulna export --to ulna"),
        (["pull", "ann/nothing"], 1, "shows no model ann/nothing"),
        (["train", "flow", "--data", "hub:ann/nothing", "--out", "{made}/o"], 1, "shows no dataset"),
        (["serve", "hub:ann/nothing", "--port", "0"], 1, "shows no model"),
        (["serve", "hub:nothing", "--port", "0"], 1, "write OWNER/NAME"),
    ],
)
def test_mistakes_are_one_sentence(
    hub: HubEndpoint, made: Path, capfd: pytest.CaptureFixture[str], argv: list[str], code: int, says: str
) -> None:
    assert says in run(capfd, *(a.format(made=made) for a in argv), code=code)


@pytest.mark.slow
def test_lerobot_itself_loads_what_was_pushed(
    hub: HubEndpoint, made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(capfd, "push", f"{made}/data", "ann/lift")
    code = (
        "from lerobot.datasets import LeRobotDataset\n"
        "data = LeRobotDataset('ann/lift', video_backend='pyav')\n"
        f"red = data[40]['{FRONT}'][0].mean() * 255\n"
        "print(len(data), data.num_episodes, data[60]['task'], round(float(red)))\n"
    )
    env = os.environ | {"HF_LEROBOT_HOME": str(tmp_path / "lerobot"), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *words, red = done.stdout.split()
    assert words == ["88", "3", "fold", "1"]
    assert abs(int(red) - 180) < 3
