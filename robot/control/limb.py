"""One arm as the ticker sees it, and what is to be sent for a time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ...drivers.arm import Arm, DeviceError
from ...drivers.sample import Sample
from ..safety.limits import GRIPPER
from .guard import Guard
from .memory import ArmMemory
from .plan import Plan


@dataclass
class Limb:
    """joints: of it, among those of all arms. active: it takes commands. first: its next command is its
    first. asked, sent: where the driver was last sent, and where that sent the arm. rest: where it is parked,
    None: it goes down from where it is; lay_there: it lay there without torque. offset: of its readings'
    numbers, since those of an earlier control process go on."""

    name: str
    driver: Arm
    memory: ArmMemory
    joints: slice
    plan: Plan
    is_open: bool = False
    active: bool = False
    first: bool = False
    rest: np.ndarray | None = None
    lay_there: bool = False
    offset: int = 0
    last_seq: int = -1
    asked: np.ndarray = field(default_factory=lambda: np.zeros(0))
    sent: np.ndarray = field(default_factory=lambda: np.zeros(0))
    health_s: float = 0.0
    captured_ns: int = 0  # of its newest reading

    def __post_init__(self) -> None:
        joints = self.driver.joints
        self.guard = Guard(joints.names)
        pairs = zip(joints.names, joints.units, strict=True)
        self.grips = np.array([name == GRIPPER or unit == "m" for name, unit in pairs])

    def position(self) -> np.ndarray:
        """Where it is, `(J,)`; 0 before it is open."""
        return self.reading().data

    def reading(self) -> Sample:
        """Its newest; zeros before it is open."""
        if self.is_open:
            return self.driver.read()
        n = len(self.driver.joints)
        return Sample(np.zeros(n), 0, 0, -1, np.zeros(n, bool))

    def numbered(self, sample: Sample) -> Sample:
        """`sample` with the number that it has for the main process."""
        return replace(sample, seq=sample.seq + self.offset) if self.offset else sample

    def refusal(self, q: np.ndarray, t_ns: int) -> str:
        """Why it takes no command, in the words of its driver; "" where it takes this one."""
        try:
            self.driver.command(q, t_ns)
        except DeviceError as error:
            return str(error)
        return ""


@dataclass(frozen=True)
class Entry:
    """What is to be sent for a time. wanted: by the plan. slowed: how much of it the filter was asked for,
    where a motor is warm."""

    t_ns: int
    wanted: np.ndarray
    slowed: np.ndarray
    command: np.ndarray
    velocity: np.ndarray
    flags: int
    reasons: tuple[str, ...]

    def standing(self, q: np.ndarray, moved: np.ndarray) -> Entry:
        """The same, but the joints `moved`, `(A,)` bool, stand at `q` `(A,)`."""
        wanted, slowed, command = (np.where(moved, q, x) for x in (self.wanted, self.slowed, self.command))
        velocity = np.where(moved, 0.0, self.velocity)
        return replace(self, wanted=wanted, slowed=slowed, command=command, velocity=velocity)
