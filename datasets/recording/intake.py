"""The door of a recording: checks rows against the store's features, and leaves out or marks those that are
not new."""

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
    """Checks the rows of one episode after another: `begin`, then `tick` and `single`. Raises StoreError that
    names the episode, tick and key that do not fit.

    storage: as in the store's header. own_rate: features that come through `single` at their own rate, so
    that a tick need not bring them."""

    def __init__(
        self, features: Features, storage: Mapping[str, Mapping[str, Any]], own_rate: Collection[str] = ()
    ) -> None:
        self.features: dict[str, Feature] = {**features, REQUESTED: features[ACTION]}
        if unknown := [k for k in own_rate if k not in self.features]:
            raise StoreError(f"the store has no feature {unknown[0]}; it has {', '.join(features)}")
        self.tick_keys = [k for k in features if k not in own_rate]
        self.shrinks = {k for k, settings in storage.items() if settings.get("resize")}
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
        self._last_capture_ns: dict[str, int] = {}
        self._with_request = False

    def tick(
        self,
        values: Mapping[str, np.ndarray],
        times_ns: Mapping[str, tuple[int, int]],
        flags: Mapping[str, int] | None = None,
    ) -> list[Row]:
        """The rows of one control tick: one of every feature, and of `action.requested` if it is given. A
        value with the capture time of the one before is not new: an image is left out, a vector is marked
        STALE."""
        place = f"episode {self.episode}, tick {self.ticks}"
        keys = [*self.tick_keys, REQUESTED] if REQUESTED in values else self.tick_keys
        if self.ticks and self._with_request != (REQUESTED in values):
            raise StoreError(f"{place}: its streams differ from those of the episode's first tick")
        rows = []
        for key in keys:
            if key not in values:
                raise StoreError(f"{place}: no value for {key}")
            value = self._check(values[key], key, place)
            if key not in times_ns:
                raise StoreError(f"{place}: no times for {key}")
            t_capture, t_receive = times_ns[key]
            mark = flags.get(key, 0) if flags else 0
            if self._last_capture_ns.get(key) == t_capture:
                if is_frames(key):
                    continue
                mark |= STALE
            rows.append(Row(self._number[key], mark, t_capture, t_receive, value))
        for row in rows:
            self._last_capture_ns[self.streams[row.stream].key] = row.t_capture_ns
        self._with_request = REQUESTED in values
        self.ticks += 1
        return rows

    def single(
        self, key: str, value: np.ndarray, t_capture_ns: int, t_receive_ns: int, flags: int = 0
    ) -> Row:
        """One row of one stream."""
        number = self.number(key)
        value = self._check(value, key, f"episode {self.episode}, {key} at {t_capture_ns} ns")
        return Row(number, flags, t_capture_ns, t_receive_ns, value)

    def number(self, key: str) -> int:
        """The number of the stream `key`. Raises StoreError if there is none."""
        if key not in self._number:
            raise StoreError(
                f"episode {self.episode}: the store has no feature {key}; it has {', '.join(self.features)}"
            )
        return self._number[key]

    def _check(self, value: np.ndarray, key: str, place: str) -> np.ndarray:
        value, feature = np.asarray(value), self.features[key]
        if value.shape != feature.shape:
            could_shrink = value.ndim == len(feature.shape) and value.shape[2:] == feature.shape[2:]
            if not (key in self.shrinks and could_shrink and min(value.shape[:2]) > 0):
                raise StoreError(
                    f"{place}: {key} has shape {value.shape}, the store's feature has {feature.shape}"
                )
        if value.dtype != feature.dtype:
            raise StoreError(f"{place}: {key} is {value.dtype}, the store's feature is {feature.dtype}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise StoreError(f"{place}: {key} holds a value that is not finite")
        return value


def require_json(meta: Mapping[str, Any]) -> None:
    """Raise StoreError unless `meta` can be written as JSON."""
    try:
        json.dumps(dict(meta), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"what is noted about an episode must be JSON: {error}") from None


def fit(frame: np.ndarray, stream: Stream) -> np.ndarray:
    """`frame` `(h, w[, C])` resized to the stream's shape: images by area; depth by the nearest pixel, so
    that no distance is invented."""
    if frame.shape == stream.shape:
        return frame
    import cv2

    interpolation = cv2.INTER_NEAREST if frame.dtype == np.uint16 else cv2.INTER_AREA
    image = cv2.resize(frame, (stream.shape[1], stream.shape[0]), interpolation=interpolation)
    return image.reshape(stream.shape)
