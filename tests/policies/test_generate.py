"""Policies that are drawn: weights as data, a zoo, and generators of checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.recipes import small

from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, STATE, Feature, Features
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.stats import vector_stats
from ulna.datasets.store import EpisodeStore
from ulna.policies.backbones.mlp import ResidualMLP
from ulna.policies.backbones.pieces import Pieces
from ulna.policies.checkpoint import load_checkpoint, read_train, save_checkpoint
from ulna.policies.components import ComponentsCodec, PrincipalComponents
from ulna.policies.generate import generate
from ulna.policies.hashed import CheckpointError
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipe import Recipe
from ulna.policies.recipes.all import RECIPES
from ulna.policies.request import Request
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.train.data import DataOptions, open_data
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import train
from ulna.policies.train.record import TrainingRecord
from ulna.policies.weights import aligned, floating, hidden_units, names_of, renumbered, set_vector, to_vector
from ulna.policies.zoo import BEHAVIOUR, make_zoo, read_zoo, zoo_vectors
from ulna.robot.cli import main

FEATURES: Features = {
    STATE: Feature((2,), "float32", ("x", "y"), ("m", "m")),
    ACTION: Feature((2,), "float32", ("x", "y"), ("m", "m")),
}
SMALL = {"backbone": "SmallMLP", "encoder.state.depth": 0}
ONE_TICK = {"n_obs_steps": 1, "horizon": 1, "n_action_steps": 1}
HELD_OUT = 0.25  # a parameter that no member of the zoo has
PARAMETERS = (-1.0, -0.8, -0.6, -0.4, -0.2, 0.0, 0.5, 0.7, 0.9)


def recipe(widths: tuple[int, int] = (8, 6)) -> Recipe:
    return override(RECIPES["regression_mlp"](FEATURES), {**SMALL, **ONE_TICK, "backbone.widths": widths})


def untrained(recipe: Recipe, scale: float = 1.0) -> Policy:
    torch.manual_seed(0)
    of = np.array([[-scale, -scale], [scale, scale]])
    return Policy(recipe, FEATURES, {k: vector_stats(of) for k in FEATURES}).eval()


def shuffled(policy: Policy, seed: int) -> None:
    """Number its hidden units otherwise."""
    rng, state = np.random.default_rng(seed), floating(policy)
    for units in hidden_units(policy):
        name, axis = units[0]
        state = renumbered(state, units, rng.permutation(state[name].shape[axis]))
    policy.load_state_dict({**policy.state_dict(), **state})


def moved(by: float, seed: int, scale: float = 1.0, widths: tuple[int, int] = (8, 6)) -> Policy:
    """The policy whose actions lie `by` m to the right of those of the others' common ancestor."""
    policy = untrained(recipe(widths), scale)
    layer: Any = policy.net.layers[-1]  # type: ignore[index]
    with torch.no_grad():
        layer.bias[0] += by
    shuffled(policy, seed)
    return policy


def acts(policy: Policy, state: tuple[float, float] = (0.3, -0.2)) -> np.ndarray:
    seen = {STATE: torch.tensor(state)[None, None]}
    return policy.sample(Request(seen, 0)).chunk[0, 0].detach().numpy()


