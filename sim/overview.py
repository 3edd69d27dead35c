"""What a simulated scene looks like, for people: drawn in a process of its own. Drawing takes a control
period or two (50 to 100 ms of a processor), and the robot's loop must not wait for it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from .scene import SimScene

PERIOD_S = 1 / 15  # between two pictures
NICENESS = 10  # the robot's loop comes first


class Overview:
    """`with Overview(scene) as overview:`, then `offer` from the scene's thread as often as there may be
    something new; `newest` has what was drawn last, `(H, W, 3)` uint8, with the time of what it shows, on
    `time.monotonic_ns`.

    The process builds the same scene from the same seed, and puts its bodies where those of this one are. One
    that ends, for whatever reason, leaves the last picture; `failure` says why."""

    def __init__(self, scene: SimScene) -> None:
        self.scene = scene
        self.newest: tuple[np.ndarray, int] | None = None
        self.failure = ""
        self._is_free = False
        self._offered_ns = 0

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._connection = Connection(ours.detach())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ulna.sim.overview", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # PyBullet has greeted already; errors come as messages
                pass_fds=(theirs.fileno(),),
            )
        with contextlib.suppress(OSError):  # it is gone already; the reader says so
            self._connection.send(self.scene.built_from)
        self._reader = threading.Thread(target=self._read, name="overview", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_free = False
        self._process.kill()  # it has nothing to lose
        self._process.wait()
        self._reader.join()
        self._connection.close()

    @property
    def pid(self) -> int:
        """Of the process that draws."""
        return self._process.pid

    def offer(self) -> None:
        """Have the scene drawn as it is now, unless a drawing is under way, or one was begun less than
        `PERIOD_S` ago. Never waits."""
        now = time.monotonic_ns()
        if not self._is_free or now - self._offered_ns < PERIOD_S * 1e9:
            return
        self._is_free, self._offered_ns = False, now
        with contextlib.suppress(OSError):  # it is gone; the reader says so
            # a few kilobytes into an empty pipe
            self._connection.send((self.scene.seed, self.scene.world.poses()))

    def _read(self) -> None:
        try:
            while True:
                answer = self._connection.recv()
                if isinstance(answer, str):
                    self.failure = answer
                    return
                if answer is not None:
                    self.newest = answer, self._offered_ns
                self._is_free = True
        except (EOFError, OSError):
            self.failure = "its process has ended"


def main(file: int) -> None:
    """The process. It is told what the scene is built from, answers None when it is ready, and then each
    (seed, poses) with a picture, until the other end is closed; or says in a sentence why it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    os.nice(NICENESS)
    connection = Connection(file)
    try:
        from .scene import SimScene

        scene = SimScene(**connection.recv())
        camera = scene.film_camera()
        connection.send(None)
        while True:
            seed, poses = connection.recv()
            if seed != scene.seed:
                scene.reset(seed)
            scene.world.place(poses)
            connection.send(camera.render())
    except (EOFError, OSError):
        return  # nobody looks any more
    except Exception as error:  # noqa: BLE001  said where the robot runs
        connection.send(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
