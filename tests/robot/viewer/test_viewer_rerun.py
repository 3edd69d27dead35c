"""Episodes written for Rerun: read back stream by stream, and nothing is left where one is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from contracts.viewer import FAR, FRAMES, TICKS, frame_times_ns, picture_of

from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, REQUESTED, STATE
from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main
from ulna.robot.viewer.rerun_export import write_rrd


def test_rerun_reads_back_every_stream_at_its_capture_times(
    store: EpisodeStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import rerun as rr

    out = tmp_path / "new" / "out.rrd"
    assert main(["data", "view", str(store.path), "--rerun", str(out), "--episodes", "0,2", "--json"]) == 0
    rows = 4 * TICKS + 2 * FRAMES
    assert json.loads(capfd.readouterr().out) == {"rrd": str(out), "episodes": 2, "rows": 2 * rows}
    assert [p.name for p in out.parent.iterdir()] == ["out.rrd"]
    reader = rr.chunk.RrdReader(out)
    recordings = reader.recordings()
    assert [r.recording_id for r in recordings] == [store.episodes[i].path.name for i in (0, 2)]
    assert len(reader.blueprints()) == 1
    batches_of: dict[str, list[Any]] = {}
    for chunk in reader.stream(store=recordings[1]):
        batch = chunk.to_record_batch()
        if "time" in batch.schema.names:
            batches_of.setdefault(chunk.entity_path, []).append(batch)

    def column(entity: str, name: str) -> list[Any]:
        batches = sorted(batches_of[entity], key=lambda b: b.column("time")[0].value)
        return [v for b in batches for v in b.column(name)]

    e = store.episodes[2]
    for key, name in ((STATE, "state"), (ACTION, "action"), (REQUESTED, "action.requested")):
        for c, joint in enumerate(("elbow", "grip")):
            values = [v.as_py()[0] for v in column(f"/{name}/{joint}", "Scalars:scalars")]
            np.testing.assert_array_equal(values, e.read(key)[:, c].astype(np.float64))
            assert [v.value for v in column(f"/{name}/{joint}", "time")] == e.times_ns(key)[0].tolist()
            assert [v.value for v in column(f"/{name}/{joint}", "received")] == e.times_ns(key)[1].tolist()
    assert [v.value for v in column("/images/top", "time")] == frame_times_ns().tolist()
    blobs = [bytes(v.as_py()[0]) for v in column("/images/top", "EncodedImage:blob")]
    pixels = cv2.imdecode(np.frombuffer(blobs[20], np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    assert np.abs(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(int) - picture_of(20)).mean() < 8
    blobs = [bytes(v.as_py()[0]) for v in column("/depth/top", "EncodedDepthImage:blob")]
    depth = cv2.imdecode(np.frombuffer(blobs[20], np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(depth, e.read_frames(FAR, [20])[0])
    assert column("/depth/top", "EncodedDepthImage:meter")[0].as_py() == [pytest.approx(0.001)]


def test_rerun_leaves_nothing_when_a_stream_is_damaged(store: EpisodeStore, tmp_path: Path) -> None:
    shutil.rmtree(store.episodes[1].path / STATE / "value" / "c")
    with pytest.raises(StoreError, match=r"episode 1: .*cannot be read"):
        write_rrd(store, tmp_path / "o" / "x.rrd")
    assert list((tmp_path / "o").iterdir()) == []
