"""Which browser page drives, and what its operator's hand last asked for. This module does no input or
output; `drivers.hands.browser` does.

Messages are JSON objects. From the page: `hand` (what is pressed and how far it is moved), `event` (a button
of the episode), `take` (drive in place of a page that holds nothing), `ping`. To the page: `state`, and
`robot`, which says what it has: joints and cameras."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..screen import Screen
from ..teleoperator import AGAIN, DROP_LAST, FAILURE, FINISH, SUCCESS, TAKE, Hand

EVENTS = (FINISH, SUCCESS, FAILURE, AGAIN, DROP_LAST, TAKE)
FARTHEST_M = 2.0  # no hand reaches further from where it began
LISTENING_NS = 1_000_000_000
WINDOW_NS = 5_000_000_000


@dataclass(frozen=True)
class _HandMessage:
    """The newest `hand` message. clutch: number of the press; with a new number the displacement starts again
    from zero."""

    active: bool = False
    clutch: int = 0
    linear: np.ndarray = field(default_factory=lambda: np.zeros(3))  # of full speed, in [-1, 1]
    angular: np.ndarray = field(default_factory=lambda: np.zeros(3))
    displacement: np.ndarray | None = None
    rotation: np.ndarray | None = None
    gripper: float | None = None
    t_ns: int = 0


class Lateness:
    """How late a message came, ns, compared with the fastest one of the last seconds, by its sender's clock.

    A message that waited in a queue describes a hand that may have let go since. The fastest message is taken
    of two windows of 5 s: so a sender's clock that drifts, or stops while the device sleeps, makes messages
    late for no longer than that."""

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
    """The open pages by number. The first one drives; when it leaves, the page that has been open longest
    does, with its next press. Not for several threads at once.

    screen: what the pages show. drives: whether a page can move the robot at all; else all of them look."""

    def __init__(
        self,
        timeout_s: float,
        speed_m_s: float,
        turn_rad_s: float,
        screen: Screen | None = None,
        drives: bool = True,
    ) -> None:
        self.timeout_ns = round(timeout_s * 1e9)
        self.speed_m_s, self.turn_rad_s = speed_m_s, turn_rad_s
        self.screen, self.drives = Screen() if screen is None else screen, drives
        self.pages: dict[int, str] = {}  # in the order they came
        self._driver: int | None = None
        self._presses: dict[int, int] = {}  # what pages that only watch press meanwhile, by page
        self._events: list[str] = []
        self._listened_ns = -LISTENING_NS - 1
        self._start_over()

    def _start_over(self) -> None:
        """Forget everything of the last driver."""
        self._newest = _HandMessage()
        self._void: int | None = None  # a press that was broken off; it moves nothing any more
        self._read_clutch: int | None = None
        self._lateness = Lateness()

    def join(self, page: int, who: str) -> None:
        self.pages[page] = who
        if self._driver is None and self.drives:
            self._drive(page)

    def leave(self, page: int) -> None:
        self.pages.pop(page, None)
        self._presses.pop(page, None)
        if page == self._driver:
            self._drive(heir := next(iter(self.pages), None))
            if heir is not None:
                self._void = self._presses.get(heir)  # whoever pressed it did not mean to drive

    def _drive(self, page: int | None) -> None:
        self._driver = page
        self._start_over()

    def hear(self, page: int, text: str, now_ns: int) -> dict[str, Any] | None:
        """Take one message of a page, and return the answer to it, if any. ValueError: the message is
        malformed, and the page must be disconnected."""
        try:
            message = json.loads(text)
            kind = message["kind"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError("this is no message of the page's") from None
        if kind == "ping":
            return {**self.state(page, now_ns), "t": _number(message.get("t"), 0, 1e15)}
        if kind == "take":
            if self.drives and not self._is_held(now_ns):
                self._drive(page)
            return self.state(page, now_ns)
        if page != self._driver:  # only watches
            if kind == "hand":
                self._presses.pop(page, None)
                if (newest := _parse(message, now_ns)).active:
                    self._presses[page] = newest.clutch
            return None
        if kind == "event":
            if message.get("event") not in EVENTS:
                raise ValueError(f"an event is one of {', '.join(EVENTS)}")
            label = self.screen.buttons.get(message["event"])
            if label is None:
                return None  # the button went away while it was pressed
            self._events.append(message["event"])
            del self._events[:-16]
            return {"kind": "event", "event": message["event"], "label": label}
        if kind != "hand":
            raise ValueError("a message is of kind hand, event, take or ping")
        self._hear_hand(message, now_ns)
        return None

    def _hear_hand(self, message: dict[str, Any], now_ns: int) -> None:
        newest = _parse(message, now_ns)
        late = self._lateness.of(_number(message.get("t"), 0, 1e15) * 1e6, now_ns) > self.timeout_ns
        self._lapse(now_ns)
        if newest.active and late:
            self._void = newest.clutch
        self._newest = newest

    def _lapse(self, now_ns: int) -> None:
        """End a press that has been silent for too long, so that the arm does not jump to where the hand went
        meanwhile."""
        if self._newest.active and now_ns - self._newest.t_ns > self.timeout_ns:
            self._void = self._newest.clutch

    def _is_held(self, now_ns: int) -> bool:
        self._lapse(now_ns)
        return self._driver is not None and self._newest.active and self._newest.clutch != self._void

    def read(self, now_ns: int) -> Hand:
        """What the hand asks for. A press that directly follows another one first reads as not active once,
        so that the caller notices that it is a new one."""
        self._listened_ns = now_ns
        events, self._events = tuple(self._events), []
        newest = self._newest
        active = self._is_held(now_ns)
        if not active:
            self._read_clutch = None
        elif self._read_clutch != newest.clutch:
            first = self._read_clutch is None
            self._read_clutch = newest.clutch
            active = first
        if not active:
            return Hand(False, events=events, t_receive_ns=newest.t_ns)
        return Hand(
            True,
            newest.linear * self.speed_m_s,
            newest.angular * self.turn_rad_s,
            newest.displacement,
            newest.rotation,
            newest.gripper,
            events,
            newest.t_ns,
        )

    def state(self, page: int, now_ns: int) -> dict[str, Any]:
        """The `state` message: that of the screen, and these. role: drives, watches (and could drive) or
        looks. holder: who drives. held: whether the clutch is held. lapsed: whether the present press no
        longer counts, so that the operator must press anew. robot: whether a robot reads."""
        held = self._is_held(now_ns)
        role = "looks" if not self.drives else "drives" if page == self._driver else "watches"
        return {
            "kind": "state",
            "role": role,
            "holder": self.pages.get(self._driver, "") if self._driver is not None else "",
            "held": held,
            "lapsed": self._newest.active and self._newest.clutch == self._void,
            "robot": now_ns - self._listened_ns <= LISTENING_NS,
            **self.screen.state(),
        }


def _parse(message: dict[str, Any], now_ns: int) -> _HandMessage:
    if not isinstance(message.get("active"), bool):
        raise ValueError("active must be true or false")  # noqa: TRY004  the page sent it, no caller
    gripper, displacement, rotation = (message.get(k) for k in ("gripper", "displacement", "rotation"))
    return _HandMessage(
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
    """The rotation matrix `(3, 3)` of a quaternion `(4,)` x, y, z, w. ValueError unless its length is about
    one."""
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
