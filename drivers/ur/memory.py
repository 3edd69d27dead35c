"""Memory shared by the control process and the process that talks to a UR: the arm's newest state and its
goal. Each block has one writer."""

from __future__ import annotations

import mmap
import os

import numpy as np

from ..seqlock import Block

JOINTS = 6
STATE = np.dtype(
    [
        ("seq", "i8"),  # packages from the controller so far
        ("t_capture_ns", "i8"),
        ("clocked", "i8"),  # 1: the offset of the controller's clock is known, so t_capture_ns is right
        ("t_receive_ns", "i8"),
        ("rate_hz", "f8"),
        ("robot_mode", "i8"),  # of RTDE, as are the next two
        ("safety_mode", "i8"),
        ("robot_status_bits", "i8"),
        ("connected", "i8"),
        ("q", "f8", (JOINTS,)),
    ]
)
CONTROL = np.dtype(
    [
        ("active", "i8"),  # the control script runs and takes setpoints
        ("remote", "i8"),  # the pendant is in remote control; -1: not known
        ("clock_steps", "i8"),
    ]
)
GOAL = np.dtype(
    [
        ("t_command_ns", "i8"),  # 0: hold
        ("t_from_ns", "i8"),
        ("t_goal_ns", "i8"),
        ("start", "f8", (JOINTS,)),
        ("goal", "f8", (JOINTS,)),
    ]
)
SIZE = 4096


class Memory:
    """Three blocks. The process that talks to the arm writes `state` and `control`, the control process
    `goal`."""

    def __init__(self, file: int | None = None) -> None:
        """file: the descriptor of another `Memory`; None makes a new one, which lives until all descriptors
        are closed."""
        self.file = os.memfd_create("ulna-ur") if file is None else file
        if file is None:
            os.ftruncate(self.file, SIZE)
        memory = mmap.mmap(self.file, SIZE)
        self.state = Block(memory, 0, STATE)
        self.control = Block(memory, 1024, CONTROL)
        self.goal = Block(memory, 2048, GOAL)

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
