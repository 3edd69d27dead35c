"""A context with a memory: trained through windows in a row, carried from request to request."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest

from ulna.datasets.features import ACTION, STATE, Feature
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.backbones.mlp import ResidualMLP
from ulna.policies.contexts.ada import AdA
from ulna.policies.contexts.aura_mem import AuraMem
from ulna.policies.contexts.context import ContextPart
from ulna.policies.contexts.decision_mamba import DecisionMamba
from ulna.policies.contexts.decision_s4 import DecisionS4
from ulna.policies.contexts.recurrent import Recurrent
from ulna.policies.contexts.sega import SEGA
from ulna.policies.contexts.stack import Stack
from ulna.policies.encoders.vector import MLP, Encoder
from ulna.policies.objectives.regression import Regression
from ulna.policies.recipe import Recipe, Training
from ulna.policies.request import Request
from ulna.policies.serving.batch import BatchPolicy
from ulna.policies.serving.client import PolicyClient
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.protocol import BadRequest
from ulna.policies.serving.server import PolicyServer
from ulna.policies.train.loop import train
from ulna.robot.session import Session

TICKS = 5  # a cue at the first, 1 or -1; the action is the cue at all of them
FEATURES = {STATE: Feature((1,), "float32"), ACTION: Feature((1,), "float32")}


def seen(cue: float, t: int) -> np.ndarray:
    return np.array([cue if t == 0 else 0.0], np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cue") / "data"
    writer = EpisodeWriter(EpisodeStore.create(folder, FEATURES, 20.0, "toy"))
    for i in range(8):
        cue = 1.0 if i % 2 else -1.0
        writer.start({"task": "say the cue", "seed": i, "agent": "test"})
        for t in range(TICKS):
            values = {STATE: seen(cue, t), ACTION: np.array([cue], np.float32)}
            writer.tick(values, {k: (t * 50_000_000, t * 50_000_000 + 1000) for k in values})
        writer.end({"success": True})
    return folder


def trained(context: ContextPart, data: Path, seed: int = 0, steps: int = 150) -> LocalPolicy:
    recipe = Recipe(
        "toy", "none", Regression("l2"), ResidualMLP(32, 1), Encoder(MLP(16, 1)), context,
        sampling_steps=1, horizon=1, n_action_steps=1, mask_padding=True,
        training=Training(steps, 32, 3e-3, betas=(0.9, 0.95), warmup=5, ema_max=0.9),
    )  # fmt: skip
    out = data.parent / f"{type(context).__name__} {seed}"
    train(recipe, data, out, seed=seed, device="cpu")
    return LocalPolicy(out)


def last_answer(policy: LocalPolicy, cue: float) -> float:
    """After the delay, the memory echoed as a client does."""
    memory, answer = None, 0.0
    for t in range(TICKS):
        history = np.stack([seen(cue, max(t - 1, 0)), seen(cue, t)])
        reply = policy.infer(Request({STATE: history}, t, memory=memory).to_wire())
        memory, answer = reply.get("memory"), float(reply["actions"][0, 0])
    return answer


REMEMBER = [
    Recurrent(memory=16, chain=TICKS),
    SEGA(tokens=2, depth=1, heads=2, chain=TICKS, backprop=0),
    AuraMem(size=8, chain=TICKS),
    DecisionS4(16, 1, 4, chain=TICKS),
    DecisionMamba(16, 1, 4, chain=TICKS),
    AdA(16, 1, 2, steps=TICKS, chain=TICKS),
]


@pytest.fixture(scope="module")
def recurrent(data: Path) -> LocalPolicy:
    return trained(REMEMBER[0], data)


@pytest.mark.parametrize("context", REMEMBER, ids=lambda c: type(c).__name__)
def test_a_memory_outlives_the_wire_a_server_and_a_person(context: ContextPart, data: Path) -> None:
    """A cue is seen, and lost from two observations. Then the server dies, another takes its place, and a
    person acts for a tick: the answer is known."""
    policy = trained(context, data, seed=1, steps=80)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    session = Session(policy.metadata)
    for cue in (1.0, -1.0):
        session.reset("say the cue", 0)
        replies = []
        with PolicyServer(BatchPolicy(policy), port=port).background() as server:
            client = PolicyClient(server.url, reconnect_s=20.0)
            for t in (0, 1):
                replies.append(step(session, client, seen(cue, t)))
        with PolicyServer(BatchPolicy(policy), port=port).background():
            session.watch({STATE: seen(cue, 2)})
            session.sent(np.zeros(1, np.float32))
            for t in (3, 4):
                replies.append(step(session, client, seen(cue, t)))
            client.close()
        assert {n for n, _ in replies} == {policy.policy.context_net.memory_width}, "it does not grow"
        assert replies[-1][1] * cue > 0.7


def step(session: Session, client: PolicyClient, state: np.ndarray) -> tuple[int, float]:
    """One decision: how many numbers it gave to remember, and what it answered."""
    session.observe({STATE: state})
    request = session.ask()
    assert request is not None
    reply = client.infer(request.to_wire())
    session.answer(reply["actions"], reply["memory"])
    answer = float(session.next()[0])
    session.sent(np.zeros(1, np.float32))
    return len(reply["memory"]["values"]), answer


def test_a_memory_keeps_a_cue_that_two_observations_have_lost(recurrent: LocalPolicy, data: Path) -> None:
    assert last_answer(recurrent, 1.0) > 0.7
    assert last_answer(recurrent, -1.0) < -0.7
    forgetful = trained(Stack(), data)
    assert last_answer(forgetful, 1.0) == last_answer(forgetful, -1.0), "chance: it sees the same"
    assert abs(last_answer(forgetful, 1.0)) < 0.4


def test_without_its_memory_the_answer_is_lost(recurrent: LocalPolicy) -> None:
    blank = Request({STATE: seen(1.0, 3)}, 0)
    assert abs(float(recurrent.infer(blank.to_wire())["actions"][0, 0])) < 0.7


def test_the_memory_of_another_checkpoint_is_refused(recurrent: LocalPolicy, data: Path) -> None:
    reply = recurrent.infer(Request({STATE: seen(1.0, 0)}, 0).to_wire())
    assert reply["memory"]["values"].shape == (16,)
    other = {**reply["memory"], "checkpoint": "0" * 64}
    with pytest.raises(BadRequest, match="the memory is of the checkpoint 00000000, and this is"):
        recurrent.infer(Request({STATE: seen(1.0, 0)}, 0, memory=other).to_wire())
    with pytest.raises(BadRequest, match="what the last reply gave"):
        recurrent.infer(Request({STATE: seen(1.0, 0)}, 0, memory=np.zeros(16)).to_wire())
