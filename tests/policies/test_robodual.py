"""RoboDual: what a slow policy said is carried from decision to decision, aligned by its age, hidden where it
is not told, and kept whole in the checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, write_store
from contracts.recipes import small

from ulna.datasets.features import ACTION, ENVIRONMENT, STATE, Feature, Features
from ulna.datasets.reading.windows import Windows, WindowSpec
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.stats import vector_stats
from ulna.datasets.store import EpisodeStore
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.contexts.context import Context, Reference
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipe import Recipe
from ulna.policies.recipes.all import RECIPES
from ulna.policies.request import Request
from ulna.policies.serving.batch import BatchPolicy
from ulna.policies.serving.client import PolicyClient
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.server import PolicyServer
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import train
from ulna.robot.session import Session

TOY: Features = {STATE: Feature((1,), "float32"), ENVIRONMENT: Feature((2,), "float32")}
TOY |= {ACTION: Feature((1,), "float32")}
RATE = 0.3  # rad a tick
TASK = "follow the hand"  # which the slow policy is told
TINY: dict[str, Any] = {
    "encoder.state.width": 16,
    "training.batch_size": 32,
    "training.warmup": 5,
    "training.learning_rate": 3e-3,
    "training.ema_max": 0.9,
    "training.steps": 120,
    "n_obs_steps": 1,
    "mask_padding": True,
}
DUAL: dict[str, Any] = {
    **TINY,
    "conditions.Slow.alone": ENVIRONMENT,  # the fast one does not see the hand
    "backbone.inner.width": 32,
    "backbone.inner.depth": 1,
    "objective": "Regression",
    "sampling_steps": 1,
    "steering": "none",
    "decoder": "slice",
}


def seen(phase: float, t: int) -> dict[str, np.ndarray]:
    """A clock hand, which tells the action, and a state, which tells nothing."""
    angle = phase + RATE * t
    return {
        STATE: np.zeros(1, np.float32) + t % 2,
        ENVIRONMENT: np.array([np.sin(angle), np.cos(angle)], np.float32),
    }


def recipe(slow: str | Path, **changes: Any) -> Recipe:
    return override(RECIPES["robodual"](TOY), {"conditions.Slow.slow": str(slow), **DUAL, **changes})


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    writer = EpisodeWriter(EpisodeStore.create(folder / "data", TOY, 20.0, "toy"))
    for i in range(8):
        phase = 2 * np.pi * i / 8
        writer.start({"task": TASK, "seed": i, "agent": "test"})
        for t in range(24):
            values = {**seen(phase, t), ACTION: np.array([np.sin(phase + RATE * t)], np.float32)}
            writer.tick(values, {k: (t * 50_000_000, t * 50_000_000 + 1000) for k in values})
        writer.end({"success": True})
    sizes = {**TINY, "backbone.width": 32, "backbone.depth": 1, "horizon": 12}
    slow = override(RECIPES["regression_mlp"](TOY), {**sizes, "conditions": "Words"})
    train(slow, folder / "data", folder / "slow", device="cpu")
    return folder


@pytest.fixture(scope="module")
def dual(toy: Path) -> Path:
    """Trained with a slow policy whose folder is gone since."""
    shutil.copytree(toy / "slow", toy / "lent")
    says: list[str] = []
    train(recipe(toy / "lent"), toy / "data", toy / "dual", device="cpu", say=says.append)
    shutil.rmtree(toy / "lent")
    assert any("its slow policy is the regression_mlp" in s for s in says)
    return toy / "dual"


def test_windows_see_earlier_ticks(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d", lengths=(20, 13))
    windows = Windows(store, WindowSpec(2, 1, keys=(STATE,), earlier=9, earlier_from=3))
    every = windows.values(STATE)
    rows = np.repeat([1, 2, 3, 19, 21, 32], 200)
    batch = windows.batch(rows, np.random.default_rng(0))
    ago, first = batch["earlier.ticks"], np.where(rows < 20, 0, 20)
    drawn = {int(r): (int(ago[rows == r].min()), int(ago[rows == r].max())) for r in rows}
    assert drawn == {1: (1, 1), 2: (2, 2), 3: (3, 3), 19: (3, 9), 21: (1, 1), 32: (3, 9)}
    assert batch["earlier.mask"].tolist() == (rows - first >= 3).tolist()
    ticks = np.maximum((rows - ago)[:, None] + np.array([-1, 0]), first[:, None])
    np.testing.assert_array_equal(batch[f"earlier.{STATE}"], every[ticks])
    with pytest.raises(ValueError, match="earlier is at least 4, not 2"):
        WindowSpec(1, 1, earlier=2, earlier_from=4)


def test_what_is_over_is_shifted_out() -> None:
    chunk = torch.arange(1.0, 6).reshape(1, 5, 1).expand(4, 5, 1)
    said = Reference(chunk, torch.tensor([0, 2, 7, 0]), torch.tensor([True, True, True, False]))
    actions, there = said.ahead(4, 1)  # the first is the tick before now
    assert torch.where(there[..., None], actions, 0)[..., 0].tolist() == [
        *([0, 1, 2, 3], [2, 3, 4, 5], [0, 0, 0, 0], [0, 0, 0, 0]),
    ]


def test_the_fast_one_does_what_the_slow_one_said_and_the_checkpoint_needs_no_other(
    toy: Path, dual: Path
) -> None:
    """Over a real server, where the memory crosses the wire: for as long as the slow policy's chunk lasts,
    and after it was asked anew, the clock is followed by who does not see it."""
    local = LocalPolicy(dual)
    inside = {k: v for k, v in local.policy.state_dict().items() if "policy." in k}
    for name, weight in load_checkpoint(toy / "slow").state_dict().items():
        assert torch.equal(inside[f"conditions.0.policy.{name}"], weight)
    kept = json.loads((dual / "recipe.json").read_text())["conditions"][0]
    assert (kept["slow"], kept["kept"]["content_hash"]) == ("", load_checkpoint(toy / "slow").content_hash)
    errors, strange = [], []
    with PolicyServer(BatchPolicy(local)).background() as server:
        client, session = PolicyClient(server.url), Session(local.metadata)
        for phase in (0.5, 4.0):
            session.reset(TASK, 0)
            other = local.infer(Request(seen(phase + np.pi, 0), 0, task=TASK).to_wire())["memory"]
            for t in range(14):
                session.observe(seen(phase, t))
                request = session.ask()
                assert request is not None
                reply = client.infer(request.to_wire())
                alone = local.infer(request.to_wire())
                np.testing.assert_allclose(reply["actions"], alone["actions"], atol=1e-5)
                session.answer(reply["actions"], reply["memory"])
                errors.append(float(session.next()[0]) - np.sin(phase + RATE * t))
                session.sent(np.zeros(1, np.float32))
                told = local.infer(replace(request, memory=other).to_wire())
                strange.append(float(told["actions"][0, 0]) - np.sin(phase + RATE * t))
                other = told["memory"]
                if t == 7:  # both are asked anew, and see the same
                    break
        client.close()
    assert np.abs(errors).max() < 0.35, errors
    assert np.abs(strange).max() > 0.8, "it does what another episode's says"


def rounds(policy: Policy, ticks: int, rows: slice = slice(None)) -> list[Any]:
    """The contexts of three episodes that began at other ticks, tick by tick."""
    phases, contexts, memory = np.array([0.0, 1.0, 2.0])[rows], [], None
    with torch.no_grad():
        for t in range(ticks):
            each = [seen(p, t) for p in phases]
            now = {k: torch.from_numpy(np.stack([e[k] for e in each]))[:, None] for k in each[0]}
            seeds = list(range(3))[rows]
            contexts.append(policy.context(Request(now, seeds, task=[TASK] * len(phases), memory=memory)))
            memory = contexts[-1].memory
    return contexts


def test_an_answer_ages_until_the_next_one_is_there(toy: Path, dual: Path) -> None:
    policy, slow = load_checkpoint(dual), load_checkpoint(toy / "slow")
    assert policy.encoded_keys == (STATE,)
    contexts = rounds(policy, 10)

    def answer(t: int) -> torch.Tensor:
        each = [seen(p, t) for p in (0.0, 1.0, 2.0)]
        now = {k: torch.from_numpy(np.stack([e[k] for e in each]))[:, None] for k in each[0]}
        return policy.codec.encode(slow.sample(Request(now, 0, task=[TASK] * 3)).chunk, now)

    for t, context in enumerate(contexts):
        asked = t // 8 * 8
        left = answer(asked)[:, t - asked :][:, :8]
        torch.testing.assert_close(context.reference[:, : left.shape[1]], left)
        assert not context.reference[:, left.shape[1] :].any()
    late = Policy(
        override(policy.recipe, {"conditions.Slow.delay": 3, "conditions.Slow.every": 5}), TOY, policy.stats
    ).eval()
    late.load_state_dict(
        {**late.state_dict(), **{k: v for k, v in policy.state_dict().items() if ".age" not in k}}
    )
    assert late.memory_width == 2 * policy.memory_width == 2 * (1 + 12 + 2 * 16)
    for t, context in enumerate(rounds(late, 10)):
        asked = (t - 3) // 5 * 5
        assert bool(context.reference.any()) == (asked >= 0)
        if asked >= 0:
            left = answer(asked)[:, t - asked :][:, :8]
            torch.testing.assert_close(context.reference[:, : left.shape[1]], left)


def test_rows_are_asked_when_they_are_due_and_no_others(dual: Path) -> None:
    """Three episodes, one of them a tick ahead: each is told what it would be told alone."""
    policy = load_checkpoint(dual)
    alone = rounds(policy, 9, slice(0, 1))
    others = rounds(policy, 8, slice(1, 3))
    each = [seen(0.0, 8), seen(1.0, 7), seen(2.0, 7)]
    now = {k: torch.from_numpy(np.stack([e[k] for e in each]))[:, None] for k in each[0]}
    memory = torch.cat([alone[7].memory, others[6].memory])
    context = policy.context(Request(now, [0, 1, 2], task=[TASK] * 3, memory=memory))
    torch.testing.assert_close(context.reference, torch.cat([alone[8].reference, others[7].reference]))
    torch.testing.assert_close(context.memory, torch.cat([alone[8].memory, others[7].memory]))


def test_who_is_not_told_sees_neither_actions_nor_latent(toy: Path) -> None:
    """As guidance asks; in the released code its second pass sees both."""
    policy = Policy(override(small("robodual"), {"conditions.Slow.drop": 0.5}), FEATURES, stats()).eval()
    now = {k: torch.randn(1, 2, *FEATURES[k].shape) for k in (STATE, ENVIRONMENT)}
    hidden = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        memory = torch.randn(1, policy.memory_width)
        memory[:, 0] = 3
        told = policy.context(Request(now, 0, memory=memory))
        assert told.reference is not None
        assert told.reference[:, :5].any()
        hidden.append(policy.context(Request(now, 0, memory=memory), drop=True))
        assert (told.pooled - hidden[-1].pooled).abs().max() > 1e-3
    assert not hidden[0].reference.any()  # type: ignore[union-attr]
    assert torch.equal(hidden[0].pooled, hidden[1].pooled)
    assert torch.equal(hidden[0].tokens, hidden[1].tokens)
    # and so in training, row by row
    policy.train()
    context = policy.encode({k: v.expand(64, -1, -1) for k, v in now.items()})
    assert context.reference is not None
    dropped = ~context.reference.flatten(1).any(1)
    assert 16 < int(dropped.sum()) < 48
    assert torch.equal(dropped, ~context.pooled[:, : policy.conditions[0].width].any(1))  # type: ignore[misc]


def stats() -> dict[str, Any]:
    return {k: vector_stats(np.eye(2, f.shape[0])) for k, f in FEATURES.items()}


def test_what_cannot_be_asked_is_said(toy: Path, tmp_path: Path) -> None:
    for changes, says in (
        ({"conditions.Slow.slow": ""}, "name its checkpoint, --conditions.Slow.slow FOLDER"),
        ({"conditions.Slow.alone": "observation.smell"}, "nobody would see observation.smell: the slow"),
        ({"conditions.Slow.delay": 9}, "delay lies in 0..every"),
        ({"codec": "InverseDynamics"}, "no place for a slow policy's actions"),
    ):
        with pytest.raises(ValueError, match=says):
            train(recipe(toy / "slow", **changes), toy / "data", tmp_path / "x", device="cpu", overwrite=True)
    with pytest.raises(ValueError, match="no condition gives any: use --conditions Slow"):
        train(replace(recipe(""), conditions=()), toy / "data", tmp_path / "x", device="cpu", overwrite=True)
    two = override(RECIPES["regression_mlp"](TOY), {**TINY, "n_obs_steps": 2, "training.steps": 1})
    for other, says in ((two, "set --n-obs-steps 2"), (recipe(toy / "slow"), "wants a memory of its own")):
        short = override(other, {"training.steps": 1})
        train(short, toy / "data", tmp_path / "other", device="cpu", overwrite=True)
        with pytest.raises(ValueError, match=says):
            train(recipe(tmp_path / "other"), toy / "data", tmp_path / "x", device="cpu", overwrite=True)


def test_a_dual_policy_goes_on_with_the_slow_one_that_it_has(toy: Path, dual: Path, tmp_path: Path) -> None:
    again = {"conditions.Slow.slow": "", "training.start": str(dual), "training.steps": 1}
    train(recipe("", **again), toy / "data", tmp_path / "more", device="cpu")
    before, after = load_checkpoint(dual).state_dict(), load_checkpoint(tmp_path / "more").state_dict()
    inside = [k for k in before if ".policy." in k]
    assert inside
    assert all(torch.equal(before[k], after[k]) for k in inside)
    with pytest.raises(TrainingError, match="asks a slow policy that is trained already"):
        train(
            recipe("", **{**again, "training.start": ""}),
            toy / "data",
            tmp_path / "x",
            device="cpu",
            overwrite=True,
        )


def test_contexts_put_together_keep_what_another_policy_would_do() -> None:
    """As `MIP` does, which asks its network twice in one batch."""
    rng = torch.Generator().manual_seed(0)
    seen, other = torch.randn(2, 3, generator=rng), torch.randn(2, 4, 1, generator=rng)
    one = Context(seen[:, None], seen, hidden=(8,), reference=other)
    twice = Context.cat([one, one])
    assert twice.reference is not None
    assert torch.equal(twice.reference, torch.cat([other, other]))
    assert twice.hidden == (8,)
