"""What a server counts, for Prometheus to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from .metadata import Metadata

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)
EVALUATIONS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """Each server has its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def seconds(name: str, what: str, *labels: str) -> Histogram:
            return Histogram(f"ulna_{name}_seconds", what, labels, buckets=SECONDS, registry=registry)

        self._requests = Counter(
            "ulna_requests", "Requests that were answered with actions", ["model"], registry=registry
        )
        self._of_model: dict[str, tuple[Any, ...]] = {}
        self._errors = Counter("ulna_errors", "Requests that were not", ["kind"], registry=registry)
        self._latency = seconds("request", "From a request's arrival to its reply", "model")
        self._queue = seconds("queue", "From a request's arrival until it was computed", "model")
        self._inference = seconds("inference", "One inference, of one batch")
        self._batch = Histogram(
            "ulna_batch_size", "Requests in one inference", buckets=SIZES, registry=registry
        )
        self._nfe = Histogram(
            "ulna_nfe", "Network evaluations of one reply", buckets=EVALUATIONS, registry=registry
        )
        self._waiting = Gauge("ulna_waiting", "Requests that wait for the worker", registry=registry)
        self._connections = Gauge("ulna_connections", "Open connections", registry=registry)
        self._refused = Counter(
            "ulna_connections_refused", "Connections that were refused or ended", ["kind"], registry=registry
        )
        self._memory = Gauge(
            "ulna_message_bytes", "Bytes of messages that are read or not answered yet", registry=registry
        )
        self._model = Info("ulna_model", "What is served", ["model"], registry=registry)
        self._swaps = Counter("ulna_swaps", "Models that were loaded", ["model", "result"], registry=registry)

    def watch_queue(self, length: Callable[[], int]) -> None:
        self._waiting.set_function(length)

    def watch_connections(self, count: Callable[[], int], held_bytes: Callable[[], int]) -> None:
        self._connections.set_function(count)
        self._memory.set_function(held_bytes)

    def answer(self, model: str, latency_s: float, queue_s: float, nfe: object) -> None:
        if model not in self._of_model:  # looking them up takes longer than counting
            every = (self._requests, self._latency, self._queue)
            self._of_model[model] = tuple(metric.labels(model) for metric in every)
        requests, latency, queue = self._of_model[model]
        requests.inc()
        latency.observe(latency_s)
        queue.observe(max(queue_s, 0.0))
        if isinstance(nfe, int):
            self._nfe.observe(nfe)

    def batch(self, size: int, seconds: float) -> None:
        self._batch.observe(size)
        self._inference.observe(seconds)

    def error(self, kind: str) -> None:
        self._errors.labels(kind).inc()

    def refuse(self, kind: str) -> None:
        self._refused.labels(kind).inc()

    def swap(self, model: str, succeeded: bool) -> None:
        self._swaps.labels(model, "loaded" if succeeded else "refused").inc()

    def text(self, models: Mapping[str, Metadata]) -> bytes:
        """As Prometheus reads it."""
        self._model.clear()
        for name, metadata in models.items():
            self._model.labels(name).info({"recipe": metadata.recipe, "checkpoint": metadata.checkpoint})
        return generate_latest(self._registry)
