"""Who is computed when, and with whom."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from contracts.policy import Batched, Linear
from hypothesis import given, settings
from hypothesis import strategies as st

from ulna.policies.serving.dispatcher import Dispatcher
from ulna.policies.serving.models import Models, NoModel
from ulna.policies.serving.protocol import BadRequest, Expired, Unavailable
from ulna.policies.serving.together import alike

STATE = np.array([1, 2], np.float32)


def request(who: Any = None, **more: Any) -> dict[str, Any]:
    return {"observation.state": STATE, "who": who, **more}


def dispatched(policy: Any, work: Callable[[Dispatcher], Awaitable[Any]]) -> Any:
    """What `work` returns, in a loop of its own."""
    dispatcher = Dispatcher(policy if isinstance(policy, Models) else Models({"policy": policy}))

    async def main() -> Any:
        dispatcher.start()
        return await work(dispatcher)

    try:
        return asyncio.run(asyncio.wait_for(main(), 30))
    finally:
        getattr(policy, "gate", threading.Event()).set()
        dispatcher.close()


async def held_up(dispatcher: Dispatcher, policy: Batched) -> asyncio.Task[Any]:
    """A request that occupies the worker until the policy's gate is opened."""
    policy.gate.clear()
    task = asyncio.ensure_future(dispatcher.submit("first", request("first")))
    while not policy.busy.is_set():
        await asyncio.sleep(0.001)
    return task


def queued(policy: Batched, *requests: tuple[str, dict[str, Any], float | None]) -> list[Any]:
    """Results of (session, request, deadline) that all arrive, in this order, while the worker is busy."""

    async def work(dispatcher: Dispatcher) -> list[Any]:
        first = await held_up(dispatcher, policy)
        tasks = []
        for session, message, deadline in requests:
            tasks.append(asyncio.ensure_future(dispatcher.submit(session, message, deadline_s=deadline)))
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        policy.gate.set()
        await first
        return await asyncio.gather(*tasks, return_exceptions=True)

    return dispatched(policy, work)


def test_a_reply_says_what_answered_and_how_long_it_took() -> None:
    reply = dispatched(Batched(0.01), lambda d: d.submit("a", request()))
    np.testing.assert_array_equal(reply["actions"], STATE[None])
    assert reply["checkpoint"] == "b" * 64
    assert reply["policy_timing"]["infer_ms"] >= 10
    assert reply["server_timing"]["infer_ms"] >= reply["policy_timing"]["infer_ms"]


def test_requests_that_wait_are_computed_together() -> None:
    policy = Batched()
    results = queued(policy, *((str(i), request(i), None) for i in range(8)))
    assert policy.batches == [["first"], list(range(8))]
    assert [r["policy_timing"]["batch"] for r in results] == [8] * 8


def test_only_what_is_alike_is_computed_together() -> None:
    policy = Batched()
    wide = {"observation.state": np.zeros((2, 2), np.float32), "who": 9}
    queued(
        policy,
        ("a", request(0), None),
        ("b", wide, None),
        ("c", request(1, _rt={"options": {"steps": 5}}), None),
        ("d", request(2, _rt={"seed": 3}), None),
        ("e", request(3), None),
    )
    assert policy.batches == [["first"], [0, 2, 3], [9], [1]]


def test_seeds_and_values_do_not_part_requests_and_options_do() -> None:
    one, other = request(1, _rt={"seed": 1, "options": {"steps": 2}}), request(2, _rt={"seed": 2})
    assert alike(one) != alike(other)
    assert alike(one) == alike(request(5, _rt={"seed": 9, "options": {"steps": 2}, "deadline_ms": 7}))
    assert alike(request(0, _rt={"delay": 1})) != alike(request(0, _rt={"delay": 2}))
    previous = {"previous": np.zeros((3, 2))}
    assert alike(request(0, _rt=previous)) != alike(request(0, _rt={"previous": np.zeros((4, 2))}))


def test_a_policy_that_cannot_batch_runs_one_at_a_time() -> None:
    async def work(dispatcher: Dispatcher) -> list[Any]:
        return await asyncio.gather(
            *(dispatcher.submit(str(i), {"observation.state": STATE}) for i in range(5))
        )

    replies = dispatched(Linear(), work)
    assert [r["policy_timing"]["batch"] for r in replies] == [1] * 5


def test_a_newer_request_of_a_session_takes_the_place_of_the_one_that_waits() -> None:
    policy = Batched()
    old, new = queued(policy, ("a", request("old"), None), ("a", request("new"), None))
    assert isinstance(old, Unavailable)
    assert "a newer request of this session" in str(old)
    assert len(new["actions"]) == 1
    assert policy.batches == [["first"], ["new"]], "the old one was never computed"


