"""The episode loop: observe, act, command, tell the subscribers, sleep to the next tick. Everything runs
through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from ..datasets.features import ACTION, REQUESTED
from .agent import Agent, Ends, Foresees, HearsSent, Intervenes
from .robot import Robot

CATCHES_UP = 3  # ticks that may be made up for; a program that was stopped for longer goes on from there


class Subscriber(Protocol):
    """Told of every tick, after the command was sent. `datasets.recording.recorder.Recorder` is one."""

    def start(self, meta: Mapping[str, Any]) -> None: ...

    def tick(
        self,
        values: Mapping[str, np.ndarray],
        times_ns: Mapping[str, tuple[int, int]],
        flags: Mapping[str, int],
    ) -> None:
        """values: the observation's, `action` (what was sent) and `action.requested` (what the agent asked
        for). flags: by key, of `datasets.flags`; keys without any are left out. times_ns: of actions, when
        the observation that they answer was complete, and when they were sent."""
        ...

    def end(self, meta: Mapping[str, Any]) -> None: ...

    def interrupt(self, reason: str) -> None:
        """The episode broke off and does not count. Also called where `start` failed."""
        ...


@dataclass(frozen=True)
class EpisodeResult:
    """ticks: how many ran. late: how many of them were not finished when the next one was due. success: None
    where nobody can tell. safety: what the filter did, in words, "" where it did nothing."""

    ticks: int
    late: int
    success: bool | None
    safety: str = ""


def run_episode(
    robot: Robot,
    agent: Agent,
    subscribers: Sequence[Subscriber] = (),
    *,
    task: str,
    seed: int,
    max_ticks: int,
    success: Callable[[], bool] | None = None,
    meta: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] | None = None,
) -> EpisodeResult:
    """One episode: until `success()` or `stop()` is true, the agent has ended it, or `max_ticks`. Where
    `success` cannot tell the outcome, an agent that ends episodes does.

    Deadlines are absolute on the robot's clock, so lateness does not add up; but after a stall the ticks that
    were missed are not made up for in a burst, and what the arms executed meanwhile of what was announced to
    them is left out. Whatever is raised (by a device, an agent, a subscriber, Ctrl-C), the arms hold, every
    subscriber's `interrupt` is called, and the error goes on to the caller."""
    header = {"task": task, "seed": seed, "agent": agent.tag, "robot": robot.name, **(meta or {})}
    started: list[Subscriber] = []
    try:
        agent.reset(task, seed)
        robot.begin()
        listener = agent if isinstance(agent, HearsSent) else None
        overrider = agent if isinstance(agent, Intervenes) else None
        seer = agent if isinstance(agent, Foresees) else None
        ender = agent if isinstance(agent, Ends) else None
        for subscriber in subscribers:
            started.append(subscriber)
            subscriber.start(header)
        began, late, ticks, finished = robot.clock.now_ns(), 0, 0, False
        t_sent = began
        while ticks < max_ticks and not finished:
            observation = robot.observe(task)
            # the tick's own time: what had come by then is what the agent knows
            t_observed = robot.clock.now_ns()
            # what was executed meanwhile is not executed again: the arm would go back
            if seer is not None and (gone := robot.gone_on(t_sent)) > CATCHES_UP:
                seer.skip(gone)
            requested = np.asarray(agent.act(observation))
            command = robot.command(requested, None if seer is None else seer.ahead())
            if listener is not None:
                listener.sent(command)
            t_sent = robot.clock.now_ns()
            values = {**observation.values, ACTION: command, REQUESTED: requested.astype(np.float32)}
            times = {**observation.times_ns, ACTION: (t_observed, t_sent), REQUESTED: (t_observed, t_sent)}
            flags = observation.flags
            if marks := robot.command_flags | (0 if overrider is None else overrider.flags):
                flags = {**flags, ACTION: marks}
            for subscriber in started:
                subscriber.tick(values, times, flags)
            ticks += 1
            due = began + ticks * robot.period_ns
            behind = robot.clock.now_ns() - due
            late += behind > 0
            if behind > CATCHES_UP * robot.period_ns:
                began += behind
            robot.clock.sleep_until(due)
            finished = (
                (success is not None and success())
                or (stop is not None and stop())
                or (ender is not None and ender.ended)
            )
        outcome = success() if success is not None else None if ender is None else ender.outcome
        result = EpisodeResult(ticks, late, outcome, str(robot.tally))
        end = {"success": result.success, "late_ticks": late}
        if numbers := robot.tally.numbers():
            end["safety"] = numbers
        for subscriber in started:
            subscriber.end(end)
        return result
    except BaseException as error:
        # a failure in here must neither keep other subscribers from hearing of it nor hide the first error
        reason = _reason(error)
        for undo in (robot.hold, *(partial(subscriber.interrupt, reason) for subscriber in started)):
            try:
                undo()
            except Exception as another:  # noqa: BLE001
                error.add_note(f"and then: {another}")
        raise


def _reason(error: BaseException) -> str:
    return "stopped by hand" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
