"""Cameras and joints recorded at their own rate: every frame and reading, not only those that a control tick
saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from ..datasets.features import ACTION, DEPTH, IMAGES, STATE
from ..datasets.flags import INVALID
from ..datasets.recording.recorder import Recorder
from ..drivers.arm import Arm
from ..drivers.camera import depth_of
from ..drivers.sample import Backlog, Sample
from .robot import Robot


@runtime_checkable
class RowStream(Backlog, Protocol):
    """A camera, its depth, or the joints of an arm, that keeps its last frames or readings."""

    def latest(self) -> Sample: ...


class JointReadings:
    """The readings of an arm, its older ones as float32, the feature's type. backlog: the same arm, as what
    keeps its older readings."""

    def __init__(self, arm: Arm, backlog: Backlog) -> None:
        self.arm, self.backlog = arm, backlog

    def latest(self) -> Sample:
        return self.arm.read()

    def since(self, after_seq: int) -> list[Sample]:
        return [replace(s, data=s.data.astype(np.float32)) for s in self.backlog.since(after_seq)]


def own_rate(robot: Robot) -> dict[str, RowStream]:
    """By feature key, the streams that can bring all their rows. Simulated devices, which are asked once a
    tick, cannot, nor can several arms, whose joints make one row."""
    streams: dict[str, RowStream] = {}
    if len(robot.arms) == 1 and isinstance(arm := next(iter(robot.arms.values())), Backlog):
        streams[STATE] = JointReadings(arm, arm)
    for name, camera in robot.cameras.items():
        for key, stream in ((IMAGES + name, camera), (DEPTH + name, depth_of(camera))):
            if isinstance(stream, RowStream):
                streams[key] = stream
    return streams


class OwnRate:
    """Puts rows into a recorder at the streams' own rate: at every tick, those up to the one that the agent
    saw.

    Training takes for a tick the newest row received by then, so that must be the row that the agent saw. A
    row that was captured but could not be read yet waits for the next tick, and counts as received after the
    present one. Rows that the sequence skips, because the camera lost them or the loop was busy for longer
    than the stream keeps its rows, count as dropped."""

    def __init__(self, recorder: Recorder, streams: Mapping[str, RowStream]) -> None:
        self.recorder, self.streams = recorder, dict(streams)

    def start(self) -> None:
        """An episode begins, with the frame that its first tick sees."""
        self._last = {key: stream.latest().seq - 1 for key, stream in self.streams.items()}
        self._captured_ns: dict[str, int] = {}
        self._tick_ns: int | None = None

    def tick(
        self,
        values: Mapping[str, np.ndarray],
        times_ns: Mapping[str, tuple[int, int]],
        flags: Mapping[str, int],
    ) -> None:
        """After the tick's own rows."""
        for key, stream in self.streams.items():
            capture_ns, receive_ns = times_ns[key]
            fresh = stream.since(self._last[key])
            older = [f for f in fresh if f.t_capture_ns < capture_ns]
            for f in older:
                if self._tick_ns is not None:
                    mark = 0 if np.all(f.valid) else INVALID
                    self._put(key, f.seq, f.data, f.t_capture_ns, f.t_receive_ns, mark)
                else:
                    self._last[key] = f.seq
            if self._captured_ns.get(key) == capture_ns:
                continue
            newer = fresh[len(older) :]
            # where the agent thought for long, the frame that it saw is gone from the camera's memory, its
            # number with it
            remembered = newer and newer[0].t_capture_ns == capture_ns
            seq = newer[0].seq if remembered else self._last[key] + 1
            self._put(key, seq, values[key], capture_ns, receive_ns, flags.get(key, 0))
            self._captured_ns[key] = capture_ns
        self._tick_ns = times_ns[ACTION][0]

    def _put(
        self, key: str, seq: int, value: np.ndarray, capture_ns: int, receive_ns: int, flags: int
    ) -> None:
        if self._tick_ns is not None:
            self.recorder.missed(key, seq - self._last[key] - 1)
            receive_ns = max(receive_ns, self._tick_ns + 1)
        self.recorder.append(key, value, capture_ns, receive_ns, flags)
        self._last[key] = seq