def test_a_request_is_answered_at_its_deadline_and_never_computed() -> None:
    policy = Batched()

    async def work(dispatcher: Dispatcher) -> None:
        first = await held_up(dispatcher, policy)
        with pytest.raises(Expired, match="deadline of 20 ms passed before its turn: it was not computed"):
            await dispatcher.submit("late", request("late"), deadline_s=0.02)
        assert not first.done(), "the worker was busy all the time"
        policy.gate.set()
        await first
        await dispatcher.submit("in time", request("in time"), deadline_s=20.0)

    dispatched(policy, work)
    assert policy.batches == [["first"], ["in time"]]


def test_the_earliest_deadline_is_first() -> None:
    policy = Batched()
    # not alike, so that each is computed alone
    queued(
        policy,
        *(
            (name, {**request(name), f"only.{name}": 1}, deadline)
            for name, deadline in (("none", None), ("late", 20.0), ("soon", 10.0))
        ),
    )
    assert policy.batches == [["first"], ["soon"], ["late"], ["none"]]


def flooded(policy: Any, floods: int, deadline_s: float | None) -> list[int]:
    """How many requests of floods are computed between two of a session that asks in a loop, 20 times."""

    async def work(dispatcher: Dispatcher) -> list[int]:
        stop = False

        async def flood(name: str) -> None:
            while not stop:
                message = {**request(name), f"only.{name}": 1}
                await dispatcher.submit(name, message, deadline_s=deadline_s)

        tasks = [asyncio.ensure_future(flood(f"flood {i}")) for i in range(floods)]
        await asyncio.sleep(0.05)
        counts = []
        for _ in range(20):
            began = len(policy.batches)
            await dispatcher.submit("good", {**request("good"), "only.good": 1})
            counts.append(len(policy.batches) - began)
        stop = True
        await asyncio.gather(*tasks, return_exceptions=True)
        return counts

    return dispatched(policy, work)


@pytest.mark.parametrize("deadline_s", [None, 5.0])
def test_floods_take_turns_with_one_that_asks_in_a_loop(deadline_s: float | None) -> None:
    """Nothing here can be batched, so each computation is one session's; urgent deadlines do not help."""
    counts = flooded(Batched(0.0005), 10, deadline_s)
    assert max(counts) <= 2 * 11, "a round has one turn for each"


def test_one_that_asks_seldom_goes_first() -> None:
    policy = Batched(0.0005)

    async def work(dispatcher: Dispatcher) -> list[int]:
        stop = False

        async def flood(name: str) -> None:
            while not stop:
                await dispatcher.submit(name, {**request(name), f"only.{name}": 1})

        tasks = [asyncio.ensure_future(flood(f"flood {i}")) for i in range(10)]
        counts = []
        for _ in range(10):
            await asyncio.sleep(0.03)
            began = len(policy.batches)
            await dispatcher.submit("seldom", {**request("seldom"), "only.seldom": 1})
            counts.append(policy.batches[began:].index(["seldom"]))
        stop = True
        await asyncio.gather(*tasks)
        return counts

    counts = dispatched(policy, work)
    assert sorted(counts)[5] <= 2, "it waits for what runs, not for a round of ten"


def test_sessions_that_ask_in_a_loop_fall_into_step() -> None:
    async def work(dispatcher: Dispatcher) -> None:
        async def loop(name: str) -> None:
            for _ in range(30):
                await dispatcher.submit(name, request(name))

        await asyncio.gather(*(loop(str(i)) for i in range(8)))

    def batches() -> int:
        policy = Batched(0.005)
        dispatched(policy, work)
        return len(policy.batches)

    # a machine that stops for some ms makes sessions look as if they asked seldom
    assert any(batches() <= 45 for _ in range(4)), "30 rounds of 8, and few where some were late"


def test_a_batch_grows_no_longer_than_it_pays() -> None:
    """A policy whose time is that of its rows gets no batches; one whose time is constant gets all."""

    class Linearly(Batched):
        def infer_many(self, requests: Any) -> list[Any]:
            time.sleep(0.004 * len(requests))
            return super().infer_many(requests)

    def largest_of_the_last(policy: Batched) -> int:
        async def work(dispatcher: Dispatcher) -> None:
            await dispatcher.submit("0", request("0"))

            async def loop(name: str) -> None:
                for _ in range(12):
                    await dispatcher.submit(name, request(name))

            await asyncio.gather(*(loop(str(i)) for i in range(12)))

        dispatched(policy, work)
        return max(map(len, policy.batches[-12:]))

    assert largest_of_the_last(Linearly()) <= 4
    assert largest_of_the_last(Batched(0.004)) >= 9


