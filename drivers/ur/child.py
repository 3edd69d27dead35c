"""The control process' side of `drivers.ur.process`: starts it, gives it orders and ends it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import select
import subprocess
import sys
import threading
import time

from ..arm import DeviceError
from .process import Settings

START_S = 20.0


class Child:
    """One process with one connection. For one thread at a time; `closing` cuts every wait short."""

    def __init__(self, settings: Settings, closing: threading.Event) -> None:
        """Start it, and wait until the controller answers. DeviceError: it does not."""
        self._closing, self._order_number = closing, 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ulna.drivers.ur.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # where ur_rtde talks to itself
            bufsize=0,  # `select` does not see what a buffer has read already
            pass_fds=(settings.file,),
        )
        try:
            self.ask(dataclasses.asdict(settings), START_S)
        except DeviceError:
            self.end(0.0)
            raise

    @property
    def dead(self) -> bool:
        return self.process.poll() is not None

    def ask(self, order: object, timeout_s: float) -> None:
        """Give an order and wait until it is done. DeviceError: it failed, with the words of the process."""
        assert self.process.stdin
        assert self.process.stdout
        self._order_number += 1
        try:
            self.process.stdin.write(json.dumps([self._order_number, order]).encode() + b"\n")
        except OSError:
            raise DeviceError("its connection broke off") from None
        deadline = time.monotonic() + timeout_s
        while True:
            if select.select([self.process.stdout], [], [], 0.1)[0]:
                line = self.process.stdout.readline()
                if not line:
                    raise DeviceError("its connection broke off")
                answer = json.loads(line)
                if answer["to"] == self._order_number:
                    break
            elif self._closing.is_set():
                raise DeviceError("it is being closed")
            elif time.monotonic() > deadline:
                raise DeviceError(f"no answer in {timeout_s:.0f} s")
        if "error" in answer:
            raise DeviceError(answer["error"])

    def end(self, patience_s: float) -> None:
        """Close its stdin, at which it stops the arm and ends; kill it after `patience_s`."""
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
