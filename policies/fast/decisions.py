"""Decisions on a GPU as CUDA graphs: encoder, context, all steps of the sampler and decoding replayed with
one call, where launching the kernels one by one takes several times as long as they run.

A graph repeats what was done, so there is one for each kind of question: the shapes, the steps, the hooks.
What is drawn is drawn before it, from the same generators in the same order, so that seeds mean what they
mean elsewhere. What a graph cannot repeat (a solver that rests, a hook that differentiates or draws) is found
by watching one decision, and is decided as on a processor."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..hooks.hook import Hook
from ..policy import Policy
from ..request import TASK, Request
from ..sampler import Noise, Sampled
from .networks import hasten
from .watch import watched

log = logging.getLogger("ulna.fast")

MOST_GRAPHS = 8  # that are kept, those used last; they share their memory
MOST_KINDS = 64  # of questions that are remembered

Sampler = Callable[[Request, Sequence[Hook], int], Sampled]


def decisions(policy: Policy) -> Sampler:
    """(request, hooks, steps) -> what `policy.sample` gives: on a GPU to within float32's rounding, and in a
    fraction of the time once a kind of question was asked twice. The policy's weights and recipe must stay as
    they are."""
    if policy.device.type == "cuda":
        return Decisions(policy)
    return policy.sample


class Decisions:
    """See `decisions`. Several threads may ask."""

    def __init__(self, policy: Policy) -> None:
        hasten(policy)
        self.policy = policy
        self.graphs: Recent[Hashable, _Graph] = Recent(MOST_GRAPHS)
        self.eager: Recent[Hashable, str] = Recent(MOST_KINDS)  # kinds without graph, and why
        self.pool: Any = None
        self.lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, request: Request, steering: Sequence[Hook], steps: int) -> Sampled:
        request = heard(self.policy, request, steering)
        kind = kind_of(request, steering, steps)
        with self.lock:
            graph = None if kind is None else self.graphs.get(kind)
            if graph is None and kind is not None and self.eager.get(kind) == "":
                graph = self._graph(kind, request, steering, steps)
            if graph is not None:
                return graph(request)
            sampled = self.policy.sample(request, steering, steps)
            if kind is not None and self.eager.get(kind) is None:
                self.eager.put(kind, "")  # the next one of its kind is worth a graph
            return sampled

    def _recorded(self, request: Request, steering: Sequence[Hook], steps: int) -> _Graph:
        return _Graph(self.policy, request, steering, steps)

    def _graph(self, kind: Hashable, request: Request, steering: Sequence[Hook], steps: int) -> _Graph | None:
        pool = self.pool or torch.cuda.graph_pool_handle()
        graph = self._recorded(request, steering, steps)
        try:
            if not (why := graph.why_not()):
                graph.capture(pool)
        except Exception as error:  # noqa: BLE001  whatever it is, there is a way without
            why = str(error)[:200] or type(error).__name__
            log.warning("decisions without a CUDA graph: %s", why)
        if why:
            self.eager.put(kind, why)
            return None
        self.pool = pool
        self.graphs.put(kind, graph)
        return graph


class _Graph:
    """One kind of decision. Its request is a copy whose tensors are written over by each question's."""

    def __init__(self, policy: Policy, request: Request, steering: Sequence[Hook], steps: int) -> None:
        self.policy, self.steering, self.steps = policy, tuple(steering), steps
        self.request = _mapped(request, lambda v: v.clone())
        self.noise = torch.empty(0)
        self.sampled: Sampled | None = None
        self.graph: Any = None  # once it is captured
        self.chunks, self.draws, self.candidates = (0, 0, 0), 0, 1

    def why_not(self) -> str:
        """Why the decision cannot be repeated; "" where it can."""
        policy, recipe = self.policy, self.policy.recipe
        self.candidates = max((h.wants_candidates for h in (*recipe.steering, *self.steering)), default=1)
        rows = len(next(v for v in self.request.observation.values() if isinstance(v, Tensor)))
        self.chunks = (rows, recipe.horizon, policy.codec.width)
        drawn = Drawn(self._generator(self.request))
        policy.sample(self.request, self.steering, self.steps, noise=drawn)
        self.noise, self.draws = torch.stack(drawn.values), len(drawn.values)
        _, why = watched(self.sample, policy.device, draws=False, grad=False)
        return why

    def capture(self, pool: Any) -> None:
        stream = torch.cuda.Stream(self.policy.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.sample()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.sampled = self.sample()

    def __call__(self, request: Request) -> Sampled:
        for mine, theirs in zip(_tensors(self.request), _tensors(request), strict=True):
            mine.copy_(theirs)
        noise = self._generator(request)
        for i in range(self.draws):
            self.noise[i].copy_(noise())
        self.graph.replay()
        assert self.sampled is not None
        copies = {
            f.name: v.clone()
            for f in dataclasses.fields(self.sampled)
            if isinstance(v := getattr(self.sampled, f.name), Tensor)
        }
        return dataclasses.replace(self.sampled, **copies)

    def sample(self) -> Sampled:
        noise = iter(self.noise)
        return self.policy.sample(self.request, self.steering, self.steps, noise=lambda: next(noise))

    def _generator(self, request: Request) -> Callable[[], Tensor]:
        seeds = [request.seed] if isinstance(request.seed, int) else list(request.seed)
        return Noise(seeds, self.chunks, self.candidates, self.policy.device).step


class Drawn:
    """Keeps what is drawn."""

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        self.draw = draw
        self.values: list[Tensor] = []

    def __call__(self) -> Tensor:
        self.values.append(self.draw())
        return self.values[-1]


class Recent[K: Hashable, V]:
    """A map that keeps the `most` entries that were used last."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def put(self, key: K, value: V) -> None:
        self.entries[key] = value
        self.entries.move_to_end(key)
        while len(self.entries) > self.most:
            self.entries.popitem(last=False)


def heard(policy: Policy, request: Request, steering: Sequence[Hook]) -> Request:
    """The request without what nobody reads: only hooks see the last chunk, the delay and the options, and
    only hooks and policies of words the task. Else every task and every delay would be a kind of its own."""
    if steering or policy.recipe.steering:
        return request
    task = request.task if TASK in policy.condition_keys else None
    return dataclasses.replace(request, task=task, previous=None, delay=None, options={})


def kind_of(request: Request, steering: Sequence[Hook], steps: int) -> Hashable | None:
    """All of a question but the values of its tensors and its seed; None where it cannot be told from
    others."""
    seeds = 1 if isinstance(request.seed, int) else len(request.seed)
    task = None if request.task is None else tuple(request.task)
    plain = {k: v for k, v in request.observation.items() if not isinstance(v, Tensor)}
    shapes = tuple((name, tuple(v.shape), v.dtype) for name, v in _named(request))
    kind = (shapes, seeds, task, request.delay, repr(request.options), repr(plain), tuple(steering), steps)
    try:
        hash(kind)
    except TypeError:
        return None
    return kind


def _named(request: Request) -> Iterator[tuple[str, Tensor]]:
    for name, value in sorted(request.observation.items()):
        if isinstance(value, Tensor):
            yield name, value
    for name in ("past", "previous", "memory"):
        if isinstance(value := getattr(request, name), Tensor):
            yield name, value


def _tensors(request: Request) -> list[Tensor]:
    return [v for _, v in _named(request)]


def _mapped(request: Request, f: Callable[[Tensor], Tensor]) -> Request:
    observation: Mapping[str, Any] = {
        k: f(v) if isinstance(v, Tensor) else v for k, v in request.observation.items()
    }
    others = {n: f(v) for n in ("past", "previous", "memory") if isinstance(v := getattr(request, n), Tensor)}
    return dataclasses.replace(request, observation=observation, **others)
