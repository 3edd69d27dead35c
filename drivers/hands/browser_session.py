"""Who drives through the browser, and what the driver's hand last said. No input or output:
`drivers.hands.browser` does that.

Messages are JSON objects. From the page: `hand` (what is pressed and where to), `event` (a button of the
episode), `take` (drive instead of someone who holds nothing), `ping`. To the page: `state`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..teleoperator import AGAIN, FAILURE, FINISH, SUCCESS, Hand

EVENTS = (FINISH, SUCCESS, FAILURE, AGAIN)
FARTHEST_M = 2.0  # no hand reaches further from where it began
LISTENING_NS = 1_000_000_000
WINDOW_NS = 5_000_000_000


@dataclass(frozen=True)
class _Said:
    """The newest `hand` message. clutch: counts presses; a new number means that the displacement began
    anew."""

    active: bool = False
    clutch: int = 0
    linear: np.ndarray = field(default_factory=lambda: np.zeros(3))  # of full speed, in [-1, 1]
    angular: np.ndarray = field(default_factory=lambda: np.zeros(3))
    displacement: np.ndarray | None = None
    rotation: np.ndarray | None = None
    gripper: float | None = None
    t_ns: int = 0


class Lateness:
    """How much later than the fastest of the last seconds a message came, from its sender's own clock.

    A message that waited in a queue tells of a hand that may have let go since. Two windows of 5 s: the
    sender's clock may drift, or stand still while it sleeps, and is forgiven after that."""

    def __init__(self) -> None:
        self._before: float | None = None
        self._now: float | None = None
        self._began_ns = 0

    def of(self, t_sent_ns: float, now_ns: int) -> float:
        offset = now_ns - t_sent_ns
        if self._now is None or now_ns - self._began_ns > WINDOW_NS:
            self._before, self._now, self._began_ns = self._now, offset, now_ns
        self._now = min(self._now, offset)
        return offset - (self._now if self._before is None else min(self._now, self._before))