def test_one_that_the_policy_fails_on_costs_the_others_nothing() -> None:
    policy = Batched()
    good, wrong, failing, other = queued(
        policy,
        ("a", request("a"), None),
        ("b", {"who": "b", "observation.stale": STATE}, None),
        ("c", request("c", fail=True), None),
        ("d", request("d", fail=False), None),
    )
    assert len(good["actions"]) == len(other["actions"]) == 1
    assert isinstance(wrong, BadRequest)
    assert isinstance(failing, BadRequest)
    assert "secret" not in str(failing)


def test_draining_answers_what_was_accepted_and_refuses_what_is_new() -> None:
    policy = Batched()

    async def work(dispatcher: Dispatcher) -> None:
        first = await held_up(dispatcher, policy)
        waiting = asyncio.ensure_future(dispatcher.submit("a", request("a")))
        await asyncio.sleep(0)
        draining = asyncio.ensure_future(dispatcher.drain())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="the server is stopping"):
            await dispatcher.submit("b", request("b"))
        assert not draining.done()
        policy.gate.set()
        await draining
        assert len((await first)["actions"]) == len((await waiting)["actions"]) == 1

    dispatched(policy, work)


def test_whoever_goes_away_is_not_computed() -> None:
    policy = Batched()

    async def work(dispatcher: Dispatcher) -> None:
        first = await held_up(dispatcher, policy)
        gone = asyncio.ensure_future(dispatcher.submit("gone", request("gone")))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        policy.gate.set()
        await first
        await dispatcher.drain()

    dispatched(policy, work)
    assert policy.batches == [["first"]]


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(NoModel, match="there is no model 'b' here: there is a"):
        dispatched(Models({"a": Batched()}), lambda d: d.submit("s", request(), model="b"))


class Remembers(Batched):
    def infer_many(self, requests: Any) -> list[Any]:
        memory = {"checkpoint": self.metadata.checkpoint, "values": STATE}
        return [{**r, "memory": memory} for r in super().infer_many(requests)]


def test_a_memory_goes_on_with_the_policy_that_gave_it() -> None:
    """After a swap, an episode in progress ends with the policy that remembers it."""
    models = Models({"a": Remembers(checkpoint="old")}, lambda folder: Remembers(checkpoint="new"))

    async def work(dispatcher: Dispatcher) -> list[str]:
        first = await dispatcher.submit("s", request())
        models.load("a", "anywhere")
        more = request(_rt={"memory": first["memory"]})
        return [(await dispatcher.submit("s", r))["checkpoint"] for r in (more, request(), more)]

    assert dispatched(models, work) == ["old", "new", "new"]


def test_a_policy_that_was_swapped_out_goes_with_its_last_session(monkeypatch: pytest.MonkeyPatch) -> None:
    models = Models({"a": Remembers(checkpoint="old")}, lambda folder: Remembers(checkpoint="new"))
    old = weakref.ref(models["a"])

    async def work(dispatcher: Dispatcher) -> list[bool]:
        first = await dispatcher.submit("s", request())
        models.load("a", "anywhere")
        kept = []
        for silent_s in (60.0, 0.0):
            monkeypatch.setattr("ulna.policies.serving.dispatcher.FORGET_S", silent_s)
            for session, more in (("other", {}), ("s", {"_rt": {"memory": first["memory"]}}), ("other", {})):
                await dispatcher.submit(session, request(**more))
            dispatcher.sweep()
            gc.collect()
            kept.append(old() is not None)
        return kept

    assert dispatched(models, work) == [True, False]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([None, 0.0005, 10.0]), st.integers(0, 2)),
        max_size=40,
    )
)
def test_every_request_gets_one_answer(asks: list[tuple[int, float | None, int]]) -> None:
    policy = Batched(0.0002)

    async def work(dispatcher: Dispatcher) -> list[Any]:
        tasks = []
        for session, deadline, pause in asks:
            tasks.append(
                asyncio.ensure_future(dispatcher.submit(str(session), request(), deadline_s=deadline))
            )
            for _ in range(pause):
                await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await dispatcher.drain()
        return results

    results = dispatched(policy, work)
    replies = [r for r in results if not isinstance(r, Exception)]
    assert all(isinstance(r, Expired | Unavailable) for r in results if isinstance(r, Exception))
    assert len(replies) == sum(map(len, policy.batches)), "what is computed is answered, and once"
    assert threading.active_count() < 50
