"""Requests of many sessions in front of one inference worker: who is next, with whom, and who is too late.

A session has one request waiting at most; a newer one takes its place. Requests are served in rounds, in
each of which a session has a turn; within a round the earliest deadline is first. A session that had no turn
in the round that is served comes first, so that one that asks seldom does not wait behind those that always
ask. A request whose deadline has passed is answered so, and never computed.

When the worker is free, the first request is computed together with all that are alike: of the same policy,
with the same shapes and options. Sessions that asked again at once after their last answer are waited for, as
long as one comes within 5 ms of the other, up to a quarter of what computing takes, or 2 ms: without it
clients that ask in a loop would fall into two halves that wait for each other. Nobody is waited for where one
waits that asks seldom, as a robot does; nor do the answers of a large batch keep it from being heard: a few
go out at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..request import EXTENSION, ServedPolicy
from .metrics import Metrics
from .models import Models
from .protocol import BadRequest, Expired, ProtocolError, Unavailable
from .together import Failed, alike, answers

log = logging.getLogger("ulna.serving")

WAIT_S = 0.002  # for sessions that ask in a loop, once the worker is free
GAP_S = 0.005  # from one that comes to the next, at most: where many run, a machine lets one wait for so long
PATIENCE = 0.25  # of what computing takes, at most, where those that are waited for come one after another
QUICK_S = 0.010  # a session that asks again so soon, or before as long as computing takes, asks in a loop
MAX_BATCH = 64
STRETCH = 2.0  # a batch may take so many times what the fastest takes
ANSWERS_AT_ONCE = 4  # then the loop reads what has arrived
FORGET_S = 60.0  # a session that nobody ends is forgotten after so long
MANY_SESSIONS = 1024
STOPPING = "the server is stopping and takes no new requests: ask another, or this one when it is back"

Reply = Mapping[str, Any]
Done = Callable[[Reply | BadRequest | ProtocolError], None]


@dataclass(eq=False)
class _Session:
    name: str
    turn: int = -1
    """The round in which it is next."""
    answered: float = -math.inf
    pause: float = 0.0
    """From its last answer to its next request, s."""
    failed: bool = False
    """Whether the policy failed on a request of it; the log is told once."""
    remembering: ServedPolicy | None = None
    """The policy whose memory it carries: it goes on with this one after a swap."""


@dataclass(eq=False)
class _Job:
    session: _Session
    request: Mapping[str, Any]
    model: str
    turn: int
    arrived: float
    deadline: float
    done: Done
    seldom: bool = False
    """Whether its session let more time go by than computing takes."""
    timer: asyncio.TimerHandle | None = None
    policy: ServedPolicy | None = None
    """Chosen when it is computed, so that a swap acts at once."""
    directly: Callable[[Reply], None] | None = None
    """Given the reply in the worker's thread, where it is the only one, before `done`."""
    reply: Reply | None = None
    """What it was given."""

    def order(self) -> tuple[int, float, float]:
        return self.turn, self.deadline, self.arrived


@dataclass(frozen=True)
class _Batch:
    """What was computed together."""

    rows: int
    began: float
    seconds: float


