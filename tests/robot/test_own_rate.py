"""Cameras recorded at their own rate: every frame once, what was lost counted, and what the agent saw found
again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.servo_arm import bench, running

from ulna.datasets.checks.check import check_episode
from ulna.datasets.features import ACTION, DEPTH, IMAGES, STATE, Feature
from ulna.datasets.flags import AFTER_DROP
from ulna.datasets.info import describe
from ulna.datasets.reading.windows import Windows, WindowSpec
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.drivers.cameras import opencv
from ulna.drivers.clock import MonotonicClock
from ulna.drivers.sample import Sample
from ulna.drivers.twins.mjpeg import MjpegTwin, read_mark, wandering_bars
from ulna.robot.agent import HoldAgent
from ulna.robot.config import Rig, load_robot
from ulna.robot.record import record
from ulna.robot.robot import Observation, Robot

FRONT, FAR = IMAGES + "front", DEPTH + "front"
SIZE = (48, 64)


class Scripted:
    """A camera whose frames come when the test says, and that keeps the last `capacity`. Frame n is filled
    with n."""

    name, height, width, fps = "front", *SIZE, 100.0
    intrinsics = health = window = next = None

    def __init__(self, channels: int | None = 3, capacity: int = 8) -> None:
        self.frames: list[Sample] = []
        self.channels, self.capacity, self.seq = channels, capacity, -1
        self.depth_scale_m, self.depth = 0.001, None
        self.take()
        self.depth: Scripted | None = Scripted(None, capacity) if channels else None

    def open(self) -> None: ...

    def close(self) -> None: ...

    def take(self, skipped: int = 0, received_ns: int | None = None, captured_ns: int | None = None) -> None:
        """A frame that can be read from now on."""
        now = time.monotonic_ns()
        received_ns = now if received_ns is None else received_ns
        captured_ns = received_ns - 1000 if captured_ns is None else captured_ns
        self.seq += 1 + skipped
        shape, dtype = ((*SIZE, 3), np.uint8) if self.channels else (SIZE, np.uint16)
        self.frames.append(Sample(np.full(shape, self.seq, dtype), captured_ns, received_ns, self.seq))
        del self.frames[: -self.capacity]
        if self.depth is not None:
            self.depth.take(skipped, received_ns, captured_ns)

    def latest(self, max_age_s: float | None = None) -> Sample:
        return self.frames[-1]

    def since(self, after_seq: int) -> list[Sample]:
        return [f for f in self.frames if f.seq > after_seq]


class Notes(HoldAgent):
    """Notes what it saw; `meanwhile` happens while it thinks."""

    def __init__(self, meanwhile: Callable[[int], None], look: Callable[[np.ndarray], int]) -> None:
        self.meanwhile, self.look = meanwhile, look
        self.views: list[int] = []

    def act(self, observation: Observation) -> np.ndarray:
        self.views.append(self.look(observation.values[FRONT]))
        self.meanwhile(len(self.views) - 1)
        return super().act(observation)


def recording(tmp_path: Path, camera: Any, agent: HoldAgent, hz: float, seconds: float) -> EpisodeStore:
    with load_robot("sim:so101", "reach") as rig:
        robot = Robot("r", rig.robot.arms, {"front": camera}, {}, MonotonicClock(), hz)
        camera.open()
        try:
            result = record(Rig(robot, None), agent, tmp_path / "d", 1, task="x", max_seconds=seconds)
        finally:
            camera.close()
    store = EpisodeStore.open(tmp_path / "d")
    assert result.dropped == describe(store)["dropped"]
    return store


def shade(frame: np.ndarray) -> int:
    return int(frame.flat[0])


def mark(frame: np.ndarray) -> int:
    return read_mark(frame)[0]


def training_views(store: EpisodeStore, look: Callable[[np.ndarray], int]) -> list[int]:
    """What training takes for each control tick."""
    windows = Windows(store, WindowSpec(1, 1, keys=(FRONT, STATE), tolerance_s=1e3), cache="none")
    frames = windows.batch(np.arange(len(windows)))[FRONT][:, 0]
    return [look(f) for f in frames]


def test_every_frame_is_kept_once_and_what_was_seen_is_found_again(tmp_path: Path) -> None:
    camera = Scripted()

    def meanwhile(tick: int) -> None:
        for _ in range(tick % 4):  # none, as a camera slower than the loop, to three
            camera.take()

    agent = Notes(meanwhile, shade)
    store = recording(tmp_path, camera, agent, 100.0, 0.12)
    (episode,) = store.episodes
    assert [shade(f) for f in episode.read(FRONT)] == list(range(agent.views[-1] + 1))
    assert [shade(f) for f in episode.read(FAR)] == list(range(agent.views[-1] + 1))
    assert training_views(store, shade) == agent.views
    assert episode.rows(ACTION) == 12
    assert not episode.by_tick(FRONT)
    assert episode.by_tick(STATE)
    assert not describe(store)["dropped"]


def test_a_frame_that_could_not_be_read_yet_was_not_seen(tmp_path: Path) -> None:
    """It is stamped when it arrives, and can be read when it is decoded."""
    camera = Scripted()
    stamps: list[int] = []

    def meanwhile(tick: int) -> None:
        at = (
            time.monotonic_ns() - 3_000_000 if tick else None
        )  # before the observation that is being answered
        at = None if at is None else max(at, camera.frames[-1].t_receive_ns + 1)
        camera.take(received_ns=at)
        stamps.append(camera.frames[-1].t_capture_ns)

    agent = Notes(meanwhile, shade)
    store = recording(tmp_path, camera, agent, 200.0, 0.05)
    (episode,) = store.episodes
    assert agent.views == list(range(10))
    assert training_views(store, shade) == agent.views
    capture, receive = episode.times_ns(FRONT)
    assert capture[1:].tolist() == stamps[:9], "when it was captured is as the camera said"
    assert (receive >= capture).all()


def test_what_the_camera_or_the_loop_loses_is_counted_and_marked(tmp_path: Path) -> None:
    camera = Scripted(capacity=4)

    def meanwhile(tick: int) -> None:
        if tick == 1:
            camera.take(skipped=2)  # the device's own sequence jumps
        elif tick == 3:
            for _ in range(6):  # the agent thinks for longer than frames are kept: what it saw is overwritten
                camera.take()
        else:
            camera.take()

    agent = Notes(meanwhile, shade)
    store = recording(tmp_path, camera, agent, 100.0, 0.08)
    (episode,) = store.episodes
    shades = [shade(f) for f in episode.read(FRONT)]
    assert agent.views == [0, 1, 4, 5, 11, 12, 13, 14]
    assert shades == [0, 1, 4, 5, 9, 10, 11, 12, 13, 14]
    assert training_views(store, shade) == agent.views
    assert episode.attrs["dropped"] == {FRONT: 5, FAR: 5}
    marked = np.flatnonzero(episode.flags(FRONT) & AFTER_DROP)
    assert [shades[i] for i in marked] == [4, 9]
    (finding,) = [f for f in check_episode(store, episode) if f.check == "dropped" and f.stream == FRONT]
    assert "5 rows were lost" in finding.message
    assert "2 places" in finding.message


@pytest.mark.parametrize(("silent_ms", "is_gap"), [(180, False), (300, True)])
def test_a_gap_is_one_that_training_minds(tmp_path: Path, silent_ms: int, is_gap: bool) -> None:
    """A camera of 50 Hz beside a loop of 10 Hz is missed after two periods of the loop, and so it is said."""
    features = {
        ACTION: Feature((1,), "float32", ("j",), ("rad",)),
        FRONT: Feature((*SIZE, 3), "uint8"),
    }
    store = EpisodeStore.create(tmp_path / "d", features, 10.0)
    with EpisodeWriter(store, own_rate=(FRONT,)) as writer:
        writer.start({"task": ""})
        for t in range(0, 3000, 20):
            if not 1010 < t < 1000 + silent_ms:
                writer.append(FRONT, np.full((*SIZE, 3), t % 251, np.uint8), t * 10**6, (t + 1) * 10**6)
            if t % 100 == 0:
                at = (t + 2) * 10**6
                writer.tick({ACTION: np.array([t / 1000], np.float32)}, {ACTION: (at, at)})
        writer.end({})
    gaps = [f for f in check_episode(store, store.episodes[0]) if f.check == "gap"]
    assert [f.stream for f in gaps] == [FRONT] * is_gap
    assert bool(Windows(store, WindowSpec(1, 1, keys=(FRONT,))).left_out) == is_gap
    assert all("a row comes every 20.0 ms" in f.message for f in gaps)


@pytest.mark.realtime
def test_joints_are_recorded_as_often_as_their_bus_is_read(tmp_path: Path) -> None:
    class Reads(HoldAgent):
        def act(self, observation: Observation) -> np.ndarray:
            observed.append(observation.values[STATE].copy())
            target = super().act(observation).copy()
            target[0] += 0.02 * len(observed)  # so that no two readings are alike
            return target

    observed: list[np.ndarray] = []
    with bench("so101", tmp_path) as b, running(b.arm()) as arm:
        robot = Robot("r", {"arm": arm}, {}, {}, MonotonicClock(), 10.0)
        record(Rig(robot, None), Reads(), tmp_path / "d", 1, task="x", max_seconds=1.0)
    store = EpisodeStore.open(tmp_path / "d")
    (episode,) = store.episodes
    assert episode.rows(ACTION) == 10
    assert episode.rows(STATE) > 20, "read at up to 100 Hz"
    assert episode.read(STATE).dtype == np.float32
    assert (np.diff(episode.times_ns(STATE)[0]) > 0).all()
    windows = Windows(store, WindowSpec(1, 1, keys=(STATE,), tolerance_s=1e3))
    np.testing.assert_array_equal(windows.batch(np.arange(10))[STATE][:, 0], observed)


@pytest.mark.realtime
def test_a_network_camera_keeps_its_own_rate(tmp_path: Path) -> None:
    """30 frames a second through the capture process, a loop of 10 Hz: three frames a tick."""
    with MjpegTwin(wandering_bars(120, 160), size=(120, 160), fps=30, paint=True) as twin:
        camera = opencv.make("front", opencv.Config(device=twin.url, height=120, width=160, fps=30))
        agent = Notes(lambda tick: None, mark)
        store = recording(tmp_path, camera, agent, 10.0, 1.5)
        skipped = set(twin.skipped)  # on a busy machine it sends only the newest, and the driver cannot know
    (episode,) = store.episodes
    shades = [mark(f) for f in episode.read(FRONT)]
    dropped = (episode.attrs.get("dropped") or {}).get(FRONT, 0)
    assert len(shades) > 2 * episode.length
    assert shades == sorted(set(shades))
    assert len(set(range(shades[0], shades[-1])) - set(shades) - skipped) == dropped
    assert training_views(store, mark) == agent.views
    assert describe(store)["rates"][FRONT]["hz"] > 20
