"""Which decisions a CUDA graph may repeat, which it may not, and that it gives what the sampler gives."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import FEATURES
from contracts.recipes import SMALL, small

from ulna.datasets.features import ACTION
from ulna.datasets.stats import vector_stats
from ulna.policies.checkpoint import save_checkpoint
from ulna.policies.fast.decisions import Decisions, Recent, decisions, heard, kind_of
from ulna.policies.fast.watch import watched
from ulna.policies.hooks.hook import Hook
from ulna.policies.hooks.inpaint import Inpaint
from ulna.policies.policy import Policy
from ulna.policies.request import Request
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.train.record import TrainingRecord

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's convolutions are of TF32 by default: their rounding is a thousand times ours."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


class Windows:
    """Of what never was, with what is ahead."""

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon

    def __len__(self) -> int:
        return 50

    def vectors(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        rng, n = np.random.default_rng(1), len(rows)
        seen = {k: f for k, f in FEATURES.items() if k != ACTION}
        ahead = {f"future.{k}": f for k, f in seen.items()} | {ACTION: FEATURES[ACTION]}
        values = {k: rng.uniform(-1, 1, (n, 1, *f.shape)) for k, f in seen.items()}
        values |= {k: rng.uniform(-1, 1, (n, self.horizon, *f.shape)) for k, f in ahead.items()}
        return values | {"mask": np.ones((n, self.horizon), bool)}


def policy(name: str, device: str = "cpu") -> Policy:
    rng, recipe = np.random.default_rng(0), small(name)
    stats = {k: vector_stats(rng.uniform(-1, 1, (100, f.shape[0]))) for k, f in FEATURES.items()}
    stats |= recipe.codec.fit(Windows(recipe.horizon), FEATURES, recipe.n_past_actions)
    torch.manual_seed(0)
    return Policy(recipe, FEATURES, stats).to(device).eval()


def question(of: Policy, rows: int = 1, seed: Any = 3, past: bool = False) -> Request:
    r, draw = of.recipe, torch.Generator().manual_seed(7)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=draw).to(of.device)

    values = {k: uniform(rows, r.n_obs_steps, *f.shape) for k, f in FEATURES.items() if k != ACTION}
    for key, f in of.conditions_needed.items():
        if key != "task":
            drawn = uniform(rows, *f.shape)
            values[key] = drawn > 0.5 if f.dtype == "bool" else drawn
    before = uniform(rows, r.n_past_actions, 3) if past else None
    return Request(values, seed, before, ["lift it"] * rows if "task" in of.conditions_needed else None)


def test_what_a_graph_cannot_repeat_is_seen() -> None:
    x = torch.arange(6.0)

    def differentiated() -> torch.Tensor:
        with torch.enable_grad():
            a = x.clone().requires_grad_()
            return torch.autograd.grad(a.square().sum(), a)[0]

    reads: list[tuple[Callable[[], Any], str]] = [
        (lambda: x.sum().item(), "reads"),
        (lambda: bool((x > 0).all()), "reads"),
        (lambda: x[x > 2], "reads"),
        (lambda: x.nonzero(), "reads"),
        (lambda: torch.rand(3), "draws"),
        (lambda: torch.nn.functional.dropout(x, 0.5), "draws"),
    ]
    for run, why in reads:
        assert why in watched(run, CPU, draws=False, grad=False)[1]
    with torch.no_grad():
        assert "gradient" in watched(differentiated, CPU, draws=False, grad=False)[1]
    indices = torch.tensor([1, 2])
    repeatable: list[Callable[[], Any]] = [
        lambda: x * 2 + 1,
        lambda: x[indices],
        lambda: torch.full((3,), 2.0),
    ]
    for run in repeatable:
        assert watched(run, CPU, draws=False, grad=False)[1] == ""
    own = torch.Generator().manual_seed(0)
    assert watched(lambda: torch.rand(3), CPU, draws=True, grad=True)[1] == ""
    assert "draws" in watched(lambda: torch.rand(3, generator=own), CPU, draws=True, grad=True)[1]


WITHOUT = ("ebt", "harmodt", "icrt", "robodual", "pi0_fast", "pi0_fast_small")  # a graph


@pytest.mark.parametrize("name", SMALL)
def test_which_recipes_can_be_repeated(name: str) -> None:
    """All but those that rest where they are told to, are asked for gradients, part rows by their task, keep
    what they made of what they are shown, ask another policy where it is time, or write until they are
    done."""
    of = policy(name)
    request, steps = question(of, 2), of.recipe.sampling_steps
    with torch.no_grad():
        graph = Decisions(of)._recorded(request, (), steps)
        why = graph.why_not()
    assert bool(why) == (name in WITHOUT)
    if not why:
        assert torch.equal(graph.sample().chunk, of.sample(request, (), steps).chunk)


def test_what_counts_as_the_same_kind_of_question() -> None:
    of = policy("diffusion_unet")
    request = question(of)
    kind = kind_of(request, (), 4)
    others = question(of, seed=9), dataclasses.replace(request, observation=question(of).observation)
    assert all(kind_of(r, (), 4) == kind for r in others)
    different = [
        kind_of(question(of, 2), (), 4),
        kind_of(question(of, past=True), (), 4),
        kind_of(request, (), 5),
        kind_of(request, (Inpaint(),), 4),
        kind_of(dataclasses.replace(request, delay=3), (), 4),
        kind_of(dataclasses.replace(request, task=["go"]), (), 4),
        kind_of(dataclasses.replace(request, options={"steps": 4}), (), 4),
    ]
    assert len({kind, *different}) == len(different) + 1

    class Unhashable(Hook):
        __hash__ = None  # type: ignore[assignment]

    assert kind_of(request, (Unhashable(),), 4) is None


def test_what_nobody_reads_makes_no_kind_of_its_own() -> None:
    of = policy("diffusion_unet")
    plain = question(of)
    full = dataclasses.replace(
        plain, task=["lift"], delay=2, previous=torch.zeros(1, 5, 3), options={"steps": 4}
    )
    assert kind_of(heard(of, full, ()), (), 4) == kind_of(plain, (), 4)
    assert heard(of, full, (Inpaint(),)) is full


def test_the_kinds_used_last_are_kept() -> None:
    recent: Recent[str, int] = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 3)


def test_a_processor_decides_as_ever() -> None:
    of = policy("flow")
    request = question(of, 2, [1, 2])
    assert torch.equal(decisions(of)(request, (), 4).chunk, of.sample(request, (), 4).chunk)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3


@needs_cuda
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", [3, [5, 6]], ids=["one seed", "two seeds"])
def test_a_graph_decides_as_the_sampler(name: str, seed: Any) -> None:
    of, plain = policy(name, "cuda"), policy(name, "cuda")
    decide, steps = Decisions(of), of.recipe.sampling_steps
    for i in range(5):
        request = question(of, 2, seed if i < 3 else [8, 9] if isinstance(seed, list) else 8)
        request.observation["observation.state"].add_(0.1 * i)  # type: ignore[index]
        ours, theirs = decide(request, (), steps), plain.sample(request, (), steps)
        close(ours.chunk, theirs.chunk)
        assert torch.equal(ours.nfe, theirs.nfe)
    assert len(decide.graphs.entries) == (0 if name in WITHOUT else 1)


@needs_cuda
def test_a_graph_with_hooks_and_several_kinds() -> None:
    of, plain = policy("diffusion_unet", "cuda"), policy("diffusion_unet", "cuda")
    decide = Decisions(of)
    for steps in (2, 3, 4, 5, 6, 7, 8, 9, 10, 2):
        for past in (True, False):
            for _ in range(3):
                request = question(of, past=past)
                theirs = plain.sample(request, (Inpaint(),), steps)
                close(decide(request, (Inpaint(),), steps).chunk, theirs.chunk)
    assert len(decide.graphs.entries) == 8


@needs_cuda
def test_several_threads_may_ask() -> None:
    of, plain = policy("flow", "cuda"), policy("flow", "cuda")
    decide, errors = Decisions(of), []
    wanted = [plain.sample(question(of, seed=s), (), 4).chunk for s in range(40)]

    def ask(first: int) -> None:
        try:
            for s in range(first, 40, 4):
                close(decide(question(of, seed=s), (), 4).chunk, wanted[s])
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors


@needs_cuda
@pytest.mark.parametrize("name", ["flow", "diffusion_unet", "diffusion_transformer", "ptp"])
def test_a_served_policy_is_ready_when_it_is_loaded(tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path, policy(name), TrainingRecord())
    local = LocalPolicy(tmp_path, "cuda")
    decide = local.decide
    assert isinstance(decide, Decisions)
    assert decide.graphs.entries
    graphs = dict(decide.graphs.entries)
    state = {k: np.zeros(FEATURES[k].shape, np.float32) for k in FEATURES if k != ACTION}
    first = local.infer(Request(state, 5).to_wire())
    assert np.array_equal(first["actions"], local.infer(Request(state, 5).to_wire())["actions"])
    assert not np.array_equal(first["actions"], local.infer(Request(state, 6).to_wire())["actions"])
    assert dict(decide.graphs.entries) == graphs
