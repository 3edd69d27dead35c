"""A device's own clock, mapped to the clock of the robot.

A message that was measured at `device_ns` arrives at `receive_ns`: the difference is the offset of the two
clocks plus the travel time, which is never negative. The message with the shortest travel time tells the
offset best, so the estimate is the least difference over a sliding window. The travel time of that fastest
message cannot be observed and is configured as `latency_s`."""

from __future__ import annotations

from collections import deque


class ClockOffset:
    """Offset from a device's clock to `time.monotonic_ns`, for one stream of messages in the order of their
    arrival.

    latency_s: shortest time from measurement to arrival, s. window_s: length of the sliding window, s. drift:
    how fast the two clocks may diverge, s/s (crystals: 1e-4); an old difference grows by that much per
    second, otherwise the estimate would lag behind a slow device for a whole window. step_s, settle_s: when
    all messages of `settle_s` seconds come later than the estimate by `step_s`, the device's clock was set
    back between two messages. A queue that drains is over sooner than that; its messages keep their old
    times. steps: number of clock steps noticed so far."""

    def __init__(
        self,
        latency_s: float = 0.0,
        window_s: float = 10.0,
        drift: float = 2e-4,
        step_s: float = 0.1,
        settle_s: float = 1.0,
    ) -> None:
        self.latency_ns, self.drift = round(latency_s * 1e9), drift
        self.window_ns, self.step_ns = round(window_s * 1e9), round(step_s * 1e9)
        self.settle_ns = round(settle_s * 1e9)
        self.steps = 0
        # (arrival, difference minus the drift until then): so differences of different arrivals compare. In
        # ascending order, the least first
        self._least: deque[tuple[int, int]] = deque()
        self._device_ns = self._receive_ns = self._capture_ns = 0
        self._late_since: int | None = None
        self._late_least = 0
        self._since_ns = 0  # arrival of the first message that the present offset rests on

    def capture_ns(self, device_ns: int, receive_ns: int) -> int:
        """Time of a message's measurement on the clock of the robot; never after `receive_ns`, never before
        an earlier result.

        device_ns: time of the measurement on the device's clock, with any zero. receive_ns:
        `time.monotonic_ns()` at the message's arrival."""
        first = not self._least
        receive_ns = receive_ns if first else max(receive_ns, self._receive_ns)
        difference = receive_ns - device_ns
        if first:
            self._since_ns = receive_ns
        elif device_ns < self._device_ns or difference < self._estimate(receive_ns) - self.step_ns:
            # only a step of its clock makes a device's time go back, or a message come so much earlier than
            # any before
            self._restart(self._key(difference, receive_ns), receive_ns)
        else:
            self._look_for_hidden_step(difference, receive_ns)
        self._device_ns, self._receive_ns = device_ns, receive_ns
        self._add(self._key(difference, receive_ns), receive_ns)
        estimate_ns = device_ns + self._estimate(receive_ns) - self.latency_ns
        before = estimate_ns if first else self._capture_ns
        self._capture_ns = min(max(estimate_ns, before), receive_ns)
        return self._capture_ns

    def evidence_s(self) -> float:
        """Seconds of messages that the present offset rests on. Right after a step they are few, and may all
        have been late."""
        return (self._receive_ns - self._since_ns) * 1e-9

    def _look_for_hidden_step(self, difference: int, receive_ns: int) -> None:
        if difference < self._estimate(receive_ns) + self.step_ns:
            self._late_since = None
            return
        key = self._key(difference, receive_ns)
        if self._late_since is None:
            self._late_since, self._late_least = receive_ns, key
        self._late_least = min(self._late_least, key)
        if receive_ns - self._late_since >= self.settle_ns:
            self._restart(self._late_least, receive_ns)

    def _key(self, difference: int, receive_ns: int) -> int:
        return difference - round(self.drift * receive_ns)

    def _estimate(self, now_ns: int) -> int:
        return self._least[0][1] + round(self.drift * now_ns)

    def _add(self, key: int, receive_ns: int) -> None:
        while self._least and self._least[-1][1] >= key:
            self._least.pop()
        self._least.append((receive_ns, key))
        while self._least[0][0] < receive_ns - self.window_ns:
            self._least.popleft()

    def _restart(self, key: int, receive_ns: int) -> None:
        self.steps += 1
        self._since_ns = receive_ns
        self._late_since = None
        self._least.clear()
        self._least.append((receive_ns, key))
