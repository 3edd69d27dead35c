"""A mass that a position drive pushes against a stiff wall, and policies that ask for too much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ulna.robot.safety.stage import Seen
from ulna.robot.safety.stages.tank import Config, Tank

SECONDS = 4.0
PRESSES_N, WRONG_N = 8.0, 3.0  # that the task asks for, and by how much the last half second may miss it


class Wall:
    """1 kg on the spring and the damper of its drive, 0.1 m before a wall of 20 kN/m.

    delivered: J that left the drive and were not lost in its damper; most: the most that it was."""

    K, D, WALL, AT, DT = 400.0, 20.0, 20_000.0, 0.1, 2e-4

    def __init__(self) -> None:
        self.x = self.v = self.delivered = self.most = self.force = self.peak = 0.0

    def step(self, sent: float, seconds: float) -> None:
        for _ in range(round(seconds / self.DT)):
            self.force = self.WALL * max(self.x - self.AT, 0.0)
            drive = self.K * (sent - self.x) - self.D * self.v
            self.v += self.DT * (drive - self.force)
            self.x += self.DT * self.v
            self.delivered += self.DT * self.v * drive
            self.most = max(self.most, self.delivered)
            self.peak = max(self.peak, self.force)


class Presses:
    """Goes to the wall in 1 s and presses it. bursts: in a third of the time until 3 s it swings through the
    whole range instead, in tune with the mass."""

    def __init__(self, seed: int, bursts: bool) -> None:
        rng = np.random.default_rng(seed)
        self.tune = rng.uniform(15, 40)
        begins = rng.uniform(0.2, 2.6, 4) if bursts else []
        self.bursts = [(float(t), float(t) + 0.25) for t in begins]

    def at(self, t: float) -> float:
        if any(begin <= t < end for begin, end in self.bursts):
            return 0.35 if np.sin(self.tune * t) > 0 else -0.1
        return min(t, 1.0) * (Wall.AT + PRESSES_N / Wall.K)


def tank_of(begin: float) -> Tank:
    """For the drive of a `Wall`."""
    config = Config(Wall.K, Wall.D, begin, max(2.0, begin), resolution=0.0)
    return Tank(np.array([0]), np.array([Wall.K]), np.array([Wall.D]), config, None)


@dataclass
class Run:
    """success: it presses as it should at the end. acted: share of ticks in which the tank shortened what was
    asked. lowest: the least that the tank held, J."""

    wall: Wall
    success: bool
    acted: float
    lowest: float


def run(tank: Tank | None, policy: Presses, period: float = 1e-3, stale: int = 1) -> Run:
    """stale: ticks for which a reading stays the newest."""
    wall, sent, acted, ticks = Wall(), 0.0, 0, round(SECONDS / period)
    if tank is not None:
        tank.reset(np.zeros(1))
    end, read, read_ns = list[float](), wall.x, 0
    for tick in range(ticks):
        t = tick * period
        asked = np.array([policy.at(t)])
        if tick % stale == 0:
            read, read_ns = wall.x, round(t * 1e9)
        if tank is not None:
            seen = Seen(np.array([read]), np.array([read_ns]), np.array([sent]), np.zeros(1))
            allowed, why = tank.step(asked, seen, period)
            acted += bool(why)
            asked = asked if allowed is None else allowed
        sent = float(asked[0])
        wall.step(sent, period)
        if t > SECONDS - 0.5:
            end.append(wall.force)
    success = abs(float(np.mean(end)) - PRESSES_N) < WRONG_N
    return Run(wall, success, acted / ticks, tank.lowest if tank is not None else 0.0)
