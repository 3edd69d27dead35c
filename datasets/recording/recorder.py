"""The recorder: takes rows from the control loop in microseconds; another process writes them.

    control process: tick, append  ──►  ring in shared memory  ──►  writing process: encode, log, shards,
    finish

Rows are in the ring when `tick` or `append` returns, and survive a `kill -9` of either process or of both:
the writing process empties the ring when the control process is gone; a killed writing process is started
again; when both are gone, whoever opens the store next empties the ring. When the ring is full, frames are
dropped first. Dropped rows are counted in `dropped` and in the episode, and the next row of their stream is
marked AFTER_DROP."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any, Literal, Self

import numpy as np

from ..episode import StoreError
from ..flags import AFTER_DROP
from ..layout import IN_PROGRESS, next_number
from ..store import EpisodeStore
from .drain import ROW
from .intake import Intake, Row, require_json
from .recovery import recover
from .ring import CLOSE, DISCARD, END, MAX_STREAMS, POINTER, SAMPLES, START, Ring
from .writer import Durability

RING_BYTES = 128 << 20  # two seconds of two 640×480 cameras at 30 Hz
RESTARTS = 3
LOOK_EVERY = 64  # rows between checks of the writing process


class Recorder:
    """Like `writer.EpisodeWriter`: `start`, `tick` and `append`, then `end` or `discard`; `close` at last.

    overflow: what happens while the ring is full: "drop" for a robot, which cannot wait; "wait" for a
    simulator, which can. `append` may be called from several threads. Raises StoreError when the disk cannot
    be written.
    """

    def __init__(
        self,
        store: EpisodeStore,
        durability: Durability = "process",
        own_rate: Collection[str] = (),
        overflow: Literal["drop", "wait"] = "drop",
        ring_bytes: int = RING_BYTES,
    ) -> None:
        self.store, self.durability, self.overflow = store, durability, overflow
        self._intake = Intake(store.features, store.storage, own_rate)
        if len(self._intake.streams) > MAX_STREAMS:
            raise StoreError(f"a recorder takes {MAX_STREAMS} streams, not {len(self._intake.streams)}")
        self._is_frame = [bool(s.kind) for s in self._intake.streams]
        self._guard = threading.Lock()
        self._episode = 0
        self._rows = self._restarts = 0
        with contextlib.ExitStack() as resources:
            self._lock = resources.enter_context(store.recording())
            in_progress = store.path / IN_PROGRESS
            try:
                in_progress.mkdir(exist_ok=True)
                _, problems = recover(store.path)
                if (in_progress / POINTER).exists():  # only this file names the ring
                    raise StoreError(f"cannot record into {store.path} yet: {problems[0]}")
                self._ring = Ring.create(ring_bytes, in_progress)
                resources.callback(self._ring.close)
            except OSError as error:
                raise StoreError(f"cannot record into {store.path}: {error.strerror or error}") from error
            # a list, so that `_let_go` finds the process that was started last
            self._process = [self._spawn()]
            # if `close` is forgotten: the writing process sees the end of its pipe, empties the ring and ends
            self._release = weakref.finalize(self, _let_go, self._process, resources.pop_all())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, meta: Mapping[str, Any]) -> None:
        """Begin an episode. meta: JSON values; `task` is the instruction in words."""
        if self._episode:
            raise StoreError("an episode is being written already: end or discard it first")
        if not self._release.alive:
            raise StoreError("this recorder was closed: make a new one")
        require_json(meta)
        if self._ring.failed:
            self._ring.failed = False
            self._respawn()
        self._intake.begin(next_number(self.store.path))
        self._ring.dropped[:] = 0
        self._after_drop = [False] * len(self._is_frame)
        self._rows = 0
        self._episode = secrets.randbits(48) or 1
        header = {"meta": dict(meta), "streams": [asdict(s) for s in self._intake.streams]}
        self._must_put(START, json.dumps(header).encode())

    def tick(
        self,
        values: Mapping[str, np.ndarray],
        times_ns: Mapping[str, tuple[int, int]],
        flags: Mapping[str, int] | None = None,
    ) -> None:
        """Append one row of every feature, with `action.requested` if given; see `EpisodeWriter.tick`."""
        self._put(lambda: self._intake.tick(values, times_ns, flags))

    def append(
        self, key: str, value: np.ndarray, t_capture_ns: int, t_receive_ns: int, flags: int = 0
    ) -> None:
        """Append one row of one stream."""
        row = self._intake.single(key, value, t_capture_ns, t_receive_ns, flags)
        self._put(lambda: [row])

    def missed(self, key: str, rows: int) -> None:
        """Note that `rows` rows of the stream `key` were lost before they came here: they count as dropped,
        and the next row is marked AFTER_DROP."""
        with self._guard:
            self._require_started()
            if rows > 0:
                stream = self._intake.number(key)
                self._ring.dropped[stream] += rows
                self._after_drop[stream] = True

    def end(self, meta: Mapping[str, Any]) -> None:
        """Finish the episode, and wait until it is in the store. An episode without rows is discarded."""
        require_json(meta)
        self._conclude(END, json.dumps(dict(meta)).encode())

    def interrupt(self, reason: str) -> None:
        """End the episode in progress, if any, and mark it as interrupted by `reason`."""
        if self._episode:
            self.end({"interrupted": reason})

    def discard(self) -> None:
        """Forget the episode in progress, if any."""
        if self._episode:
            self._conclude(DISCARD, b"")

    @property
    def dropped(self) -> dict[str, int]:
        """How many rows of each stream this episode (or the last one) lost, because the writing process could
        not keep up or because they were `missed`; streams without loss are left out."""
        counts = self._ring.dropped[: len(self._is_frame)].tolist()
        return {s.key: n for s, n in zip(self._intake.streams, counts, strict=True) if n}

    @property
    def fill(self) -> float:
        """Share of the ring in use, 0..1."""
        return self._ring.share_used

    @property
    def writer_pid(self) -> int:
        """The number of the writing process."""
        return self._process[0].pid

    def flush(self) -> None:
        """Wait until everything appended so far is in the store's files."""
        with self._guard:
            self._wait_for_all()

    def close(self) -> None:
        """Let another writer have the store. An episode in progress is kept as interrupted."""
        if not self._release.alive:
            return
        try:
            if not self._ring.failed:
                self.interrupt("the recorder was closed")
                self._must_put(CLOSE, b"")
                while self._process[0].wait() != 0 and self._ring.path.exists():
                    self._check_process(at_once=True)  # it died: start another one
        finally:
            self._release()
            self.store.refresh()

    def _require_started(self) -> None:
        if not self._episode:
            raise StoreError("no episode has been started")
        if self._ring.failed:
            self._give_up()

    def _put(self, make: Callable[[], list[Row]]) -> None:
        """Put rows into the ring. Frames are copied outside the guard, so that a tick does not wait for a
        camera's thread. A Ctrl-C may come anywhere in here; `abandon` then spares the writing process from
        waiting for an entry that nobody fills."""
        try:
            with self._guard:
                try:
                    parts, place = self._make_room(make)
                except BaseException:
                    self._ring.abandon()
                    raise
            if place is not None:
                self._ring.fill(place, parts)
        except BaseException:
            self._ring.abandon()
            raise

    def _make_room(self, make: Callable[[], list[Row]]) -> tuple[list[bytes | np.ndarray], int | None]:
        self._require_started()
        rows = make()
        self._check_process()
        parts = self._parts(rows)
        place = self._reserve(rows, parts)
        if place is None and self.overflow == "wait":
            places: list[int | None] = [None]

            def has_place() -> bool:
                places[0] = self._reserve(rows, parts)
                return places[0] is not None

            self._wait(has_place)
            place = places[0]
        elif place is None:
            small = [r for r in rows if not self._is_frame[r.stream]]
            drops = rows
            if small and len(small) < len(rows):
                parts = self._parts(small)
                place = self._reserve(small, parts)
                drops = rows if place is None else [r for r in rows if self._is_frame[r.stream]]
            for row in drops:
                self._ring.dropped[row.stream] += 1
                self._after_drop[row.stream] = True
        return parts, place

    def _parts(self, rows: list[Row]) -> list[bytes | np.ndarray]:
        parts: list[bytes | np.ndarray] = []
        for r in rows:
            shape = (*r.value.shape, 0, 0, 0, 0)[:4] if self._is_frame[r.stream] else (0, 0, 0, 0)
            flags = r.flags | AFTER_DROP if self._after_drop[r.stream] else r.flags
            parts += (
                ROW.pack(r.stream, flags, r.value.nbytes, r.t_capture_ns, r.t_receive_ns, *shape),
                r.value,
            )
        return parts

    def _reserve(self, rows: list[Row], parts: list[bytes | np.ndarray]) -> int | None:
        spare = self._ring.capacity // 32 if any(self._is_frame[r.stream] for r in rows) else 0
        place = self._ring.reserve(SAMPLES, self._episode, parts, spare)
        if place is not None:
            for r in rows:
                self._after_drop[r.stream] = False
        return place

    def _must_put(self, kind: int, payload: bytes) -> None:
        with self._guard:
            self._wait(lambda: self._ring.put(kind, self._episode, [payload]))

    def _conclude(self, kind: int, payload: bytes) -> None:
        with self._guard:
            if not self._episode:
                raise StoreError("no episode has been started")
            self._wait(lambda: self._ring.put(kind, self._episode, [payload]))
            self._episode = 0  # with the guard held: later rows of other threads are refused
        self._wait_for_all()
        self.store.refresh()

    def _wait_for_all(self) -> None:
        end = self._ring.write_position
        self._wait(lambda: self._ring.free_position >= end)

    def _wait(self, ready: Any) -> None:
        while not ready():
            self._check_process(at_once=True)
            time.sleep(0.001)

    def _check_process(self, at_once: bool = False) -> None:
        """Restart the writing process if it died. Raises StoreError if it cannot write."""
        self._rows += 1
        if at_once or self._rows % LOOK_EVERY == 0:
            if self._ring.failed:
                self._give_up()
            if self._process[0].poll() is not None:
                self._respawn()

    def _give_up(self) -> None:
        process, self._episode = self._process[0], 0
        process.wait()
        assert process.stdout is not None
        reason = (
            process.stdout.read().decode().strip() or f"the writing process ended with {process.returncode}"
        )
        raise StoreError(
            f"cannot write to {self.store.path}: {reason}; the episode in progress is cut off, its rows "
            "come back when the dataset is opened with room to write; finished episodes are intact"
        )

    def _respawn(self) -> None:
        self._restarts += 1
        if self._restarts > RESTARTS:
            self._ring.failed = True
            self._episode = 0
            raise StoreError(
                f"cannot write to {self.store.path}: the writing process ended {self._restarts} times (exit "
                f"code {self._process[0].returncode}); what was recorded comes back when the dataset is "
                "opened"
            )
        _close_pipes(self._process[0])
        self._process[0] = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        # -P: no module of the current folder stands in for one of Python's
        command = [sys.executable, "-P", "-m", "ulna.datasets.recording.process"]
        return subprocess.Popen(
            [*command, str(self.store.path), str(self._ring.path), self.durability],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._lock.fileno],  # it keeps the store's lock when this process is killed
            start_new_session=True,  # Ctrl-C is for the control process
        )


def _let_go(process: list[subprocess.Popen[bytes]], resources: contextlib.ExitStack) -> None:
    _close_pipes(process[0])
    process[0].wait()
    resources.close()


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