class Session:
    """Pages by number. The first one drives; when it leaves, the one that waited longest. Not for several
    threads at once."""

    def __init__(self, timeout_s: float, speed_m_s: float, turn_rad_s: float) -> None:
        self.timeout_ns = round(timeout_s * 1e9)
        self.speed_m_s, self.turn_rad_s = speed_m_s, turn_rad_s
        self.note = ""
        self.pages: dict[int, str] = {}  # in the order they came
        self._driver: int | None = None
        self._events: list[str] = []
        self._listened_ns = -LISTENING_NS - 1
        self._start_over()

    def _start_over(self) -> None:
        """A new driver: nothing of the last one's counts."""
        self._said = _Said()
        self._void: int | None = None  # a press that was broken off; it moves nothing any more
        self._read_clutch: int | None = None
        self._lateness = Lateness()

    def join(self, page: int, who: str) -> None:
        self.pages[page] = who
        if self._driver is None:
            self._drive(page)

    def leave(self, page: int) -> None:
        self.pages.pop(page, None)
        if page == self._driver:
            self._drive(next(iter(self.pages), None))

    def _drive(self, page: int | None) -> None:
        self._driver = page
        self._start_over()

    def hear(self, page: int, text: str, now_ns: int) -> dict[str, Any] | None:
        """Take one message; what to answer it. ValueError: it is none of ours, and the page must be
        dropped."""
        try:
            message = json.loads(text)
            kind = message["kind"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError("this is no message of the page's") from None
        if kind == "ping":
            return {**self.state(page, now_ns), "t": _number(message.get("t"), 0, 1e15)}
        if kind == "take":
            if not self._held(now_ns):
                self._drive(page)
            return self.state(page, now_ns)
        if page != self._driver:
            return None  # only watches
        if kind == "event":
            if message.get("event") not in EVENTS:
                raise ValueError(f"an event is one of {', '.join(EVENTS)}")
            self._events.append(message["event"])
            del self._events[:-16]
            return {"kind": "event", "event": message["event"]}
        if kind != "hand":
            raise ValueError("a message is of kind hand, event, take or ping")
        self._hear_hand(message, now_ns)
        return None

    def _hear_hand(self, message: dict[str, Any], now_ns: int) -> None:
        said = _parse(message, now_ns)
        late = self._lateness.of(_number(message.get("t"), 0, 1e15) * 1e6, now_ns) > self.timeout_ns
        self._lapse(now_ns)
        if said.active and late:
            self._void = said.clutch
        self._said = said

    def _lapse(self, now_ns: int) -> None:
        """A press not heard of for too long is over: where the hand went meanwhile must not be jumped to."""
        if self._said.active and now_ns - self._said.t_ns > self.timeout_ns:
            self._void = self._said.clutch

    def _held(self, now_ns: int) -> bool:
        self._lapse(now_ns)
        return self._driver is not None and self._said.active and self._said.clutch != self._void

    def read(self, now_ns: int) -> Hand:
        """What the hand asks for; a new press reads as let go once, so that nobody misses that it began
        anew."""
        self._listened_ns = now_ns
        events, self._events = tuple(self._events), []
        said = self._said
        active = self._held(now_ns)
        if not active:
            self._read_clutch = None
        elif self._read_clutch != said.clutch:
            first = self._read_clutch is None
            self._read_clutch = said.clutch
            active = first
        if not active:
            return Hand(False, events=events, t_receive_ns=said.t_ns)
        return Hand(
            True,
            said.linear * self.speed_m_s,
            said.angular * self.turn_rad_s,
            said.displacement,
            said.rotation,
            said.gripper,
            events,
            said.t_ns,
        )

    def state(self, page: int, now_ns: int) -> dict[str, Any]:
        """role: drives or watches. holder: who drives. robot: somebody reads. lapsed: the press is void,
        press anew."""
        held = self._held(now_ns)
        return {
            "kind": "state",
            "role": "drives" if page == self._driver else "watches",
            "holder": self.pages.get(self._driver, "") if self._driver is not None else "",
            "held": held,
            "lapsed": self._said.active and self._said.clutch == self._void,
            "robot": now_ns - self._listened_ns <= LISTENING_NS,
            "note": self.note,
        }


def _parse(message: dict[str, Any], now_ns: int) -> _Said:
    if not isinstance(message.get("active"), bool):
        raise ValueError("active must be true or false")  # noqa: TRY004  the page sent it, no caller
    gripper, displacement, rotation = (message.get(k) for k in ("gripper", "displacement", "rotation"))
    return _Said(
        message["active"],
        int(_number(message.get("clutch"), 0, 2**53)),
        _in_ball(_vector(message.get("linear"), 3), 1.0),
        _in_ball(_vector(message.get("angular"), 3), 1.0),
        None if displacement is None else _in_ball(_vector(displacement, 3), FARTHEST_M),
        None if rotation is None else rotation_of(_vector(rotation, 4)),
        None if gripper is None else min(max(_number(gripper, -10, 10), 0.0), 1.0),
        now_ns,
    )


def _number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"a number in {low:g}..{high:g} was expected")
    return float(value)


def _vector(value: Any, size: int) -> np.ndarray:
    if not isinstance(value, list) or len(value) != size:
        raise ValueError(f"{size} numbers were expected")
    return np.array([_number(v, -1e6, 1e6) for v in value])


def _in_ball(v: np.ndarray, radius: float) -> np.ndarray:
    length = float(np.linalg.norm(v))
    return v if length <= radius else v * (radius / length)


def rotation_of(quaternion: np.ndarray) -> np.ndarray:
    """`(3, 3)` of `(4,)` x, y, z, w. ValueError unless its length is about one."""
    length = math.sqrt(float(quaternion @ quaternion))
    if not 0.9 < length < 1.1:
        raise ValueError("a rotation is a quaternion of length 1")
    x, y, z, w = quaternion / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