@dataclass(eq=False)
class _Pace:
    """How many requests of a policy are computed together: more as long as that takes little longer."""

    limit: int = 8
    fastest: float = math.inf

    def ran(self, rows: int, seconds: float) -> None:
        self.fastest = min(self.fastest * 1.01, seconds)  # what was fast once is forgotten slowly
        if rows > 1 and seconds > STRETCH * self.fastest:
            self.limit = max(1, rows // 2)
        elif rows >= self.limit:
            self.limit = min(MAX_BATCH, self.limit * 2)


class Dispatcher:
    """For one event loop, which `start` names; `close` ends its worker."""

    def __init__(self, models: Models, metrics: Metrics | None = None) -> None:
        self.models, self.metrics = models, metrics or Metrics()
        self.stopping = False
        self._sessions: dict[str, _Session] = {}
        self._waiting: dict[_Session, _Job] = {}
        self._round = 0
        self._running: Sequence[_Job] = ()
        self._computed: deque[tuple[Sequence[_Job], Sequence[Any], _Batch]] = deque()  # by the worker
        self._answers: deque[tuple[_Job, Any, _Batch]] = deque()  # computed, and not given yet
        self._awaited: set[_Session] = set()
        self._free_since = self._heard = -math.inf  # heard: one that was awaited
        self._took = 0.0  # the last inference, s
        self._timer: asyncio.TimerHandle | None = None
        self._paces: dict[int, tuple[ServedPolicy, _Pace]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        self.metrics.watch_queue(lambda: len(self._waiting))

    def start(self) -> None:
        """Within the event loop."""
        self._loop = asyncio.get_running_loop()
        # a daemon: a policy that never returns must not keep the process
        self._worker = threading.Thread(target=self._work, name="inference", daemon=True)
        self._worker.start()

    async def submit(
        self, session: str, request: Mapping[str, Any], *, model: str = "", deadline_s: float | None = None
    ) -> Reply:
        """The reply to a request, as `ServedPolicy.infer` gives it, with `policy_timing` and `server_timing`.

        session: whoever asks; its newer request takes the place of one that waits. deadline_s: from now.
        BadRequest where the request does not fit, Expired after its deadline, Unavailable where a newer one
        took its place or the server stops; ProtocolError for what no policy could read."""
        future: asyncio.Future[Reply] = self._loop.create_future()

        def done(result: Reply | BadRequest | ProtocolError) -> None:
            if future.done():
                return
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        job = self.put(session, request, model, deadline_s, done)
        try:
            return await future
        except asyncio.CancelledError:
            if job is not None and self._waiting.get(job.session) is job:
                self._withdraw(job)
            raise

    def put(
        self,
        session: str,
        request: Mapping[str, Any],
        model: str,
        deadline_s: float | None,
        done: Done,
        directly: Callable[[Reply], None] | None = None,
    ) -> _Job | None:
        """As `submit`, with the reply or the error given to `done`, once, within the loop. A reply that was
        computed alone is given to `directly` before that, in the worker's thread; it must not raise."""
        self._take_computed()
        if self.stopping:
            done(Unavailable(STOPPING))
            return None
        try:
            self.models[model]
        except BadRequest as error:
            done(error)
            return None
        now = self._loop.time()
        known = self._sessions.get(session)
        if known is None:
            self._forget_the_silent(now)
            known = self._sessions[session] = _Session(session)
        known.pause = now - known.answered
        if known in self._awaited:
            self._awaited.discard(known)
            self._heard = now
        before = self._waiting.pop(known, None)
        # one that had no turn in this round comes before all that had
        turn = max(known.turn, self._round - 1) if before is None else before.turn
        job = _Job(
            known, request, model, turn, now, math.inf if deadline_s is None else now + deadline_s, done
        )
        job.directly = directly
        job.seldom = known.pause > max(QUICK_S, 2 * self._took)
        if before is not None:
            self._drop(before, Unavailable("a newer request of this session took its place"), "superseded")
        if deadline_s is not None:
            job.timer = self._loop.call_at(job.deadline, self._expire, job)
        self._waiting[known] = job
        self._idle.clear()
        if job.seldom:
            self._launch()  # it waits for nobody
        else:
            self._consider()
        return job

    def forget(self, session: str) -> None:
        """The session is over; what waits of it is not computed."""
        known = self._sessions.pop(session, None)
        if known is not None:
            self._awaited.discard(known)
            if (job := self._waiting.get(known)) is not None:
                self._withdraw(job)

    def sweep(self) -> None:
        """Let go of the policies that were swapped out, but of those that a session still goes on with. To be
        called now and then: most wires cannot tell that a session is over."""
        now, needed = self._loop.time(), {id(p) for p in self.models.policies()}
        for session in self._sessions.values():
            silent = session not in self._waiting and now - session.answered >= FORGET_S
            if silent and id(session.remembering) not in needed:
                session.remembering = None
        needed |= {id(session.remembering) for session in self._sessions.values()}
        self._paces = {i: pace for i, pace in self._paces.items() if i in needed}

    async def drain(self) -> None:
        """From now on new requests are refused; returns when all that were accepted are answered."""
        self.stopping = True
        self._awaited.clear()
        self._rest()
        await self._idle.wait()

    def give_up(self) -> None:
        """Answer what still waits that the server stops."""
        for job in list(self._waiting.values()):
            del self._waiting[job.session]
            self._drop(job, Unavailable(STOPPING), "stopping")
        while self._answers:
            self._answer(*self._answers.popleft())
        self._rest()

    def close(self, timeout_s: float = 10.0) -> None:
        """End the worker, once the loop has ended."""
        if self._worker is not None:
            self._tasks.put(None)
            self._worker.join(timeout_s)

    def _withdraw(self, job: _Job) -> None:
        """Nobody waits for its reply."""
        del self._waiting[job.session]
        if job.timer is not None:
            job.timer.cancel()
        self._rest()

    def _expire(self, job: _Job) -> None:
        if self._waiting.get(job.session) is job:
            del self._waiting[job.session]
            ms = (job.deadline - job.arrived) * 1e3
            self._drop(
                job,
                Expired(f"the request's deadline of {ms:.0f} ms passed before its turn: it was not computed"),
                "expired",
            )
            self._rest()

    def _drop(self, job: _Job, error: BadRequest, kind: str) -> None:
        if job.timer is not None:
            job.timer.cancel()
        self.metrics.error(kind)
        job.done(error)

    def _rest(self) -> None:
        if not self._waiting and not self._running and not self._answers:
            self._idle.set()

    def _consider(self) -> None:
        """Start the worker if it is free and nobody is waited for."""
        if self._running or self._answers or not self._waiting:
            return
        if self._awaited and (until := self._patience()) > self._loop.time():
            if self._timer is None:
                self._timer = self._loop.call_at(until, self._look)
            return
        self._launch()

    def _patience(self) -> float:
        """Until when those who are awaited are waited for."""
        longest = max(WAIT_S, PATIENCE * self._took)
        gap = min(longest, GAP_S)
        return min(max(self._free_since, self._heard) + gap, self._free_since + longest)

    def _look(self) -> None:
        """The time of one who is awaited is over; another may have come meanwhile."""
        self._timer = None
        self._consider()

    def _launch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running or not self._waiting:
            return
        now = self._loop.time()
        for job in [j for j in self._waiting.values() if j.deadline <= now]:
            self._expire(job)
        jobs = self._next()
        if not jobs:
            return
        self._awaited.clear()
        self._round = max(self._round, jobs[0].turn)
        for job in jobs:
            del self._waiting[job.session]
            job.session.turn = max(job.turn, self._round - 1) + 1
            if job.timer is not None:
                job.timer.cancel()
        self._running = jobs
        self._tasks.put(lambda: self._compute(jobs))

    def _next(self) -> list[_Job]:
        """What is computed next, in one inference."""
        ordered = sorted(self._waiting.values(), key=_Job.order)
        chosen: list[_Job] = []
        most = 1
        first: tuple[int, Hashable] | None = None
        for job in ordered:
            policy = job.policy = self._policy(job)
            if not chosen:
                chosen = [job]
                most = self._pace(policy).limit if hasattr(policy, "infer_many") else 1
                if most == 1 or len(ordered) == 1:
                    break
                first = (id(policy), alike(job.request))
            elif len(chosen) == most:
                break
            elif (id(policy), alike(job.request)) == first:
                chosen.append(job)
        return chosen

    def _policy(self, job: _Job) -> ServedPolicy:
        extension = job.request.get(EXTENSION)
        memory = extension.get("memory") if isinstance(extension, Mapping) else None
        kept = job.session.remembering
        if kept is None or not isinstance(memory, Mapping):
            return self.models[job.model]
        if memory.get("checkpoint") == kept.metadata.checkpoint:
            return kept
        return self.models[job.model]

    def _pace(self, policy: ServedPolicy) -> _Pace:
        if id(policy) not in self._paces:
            self.sweep()  # it may have taken another's place
            self._paces[id(policy)] = policy, _Pace()
        return self._paces[id(policy)][1]

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()

    def _compute(self, jobs: Sequence[_Job]) -> None:
        """In the worker's thread."""
        began = time.monotonic()
        results = answers(jobs[0].policy, [job.request for job in jobs])
        batch = _Batch(len(jobs), began, time.monotonic() - began)
        job = jobs[0]
        if len(jobs) == 1 and job.directly is not None and isinstance(results[0], Mapping):
            job.session.answered = time.monotonic()
            job.reply = _reply(job, results[0], batch)
            job.directly(job.reply)
        self._computed.append((jobs, results, batch))
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._take_computed)

    def _take_computed(self) -> None:
        """Also called between two requests, of which the loop may read many before it looks at anything
        else."""
        while self._computed:
            self._finish(*self._computed.popleft())

    def _finish(self, jobs: Sequence[_Job], results: Sequence[Any], batch: _Batch) -> None:
        self._running, self._took = (), batch.seconds
        policy = jobs[0].policy
        assert policy is not None
        if hasattr(policy, "infer_many"):
            self._pace(policy).ran(batch.rows, batch.seconds)
        if any(job.seldom for job in self._waiting.values()):
            self._launch()  # before the answers, which take time where they are many
        self._awaited.clear()
        answering = bool(self._answers)  # those of the last batch, still
        self._answers.extend((job, result, batch) for job, result in zip(jobs, results, strict=True))
        if not answering:
            self._answer_some()
        self.metrics.batch(batch.rows, batch.seconds)

    def _answer_some(self) -> None:
        """The rest in the loop's next round, so that whoever asks meanwhile is heard."""
        for _ in range(min(ANSWERS_AT_ONCE, len(self._answers))):
            self._answer(*self._answers.popleft())
        if self._answers:
            self._loop.call_soon(self._answer_some)
            return
        self._free_since = self._loop.time()
        self._rest()
        self._consider()

    def _answer(self, job: _Job, result: Any, batch: _Batch) -> None:
        session = job.session
        if isinstance(result, BadRequest | ProtocolError):
            self.metrics.error("failed" if isinstance(result, Failed) else "bad request")
            if isinstance(result, Failed) and not session.failed:
                session.failed = True
                log.error("the policy failed", exc_info=result.__cause__)
            session.answered = self._loop.time()
            job.done(result)
        else:
            session.remembering = job.policy if "memory" in result else None
            if job.reply is None:
                session.answered = self._loop.time()
                job.reply = _reply(job, result, batch)
            job.done(job.reply)
            seconds, waited = session.answered - job.arrived, batch.began - job.arrived
            self.metrics.answer(job.model or self.models.default, seconds, waited, result.get("nfe"))
        alone = batch.rows == 1 and not self._waiting
        quick = session.pause <= max(QUICK_S, batch.seconds)
        if quick and not alone and session not in self._waiting and session.name in self._sessions:
            self._awaited.add(session)

    def _forget_the_silent(self, now: float) -> None:
        if len(self._sessions) <= MANY_SESSIONS:
            return
        running = {job.session for job in (*self._running, *(job for job, _, _ in self._answers))}
        for name, session in list(self._sessions.items()):
            if session in self._waiting or session in running or now - session.answered < FORGET_S:
                continue
            del self._sessions[name]


def _reply(job: _Job, result: Reply, batch: _Batch) -> Reply:
    """What the policy answered, and how long it took."""
    assert job.policy is not None
    took, waited = time.monotonic() - job.arrived, batch.began - job.arrived
    return {
        **({} if "checkpoint" in result else {"checkpoint": job.policy.metadata.checkpoint}),
        **result,
        "policy_timing": {"infer_ms": batch.seconds * 1e3, "batch": batch.rows},
        "server_timing": {"infer_ms": took * 1e3, "queue_ms": max(waited, 0.0) * 1e3},
    }
