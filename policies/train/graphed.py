"""A training step's loss and gradients as one CUDA graph, where launching their thousands of kernels one by
one takes longer than they run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..fast.watch import watched

log = logging.getLogger("ulna.fast")


class Graphed:
    """Calls `compute(batch, progress)`, which gives the loss, detached, and leaves the gradients in the
    weights; from the second call on it is replayed, with the same random draws. A batch of another kind, such
    as one with words, and a loss that the processor must look at are computed as they are.

    Weights may be changed in place only, and gradients are to be None before each call. What a graph could
    not repeat is found by watching one run before the first."""

    def __init__(
        self, compute: Callable[[Mapping[str, Any], Any], Tensor], model: nn.Module, device: torch.device
    ) -> None:
        self.compute, self.device = compute, device
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.kind: Any = None
        self.why_not = "" if device.type == "cuda" else "there is no CUDA device"
        self.graph: Any = None
        self.batch: dict[str, Any] = {}
        self.gradients: list[Tensor | None] = []

    def __call__(self, batch: Mapping[str, Any], progress: float) -> Tensor:
        kind = [(k, v.shape, v.dtype) if isinstance(v, Tensor) else k for k, v in batch.items()]
        if self.kind is None and not self.why_not:
            self.kind = kind
            self._capture(batch, progress)
        if self.why_not or kind != self.kind:
            return self.compute(batch, progress)
        self._fill(batch, progress)
        self.graph.replay()
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            weight.grad = gradient
        return self.loss.clone()

    def _fill(self, batch: Mapping[str, Any], progress: float) -> None:
        for key, value in batch.items():
            if isinstance(value, Tensor):
                self.batch[key].copy_(value, non_blocking=True)
        self.progress.fill_(progress)

    def _capture(self, batch: Mapping[str, Any], progress: float) -> None:
        if any(not isinstance(v, Tensor) for v in batch.values()):
            self.why_not = "a batch holds more than numbers"
            return
        state = torch.get_rng_state(), torch.cuda.get_rng_state(self.device)
        self.batch = {k: v.clone() for k, v in batch.items()}
        self.progress = torch.zeros((), dtype=torch.float64, device=self.device)
        self._fill(batch, progress)
        here, stream = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        stream.wait_stream(here)
        try:
            with torch.cuda.stream(stream):
                self._run()  # what is made once and kept is made here
                self._forget()
                _, self.why_not = watched(self._run, self.device, draws=True, grad=True)
                self._forget()
            here.wait_stream(stream)
            if not self.why_not:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
                    self.loss = self._run()
                self.gradients = [w.grad for w in self.weights]
        except RuntimeError as error:
            self.why_not = str(error)[:200]
            self._forget()
        if self.why_not:
            log.info("training without a CUDA graph: %s", self.why_not)
        torch.set_rng_state(state[0])
        torch.cuda.set_rng_state(state[1], self.device)

    def _run(self) -> Tensor:
        return self.compute(self.batch, self.progress)

    def _forget(self) -> None:
        for weight in self.weights:
            weight.grad = None


class Late:
    """Values that are computed on a device, read one step late there, so that it never waits for the
    processor to ask for the next step."""

    def __init__(self, device: torch.device) -> None:
        self.keep = 1 if device.type == "cuda" else 0
        self.waiting: list[tuple[Tensor, Any]] = []

    def put(self, value: Tensor) -> None:
        if not self.keep:
            self.waiting.append((value, None))
            return
        there = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        there.copy_(value, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self.waiting.append((there, arrived))

    def take(self, all: bool = False) -> list[float]:
        """Those that are due, oldest first: all but the newest, or all."""
        values = []
        while len(self.waiting) > (0 if all else self.keep):
            value, arrived = self.waiting.pop(0)
            if arrived is not None:
                arrived.synchronize()
            values.append(float(value))
        return values
