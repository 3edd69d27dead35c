"""What comes into a recording: rows checked against the store's features, with what is not new left out or
marked."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..codec import kind_for
from ..episode import StoreError
from ..features import ACTION, REQUESTED, Feature, Features, is_frames
from ..flags import STALE
from .log import Stream


@dataclass(frozen=True, slots=True)
class Row:
    """One row of stream number `stream`, not yet encoded."""

    stream: int
    flags: int
    t_capture_ns: int
    t_receive_ns: int
    value: np.ndarray


class Intake:
    """Of one episode after another: `begin`, then `tick` and `one`. StoreError names the episode, frame and
    key that do not fit. own_rate: features that come through `one` at their own rate, so that a tick need not
    bring them."""

    def __init__(
        self, features: Features, storage: Mapping[str, Mapping[str, Any]], own_rate: Collection[str] = ()
    ) -> None:
        self.features: dict[str, Feature] = {**features, REQUESTED: features[ACTION]}
        if unknown := [k for k in own_rate if k not in self.features]:
            raise StoreError(f"the store has no feature {unknown[0]}; it has {', '.join(features)}")
        self.ticked = [k for k in features if k not in own_rate]
        self.shrinks = {k for k, how in storage.items() if how.get("resize")}
        self.streams = [
            Stream(
                key,
                f.shape,
                f.dtype,
                kind_for(f.dtype, storage.get(key, {})) if is_frames(key) else None,
                int(storage.get(key, {}).get("quality", 95)),
                key not in own_rate,
            )
            for key, f in self.features.items()
        ]
        self._number = {s.key: i for i, s in enumerate(self.streams)}
        self.begin(0)

    def begin(self, episode: int) -> None:
        self.episode, self.ticks = episode, 0
        self._captured: dict[str, int] = {}
        self._with_request = False

    def tick(
        self,
        values: Mapping[str, np.ndarray],
        times_ns: Mapping[str, tuple[int, int]],
        flags: Mapping[str, int] | None = None,
    ) -> list[Row]:
        """A row of every feature, and of `action.requested` if it is given. An image that was captured when
        the last one was is the last one, and left out; a vector is kept and marked STALE."""
        where = f"episode {self.episode}, frame {self.ticks}"
        keys = [*self.ticked, REQUESTED] if REQUESTED in values else self.ticked
        if self.ticks and self._with_request != (REQUESTED in values):
            raise StoreError(f"{where}: its streams differ from those of the episode's first frame")
        rows = []
        for key in keys:
            if key not in values:
                raise StoreError(f"{where}: no value for {key}")
            value = self._check(values[key], key, where)
            if key not in times_ns:
                raise StoreError(f"{where}: no times for {key}")
            t_capture, t_receive = times_ns[key]
            mark = flags.get(key, 0) if flags else 0
            if self._captured.get(key) == t_capture:
                if is_frames(key):
                    continue
                mark |= STALE
            rows.append(Row(self._number[key], mark, t_capture, t_receive, value))
        for row in rows:
            self._captured[self.streams[row.stream].key] = row.t_capture_ns
        self._with_request = REQUESTED in values
        self.ticks += 1
        return rows

    def one(self, key: str, value: np.ndarray, t_capture_ns: int, t_receive_ns: int, flags: int = 0) -> Row:
        """One row of one stream."""
        number = self.number(key)
        value = self._check(value, key, f"episode {self.episode}, {key} at {t_capture_ns} ns")
        return Row(number, flags, t_capture_ns, t_receive_ns, value)

    def number(self, key: str) -> int:
        if key not in self._number:
            raise StoreError(
                f"episode {self.episode}: the store has no feature {key}; it has {', '.join(self.features)}"
            )
        return self._number[key]

    def _check(self, value: np.ndarray, key: str, where: str) -> np.ndarray:
        value, feature = np.asarray(value), self.features[key]
        if value.shape != feature.shape:
            larger = value.ndim == len(feature.shape) and value.shape[2:] == feature.shape[2:]
            if not (key in self.shrinks and larger and min(value.shape[:2]) > 0):
                raise StoreError(
                    f"{where}: {key} has shape {value.shape}, the store's feature has {feature.shape}"
                )
        if value.dtype != feature.dtype:
            raise StoreError(f"{where}: {key} is {value.dtype}, the store's feature is {feature.dtype}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise StoreError(f"{where}: {key} holds a value that is not finite")
        return value


def require_json(meta: Mapping[str, Any]) -> None:
    try:
        json.dumps(dict(meta), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"what is noted about an episode must be JSON: {error}") from None


def fit(frame: np.ndarray, stream: Stream) -> np.ndarray:
    """`frame` `(h, w[, C])` in the stream's shape: images by area, depth by the nearest pixel, which invents
    no distance."""
    if frame.shape == stream.shape:
        return frame
    import cv2

    how = cv2.INTER_NEAREST if frame.dtype == np.uint16 else cv2.INTER_AREA
    resized = cv2.resize(frame, (stream.shape[1], stream.shape[0]), interpolation=how)
    return resized.reshape(stream.shape)
