"""The demos from end to end, in small: the real commands in processes of their own."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ulna.datasets.features import ACTION, STATE
from ulna.datasets.store import EpisodeStore
from ulna.robot.demos.images import demo_images
from ulna.robot.demos.phases import PeakMemory, fresh, portable
from ulna.robot.demos.real import demo_real
from ulna.robot.demos.sim import demo_sim
from ulna.robot.demos.twin import demo_twin


def lerobot_folder(root: Path, episodes: int) -> Path:
    """LeRobot v2.1, two joints that swing, no cameras."""
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    for i in range(episodes):
        t = np.arange(40)
        swing = np.stack([np.sin(0.1 * t + i), np.cos(0.07 * t)], 1).astype(np.float32)
        columns = {STATE: list(swing), ACTION: list(np.roll(swing, -1, 0)), "timestamp": t / 20}
        columns |= {"episode_index": np.full(40, i), "task_index": np.zeros(40, int)}
        pq.write_table(pa.table(columns), root / f"data/chunk-000/episode_{i:06d}.parquet")
    vector = {"dtype": "float32", "shape": [2], "names": ["left", "right"]}
    info = {
        "codebase_version": "v2.1",
        "robot_type": "swing",
        "fps": 20,
        "total_episodes": episodes,
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "features": {STATE: vector, ACTION: vector},
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "swing"}))
    return root


def test_published_commands_name_no_folder_of_a_twin() -> None:
    command = "ulna record --robot '/run/user 1/twins/so101-1/robot.toml' --out runs/x --task 'pick it up'"
    assert portable(command) == "ulna record --robot robot.toml --out runs/x --task 'pick it up'"


def test_the_sim_demo_from_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert demo_sim(out, demonstrations=2, steps=2, episodes=1) == 1, "two steps of training lift nothing"
    output, err = capfd.readouterr()
    assert "ulna: only 0 of 1 succeeded, the demo asks for 1" in err
    assert "0 of 1 succeeded" in output
    assert float(re.findall(r"together ([\d.]+) GiB", output.replace("\n", " "))[0]) > 0.1
    commands = [line[2:] for line in err.splitlines() if line.startswith("$ ")]
    assert [c.split()[1] for c in commands] == [
        "record",
        "train",
        "serve",
        "evaluate",
        "evaluate",
        "evaluate",
    ]
    report = (out / "report.html").read_text()
    assert all(c in report for c in commands)
    assert "data:video/mp4" in report
    assert "expert on the same seeds: 1 of 1" in report
    assert "hold on the same seeds: 0 of 1" in report
    port = int(re.findall(r"ws://127\.0\.0\.1:(\d+)", commands[3])[0])
    with socket.socket() as s:
        assert s.connect_ex(("127.0.0.1", port)) != 0, "the server is gone"


def test_the_demo_from_pictures_from_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert demo_images(out, demonstrations=1, steps=2, episodes=1) == 1
    assert "ulna: only 0 of 1 succeeded, the demo asks for 1" in capfd.readouterr().err
    seen = json.loads((out / "flow/features.json").read_text())
    assert "observation.environment_state" not in seen, "it knows nothing of the scene"
    assert {k for k in seen if "images" in k} == {"observation.images.front", "observation.images.wrist"}
    assert "data:video/mp4" in (out / "report.html").read_text()


def test_the_real_demo_from_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert demo_real(lerobot_folder(tmp_path / "few", 2), out, steps=2) == 1
    assert "needs at least 3" in capfd.readouterr().err
    assert demo_real(lerobot_folder(tmp_path / "enough", 3), out, steps=2) == 0
    assert "error relative to the joints' spread: policy" in capfd.readouterr().out
    assert json.loads((out / "flow/train.json").read_text())["episodes"] == [0]
    assert json.loads((out / "flow/validation/open-loop.json").read_text())["episodes"] == [1, 2]
    page = (out / "report.html").read_text()
    assert "On episodes it has not seen" in page
    assert "swing: open loop" in page


@pytest.mark.realtime
def test_the_twin_demo_from_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert demo_twin(out, demonstrations=1, steps=2, episodes=1, seconds=1) == 1
    output, err = capfd.readouterr()
    assert "ulna: only 0 of 1 succeeded, the demo asks for 1" in err
    assert "0 of 1 succeeded" in output
    commands = [line[2:] for line in err.splitlines() if line.startswith("$ ")]
    assert [c.split()[1] for c in commands] == ["twin", "record", "data", "train", "twin", "serve", "deploy"]
    page = (out / "report.html").read_text()
    assert all(c in page for c in commands)
    assert "Measured rates of the recording: " in page
    recorded, rolled_out = EpisodeStore.open(out / "data"), EpisodeStore.open(out / "rollouts")
    assert [e.attrs["success"] for e in (*recorded.episodes, *rolled_out.episodes)] == [True, False]


@pytest.mark.realtime
def test_a_terminated_demo_leaves_no_process(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "ulna.robot.demos.run", "sim", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list((out / "data" / "episodes").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not [c for c in children if Path(f"/proc/{c}").exists()]


def test_a_demo_removes_only_what_a_demo_made(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    with pytest.raises(SystemExit, match=r"holds thesis\.txt, which the demo did not make"):
        fresh(mine)
    demo = tmp_path / "demo"
    fresh(demo)
    (demo / "data").mkdir()
    (demo / "data" / "old").touch()
    (demo / "report.html").touch()
    (demo / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"holds notes\.txt"):
        fresh(demo)
    assert (demo / "data" / "old").exists(), "refused before anything is removed"
    (demo / "notes.txt").unlink()
    fresh(demo)
    assert [p.name for p in demo.iterdir()] == [".made-by-ulna-demo"]


def test_peak_memory_counts_children() -> None:
    memory = PeakMemory()
    code = "x = bytearray(300 << 20); import time; time.sleep(2)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert memory.peak_bytes > 300 << 20