def demonstrate(path: Path, parameters: tuple[float, ...]) -> EpisodeStore:
    """An episode of each, which see the same."""
    store = EpisodeStore.create(path, FEATURES, 10.0)
    with EpisodeWriter(store) as writer:
        for by in parameters:
            rng = np.random.default_rng(0)
            writer.start({"task": ""})
            for t in range(6):
                state = rng.uniform(-1, 1, 2).astype(np.float32)
                row = {STATE: state, ACTION: np.array([by, 0], np.float32)}
                writer.tick(row, {k: (t * 10**8, t * 10**8) for k in row})
            writer.end({"success": True})
    store.refresh()
    return store


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policies that only differ in where they go, and in how their hidden units are numbered, with an episode
    of each."""
    root = tmp_path_factory.mktemp("zoo")
    demonstrate(root / "d", (*PARAMETERS, HELD_OUT))
    for i, by in enumerate(PARAMETERS):
        record = TrainingRecord(data=str(root / "d"), episodes=[[i]])
        save_checkpoint(root / "zoo" / f"run{i}", moved(by, i), record)
    return root


@pytest.fixture(scope="module")
def generator(zoo: Path) -> Path:
    make_zoo(zoo / "zoo", zoo / "data", "behaviour", ticks=4)
    made = small("make_an_agent", steps=250, learning_rate=3e-3, warmup=20, batch_size=32)
    return train(made, zoo / "data", zoo / "generator", device="cpu", track=()).checkpoint


def test_numbers_of_hidden_units_change_nothing_and_are_found_again() -> None:
    plain = override(RECIPES["regression_mlp"](FEATURES), ONE_TICK)
    for part in (recipe(), override(plain, {"backbone": ResidualMLP(16, 2)})):
        policy = untrained(part)
        before, did = to_vector(policy), acts(policy)
        shuffled(policy, 1)
        assert np.abs(to_vector(policy) - before).max() > 0.01
        np.testing.assert_allclose(acts(policy), did, atol=1e-6)
        np.testing.assert_array_equal(aligned(policy, before), before)
    assert hidden_units(untrained(override(plain, {"backbone": "Transformer"}))) == [], "it does not say"


def test_weights_are_one_vector_and_come_back() -> None:
    policy, other = moved(0.5, 1), moved(-0.5, 2)
    vector = to_vector(policy)
    assert vector.shape == (len(names_of(policy)),)
    assert names_of(policy)[-1] == "net.layers.2.bias:1"
    set_vector(other, vector)
    assert np.array_equal(acts(other), acts(policy))
    with pytest.raises(ValueError, match=rf"has {len(vector)} weights, and is given 3"):
        set_vector(other, np.zeros(3, np.float32))


def test_components_hold_what_varies_and_give_it_back() -> None:
    rng = np.random.default_rng(0)
    actions = (rng.normal(size=(50, 3)) * [5, 2, 1]) @ rng.normal(size=(3, 20)) + rng.normal(size=20)
    stats = {ACTION: vector_stats(actions)}
    codec = PrincipalComponents(3).build({}, stats, 0)
    assert isinstance(codec, ComponentsCodec)
    assert codec.learn(actions).startswith(
        "3 components stand for the 20 elements of an action, with 100.0 %"
    )
    rows = torch.as_tensor(actions, dtype=torch.float32)[:, None]
    drawn = codec.encode(rows, {})
    np.testing.assert_allclose(drawn.std(0, unbiased=False), np.ones((1, 3)), atol=1e-4)
    torch.testing.assert_close(codec.decode(drawn, {}), rows, atol=1e-4, rtol=1e-4)
    again = PrincipalComponents(3).build({}, stats, 0)
    again.load_state_dict(codec.state_dict())
    assert torch.equal(again.encode(rows, {}), drawn), "they lie in the checkpoint"
    fewer = PrincipalComponents(2).build({}, stats, 0)
    assert isinstance(fewer, ComponentsCodec)
    fewer.learn(actions)
    assert not torch.allclose(fewer.decode(fewer.encode(rows, {}), {}), rows, atol=0.1)


def test_a_zoo_is_a_dataset_of_trainings(zoo: Path, generator: Path) -> None:
    store = EpisodeStore.open(zoo / "data")
    assert len(store) == len(PARAMETERS)
    vectors = np.concatenate([e.read(ACTION) for e in store.episodes])
    differ = np.flatnonzero(vectors.std(0) > 1e-6)
    assert [store.features[ACTION].names[i] for i in differ] == ["net.layers.2.bias:0"], "units are aligned"
    behaviours = np.concatenate([e.read(BEHAVIOUR) for e in store.episodes])
    assert behaviours.shape == (len(PARAMETERS), 4 * 4)
    np.testing.assert_allclose(behaviours.reshape(-1, 4, 4)[:, :, 2], np.tile(PARAMETERS, (4, 1)).T)
    data = open_data(zoo / "data", None, DataOptions(validate=0.3))
    runs = [{store.episodes[i].attrs["run"] for i in part[0]} for part in (data.episodes, data.held_out)]
    assert all(runs)
    assert not runs[0] & runs[1], "whole trainings are held out"


def test_a_policy_is_drawn_for_a_parameter_that_none_was_trained_for(
    zoo: Path, generator: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = acts(moved(0.0, 0))

    def goes(episode: int, name: str) -> float:
        line = ["generate", str(generator), str(zoo / "zoo" / "run0"), "--out", str(tmp_path / name)]
        assert main([*line, "--shown", str(zoo / "d"), "--episode", str(episode), "--json"]) == 0
        answer = json.loads(capfd.readouterr().out)
        record = read_train(tmp_path / name)
        assert record.generated["by"] == answer["by"] == load_checkpoint(generator).content_hash
        reply = LocalPolicy(tmp_path / name).infer({STATE: np.array([0.3, -0.2], np.float32)})
        assert reply["checkpoint"] == answer["content_hash"], "it is served like any other"
        return float((reply["actions"][0] - base)[0])

    nearest = min(abs(HELD_OUT - p) for p in PARAMETERS)
    own = abs(goes(len(PARAMETERS), "own") - HELD_OUT)
    assert own < 0.7 * nearest, "nearer than the nearest checkpoint"
    for i, by in ((0, PARAMETERS[0]), (8, PARAMETERS[8])):
        assert abs(goes(i, f"of{i}") - by) < 0.3, "control: another behaviour gives another policy"


def rated(zoo: Path, root: Path) -> Path:
    """A zoo of trainings with three checkpoints each; the further one goes the better it does."""
    for run in range(5):
        for stage, by in enumerate((-0.5, 0.0, 0.5)):
            folder = root / "rated" / f"run{run}" / f"{stage}"
            content_hash = save_checkpoint(folder, moved(by, 3 * run + stage), TrainingRecord())
            counts = {"robot": "sim:so101", "task": "lift", "episodes": 10, "successes": 5 + 4 * (stage - 1)}
            report = {"kind": "closed-loop", "checkpoint": content_hash, **counts}
            (folder / "validation").mkdir()
            (folder / "validation" / "lift.json").write_text(json.dumps(report))
    return root / "rated"


def test_a_policy_is_drawn_of_another_and_the_success_that_is_wanted(zoo: Path, tmp_path: Path) -> None:
    folder = rated(zoo, tmp_path)
    result = make_zoo(folder, tmp_path / "data", "metric")
    assert (result["runs"], result["policies"], result["examples"]) == (5, 15, 5 * 6)
    features = EpisodeStore.open(tmp_path / "data").features
    made = small("g_pt", features, steps=200, learning_rate=3e-3, warmup=20, batch_size=30)
    lengths = [v.numel() for v in moved(0, 0).net.parameters()]  # enter, then weights and biases
    layers = [a + b for a, b in zip(lengths[1::2], lengths[2::2], strict=True)]
    assert isinstance(made.backbone, Pieces)
    assert made.backbone.lengths == (lengths[0], *layers)
    train(made, tmp_path / "data", tmp_path / "generator", device="cpu", track=())
    base, goes = acts(moved(0.0, 0)), {}
    for metric in (0.1, 0.9):
        out = tmp_path / f"{metric}"
        start = folder / "run2" / "1"
        told = generate(tmp_path / "generator", start, out, metric=metric)["metric"]
        assert told == [0.5, metric]
        goes[metric] = float((acts(load_checkpoint(out)) - base)[0])
    assert goes[0.1] < -0.2
    assert goes[0.9] > 0.2
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"metric": 1.2}, "a success rate, 0 to 1, not 1.2"),
        ({}, r"say it \(--metric 0.9\)"),
        ({"metric": 0.5, "shown": "d"}, "and no --shown"),
    ]
    for options, says in wrong:
        with pytest.raises(TrainingError, match=says):
            generate(tmp_path / "generator", folder / "run2" / "1", tmp_path / "x", **options)
    shutil.rmtree(folder / "run2" / "1" / "validation")
    with pytest.raises(TrainingError, match=r"nobody has evaluated .*1, and its success"):
        generate(tmp_path / "generator", folder / "run2" / "1", tmp_path / "x", metric=0.9)
    with pytest.raises(TrainingError, match="nobody has evaluated"):
        make_zoo(folder, tmp_path / "again", "metric")


def test_what_is_no_zoo_is_said_in_one_sentence(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no zoo: it must hold folders of at least two checkpoints"):
        read_zoo(tmp_path / "nowhere")
    record = TrainingRecord()
    save_checkpoint(tmp_path / "wide" / "a", moved(0, 0), record)
    save_checkpoint(tmp_path / "wide" / "b", moved(0, 0, widths=(8, 7)), record)
    with pytest.raises(
        TrainingError, match=r"not of one kind: the backbone\.widths of one .* is 8 6, of the"
    ):
        read_zoo(tmp_path / "wide")
    save_checkpoint(tmp_path / "scaled" / "a", moved(0, 0), record)
    save_checkpoint(tmp_path / "scaled" / "b", moved(0, 0, scale=2.0), record)
    with pytest.raises(TrainingError, match=r"scale what they see and do otherwise.*--training\.start"):
        read_zoo(tmp_path / "scaled")
    save_checkpoint(tmp_path / "large" / "a", moved(0, 0, widths=(600, 600)), record)
    save_checkpoint(tmp_path / "large" / "b", moved(0, 0, widths=(600, 600)), record)
    with pytest.raises(TrainingError, match="weights is too large to be an action"):
        read_zoo(tmp_path / "large")
    with pytest.raises(TrainingError, match="no training with two checkpoints"):
        make_zoo(zoo / "zoo", tmp_path / "d", "metric")
    with pytest.raises(TrainingError, match="at least 1 tick, not 0"):
        make_zoo(zoo / "zoo", tmp_path / "d", "behaviour", 0)
    assert not (tmp_path / "d").exists()


def test_what_a_generator_cannot_make_is_said_in_one_sentence(
    zoo: Path, generator: Path, tmp_path: Path
) -> None:
    member, out, shown = zoo / "zoo" / "run0", tmp_path / "out", zoo / "d"
    wide = tmp_path / "wide"
    save_checkpoint(wide, moved(0, 0, widths=(8, 7)), TrainingRecord())
    with pytest.raises(TrainingError, match=r"wide is not of the zoo that .*generator learned from"):
        generate(generator, wide, out, shown)
    with pytest.raises(TrainingError, match="run0 makes no policies: train one"):
        generate(member, member, out, shown)
    with pytest.raises(TrainingError, match=r"show it one \(--shown DATA\)"):
        generate(generator, member, out)
    with pytest.raises(TrainingError, match="and no --metric"):
        generate(generator, member, out, shown, metric=0.5)
    with pytest.raises(StoreError, match="episodes 0 to 9, not 12"):
        generate(generator, member, out, shown, episode=12)
    other = {**FEATURES, STATE: Feature((3,), "float32", ("x", "y", "z"), ("m", "m", "m"))}
    with EpisodeWriter(EpisodeStore.create(tmp_path / "other", other, 10.0)) as writer:
        writer.start({"task": ""})
        row = {STATE: np.zeros(3, np.float32), ACTION: np.zeros(2, np.float32)}
        writer.tick(row, {k: (0, 0) for k in row})
        writer.end({})
    with pytest.raises(StoreError, match=r"observation\.state"):
        generate(generator, member, out, tmp_path / "other")
    assert not out.exists()
    generate(generator, member, out, shown)
    with pytest.raises(TrainingError, match="--overwrite"):
        generate(generator, member, out, shown)
    assert zoo_vectors(read_zoo(zoo / "zoo"))[0][0].shape == (len(names_of(load_checkpoint(out))),)
