"""One control process, as the main process has it: its orders and their answers."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from typing import Any

from ...drivers.arm import DeviceError

START_S = 30.0
END_S = 120.0  # in which it puts down what still has torque


class Child:
    """Any thread may ask."""

    def __init__(self, setup: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Start it, and wait until it has made its arms. DeviceError: it cannot."""
        self.is_set_up = False
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ulna.robot.control.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=tuple(descriptors),
            start_new_session=True,  # what a terminal sends to its programs is not for it
        )
        self._writing = threading.Lock()
        self._n, self._answers = 0, dict[int, Future[dict[str, Any]]]()
        self._reader = threading.Thread(target=self._read, name="control answers", daemon=True)
        self._reader.start()
        try:
            self.ask("setup", START_S, **setup)
        except DeviceError:
            self.process.kill()
            self.end()
            raise
        self.is_set_up = True

    def ask(self, order: str, timeout_s: float, **values: Any) -> dict[str, Any]:
        """The answer to an order. DeviceError: it failed, with the words of the process."""
        answer = self.tell(order, **values)
        try:
            reply = answer.result(timeout_s)
        except Late:
            raise DeviceError(f"the control process did not {order} within {timeout_s:.0f} s") from None
        if "error" in reply:
            raise DeviceError(reply["error"])
        return reply

    def tell(self, order: str, **values: Any) -> Future[dict[str, Any]]:
        """Give an order, and wait for nothing."""
        assert self.process.stdin is not None
        answer = Future[dict[str, Any]]()
        with self._writing:
            self._n += 1
            number = self._n
            self._answers[number] = answer
            try:
                self.process.stdin.write(
                    json.dumps({"number": number, "order": order, **values}).encode() + b"\n"
                )
                self.process.stdin.flush()
            except (OSError, ValueError):
                self._answers.pop(number, None)
                answer.set_result({"error": "the control process has ended"})
        return answer

    def end(self) -> None:
        """Close its stdin, at which it puts down what still has torque, closes its arms and ends."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(5.0)
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self.process.stdout:
                reply = json.loads(line)
                if (answer := self._answers.pop(reply["to"], None)) is not None:
                    answer.set_result(reply)
        for answer in list(self._answers.values()):
            if not answer.done():
                answer.set_result({"error": "the control process ended meanwhile"})
