"""What a training can be told: to begin from a checkpoint, to freeze, to group, to track, and its config."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from contracts.data import FEATURES, write_store
from contracts.recipes import small
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ulna.datasets.edit import relabel
from ulna.datasets.steps import Told
from ulna.policies.checkpoint import load_checkpoint, read_train
from ulna.policies.parts import override, recipe_from_json, recipe_to_json
from ulna.policies.policy import Policy
from ulna.policies.recipe import ParamGroup, Recipe, Training
from ulna.policies.train.config import CONFIG_FILE, flat, to_toml
from ulna.policies.train.data import DataOptions, TrainingData, open_data
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import train
from ulna.policies.train.optimiser import adamw, freeze
from ulna.policies.train.record import TrainingRecord
from ulna.policies.train.state import STATE_FILE, read_header


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return open_data(write_store(tmp_path_factory.mktemp("data") / "d").path)


@pytest.fixture(scope="module")
def first(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small("flow"), data, tmp_path_factory.mktemp("first") / "p", device="cpu").checkpoint


def other_data(folder: Path) -> TrainingData:
    """Twice as far away as the fixture's."""
    from ulna.datasets.features import ACTION
    from ulna.datasets.recording.writer import EpisodeWriter
    from ulna.datasets.store import EpisodeStore

    store = EpisodeStore.create(folder, FEATURES, 20.0)
    writer, rng = EpisodeWriter(store), np.random.default_rng(1)
    writer.start({})
    for t in range(20):
        values = {k: rng.normal(size=f.shape).astype(f.dtype) + 5 for k, f in FEATURES.items()}
        writer.tick(values, {k: (t * 50_000_000, t * 50_000_000 + 1000) for k in values})
    writer.end({"success": True})
    assert ACTION in store.features
    return open_data(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def policy_of(first: Path, **training: Any) -> tuple[Policy, Training]:
    policy = load_checkpoint(first).requires_grad_(True)
    return policy, override(policy.recipe, {f"training.{k}": v for k, v in training.items()}).training


def test_training_begins_from_a_checkpoint_with_its_statistics(first: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    recipe = small("flow", start=str(first), steps=2, learning_rate=0.0)
    train(recipe, other_data(tmp_path / "far"), tmp_path / "p", device="cpu", say=notes.append)
    before, after = load_checkpoint(first), load_checkpoint(tmp_path / "p")
    for key, stats in before.stats.items():
        np.testing.assert_array_equal(after.stats[key].max, stats.max)
    assert all(torch.equal(v, weights(first)[k]) for k, v in weights(tmp_path / "p").items())
    n = len(weights(first))
    assert notes == [f"began with {n} of {n} weights from the checkpoint {before.content_hash[:8]}"]
    assert read_train(tmp_path / "p").start == before.content_hash


def test_what_does_not_fit_a_checkpoint_is_named_with_both_shapes(
    data: TrainingData, first: Path, tmp_path: Path
) -> None:
    recipe = small("flow", start=str(first), steps=1)
    notes: list[str] = []
    wider = override(recipe, {"backbone.widths": (32, 96)})
    train(wider, data, tmp_path / "p", device="cpu", say=notes.append)
    (note,) = notes
    assert "of another shape, so new: net." in note
    assert "(64," in note
    assert "(96," in note
    stranger = override(small("act_plain", start=str(first), steps=1), {"encoder.state.width": 24})
    with pytest.raises(TrainingError, match="no weight of the flow to start from fits this act"):
        train(stranger, data, tmp_path / "q", device="cpu")
    with pytest.raises(ValueError, match="no checkpoint folder"):
        train(small("flow", start=str(tmp_path / "no")), data, tmp_path / "q", device="cpu")


def test_frozen_weights_stay_and_the_rest_moves(data: TrainingData, first: Path, tmp_path: Path) -> None:
    recipe = small("flow", start=str(first), freeze=("encoder.*",), weight_decay=0.5, learning_rate=1e-2)
    train(recipe, data, tmp_path / "p", device="cpu")
    before, after = weights(first), weights(tmp_path / "p")
    assert any(k.startswith("encoder.") for k in before)
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith("encoder."), name


def test_groups_have_rates_and_decays_of_their_own(first: Path) -> None:
    policy, t = policy_of(first, groups="encoder.*:0.1 *.bias:1:0", freeze="encoder.*.bias")
    freeze(policy, t)
    rest, encoder, biases = adamw(policy, t).param_groups
    assert (rest["factor"], encoder["factor"], biases["factor"]) == (1.0, 0.1, 1.0)
    assert (encoder["weight_decay"], biases["weight_decay"]) == (t.weight_decay, 0.0)
    names = {id(p): n for n, p in policy.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in encoder["params"]} == {"encoder"}
    assert all(names[id(p)].endswith("weight") for p in encoder["params"]), "its biases are frozen"
    assert all(names[id(p)].startswith("net.") for p in biases["params"])
    count = sum(len(g["params"]) for g in (rest, encoder, biases))
    assert count == sum(p.requires_grad for p in policy.parameters())


def test_a_group_that_does_not_learn_does_not_move(data: TrainingData, first: Path, tmp_path: Path) -> None:
    recipe = small("flow", start=str(first), groups=(ParamGroup("net.*", 0.0),), learning_rate=1e-2)
    train(recipe, data, tmp_path / "p", device="cpu")
    before, after = weights(first), weights(tmp_path / "p")
    assert all(torch.equal(v, before[k]) == k.startswith("net.") for k, v in after.items())


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest(first: Path) -> None:
    for option, use in (("freeze", freeze), ("groups", adamw), ("ema_skip", freeze)):
        policy, t = policy_of(first, **{option: "encodr.*"})
        says = rf"--training.{option.replace('_', '-')} encodr\.\* matches no weight: .* encoder\.\*"
        with pytest.raises(TrainingError, match=says):
            use(policy, t)
    policy, t = policy_of(first, freeze="*")
    with pytest.raises(TrainingError, match="leaves no weights to train"):
        freeze(policy, t)


def test_names_in_ema_skip_are_saved_as_trained(data: TrainingData, tmp_path: Path) -> None:
    common: dict[str, Any] = {"learning_rate": 1e-2, "ema_power": 0.2}
    results = {}
    for name, skip in (("average", ()), ("parted", ("net.*",)), ("trained", ("*",))):
        train(small("flow", ema_skip=skip, **common), data, tmp_path / name, device="cpu")
        results[name] = weights(tmp_path / name)
    for key, value in results["parted"].items():
        source = "trained" if key.startswith("net.") else "average"
        assert torch.equal(value, results[source][key]), key
    assert any(not torch.equal(v, results["average"][k]) for k, v in results["trained"].items())


def test_new_fields_survive_json_and_text() -> None:
    changes = {
        "training.freeze": "encoder.* net.out",
        "training.groups": "net.*:0.5 *.bias:1:0",
        "training.ema_skip": "*.scale",
        "training.start": "runs/a",
    }
    recipe = override(small("flow"), changes)
    t = recipe.training
    assert t.freeze == ("encoder.*", "net.out")
    assert t.groups == (ParamGroup("net.*", 0.5), ParamGroup("*.bias", 1.0, 0.0))
    assert recipe_from_json(recipe_to_json(recipe)) == recipe
    assert override(small("flow"), {**changes, "training.groups": " ".join(map(str, t.groups))}) == recipe
    as_tables = [{"pattern": "net.*", "learning_rate": 0.5}, {"pattern": "*.bias", "weight_decay": 0}]
    assert override(recipe, {"training.groups": as_tables}) == recipe
    old = recipe_to_json(small("flow"))
    for name in ("start", "freeze", "groups", "ema_skip"):
        del old["training"][name]
    assert recipe_from_json(old) == small("flow"), "a recipe of before"
    for bad in ("net.*:fast", "net.*:1:0:2", [{"learning_rate": 1}], [{"pattern": "*", "decay": 1}]):
        with pytest.raises(ValueError, match="a parameter group is a pattern"):
            override(recipe, {"training.groups": bad})


def test_all_options_together_resume_exactly(data: TrainingData, first: Path, tmp_path: Path) -> None:
    recipe = small(
        "flow",
        steps=6,
        checkpoint_every=2,
        start=str(first),
        freeze=("encoder.*",),
        groups=(ParamGroup("*.bias", 0.5, 0.1),),
        ema_skip=("*.bias",),
    )
    whole = train(recipe, data, tmp_path / "whole", device="cpu")

    def stop(progress: Any) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, tmp_path / "cut", device="cpu", report=stop)
    other = override(recipe, {"training.groups": (), "training.steps": 7})
    with pytest.raises(TrainingError) as refusal:
        train(other, data, tmp_path / "cut", device="cpu", resume=True)
    assert "--training.steps was 6, not 7" in str(refusal.value)
    assert "--training.groups was *.bias:0.5:0.1, not nothing" in str(refusal.value)
    resumed = train(recipe, data, tmp_path / "cut", device="cpu", resume=True)
    assert resumed.losses == whole.losses
    assert resumed.content_hash == whole.content_hash


def test_an_unfinished_training_of_before_the_new_options_goes_on(data: TrainingData, tmp_path: Path) -> None:
    recipe = small("flow", steps=4, checkpoint_every=2)
    whole = train(recipe, data, tmp_path / "whole", device="cpu")

    def stop(progress: Any) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, tmp_path / "cut", device="cpu", report=stop)
    state = tmp_path / "cut" / STATE_FILE
    header = read_header(state)
    del header["identity"]["start"]
    for name in ("start", "freeze", "groups", "ema_skip"):
        del header["identity"]["recipe"]["training"][name]
    save_file(load_file(state), state, metadata={"ulna": json.dumps(header)})
    (tmp_path / "cut" / CONFIG_FILE).unlink()
    assert train(recipe, data, tmp_path / "cut", device="cpu", resume=True).losses == whole.losses


def test_the_config_holds_every_option_and_no_none(data: TrainingData, first: Path) -> None:
    config = tomllib.loads((first / CONFIG_FILE).read_text())
    assert config["recipe"] == "flow"
    assert config["data"] == data.paths
    assert config["backbone"]["part"] == "UNet1D"
    names = flat(config)
    assert names["training.batch_size"] == 8
    assert names["backbone.widths"] == [32, 64]
    assert {"seed", "weights", "validate", "track", "cache", "horizon"} <= names.keys()
    assert not {"out", "name", "paper", "resume", "device.part"} & names.keys()


plain = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8)
tables = st.recursive(
    st.dictionaries(st.text(max_size=6), plain, max_size=4),
    lambda inner: st.dictionaries(
        st.text(max_size=6), plain | inner | st.lists(plain | inner, max_size=3), max_size=4
    ),
    max_leaves=12,
)


@given(tables)
def test_what_is_written_as_toml_is_read_back(values: dict[str, Any]) -> None:
    back = tomllib.loads(to_toml(values))
    assert back == values
    assert json.dumps(back, sort_keys=True) == json.dumps(values, sort_keys=True), "1, 1.0 and true differ"


def test_toml_has_no_none() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        to_toml({"a": None})
    assert tomllib.loads(to_toml({"a": math.inf}))["a"] == math.inf


class Ledger(GeneralTracker):
    name = "ledger"
    requires_logging_directory = False
    rows: list[tuple[dict[str, Any], int | None]]
    runs: ClassVar[list[Ledger]] = []

    def __init__(self, run_name: str, **_: Any) -> None:
        super().__init__()
        self.rows, self.settings, self.finished = [], {}, False
        Ledger.runs.append(self)

    @property
    def tracker(self) -> Any:
        return self.rows

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.rows.append((values, step))

    def finish(self) -> None:
        self.finished = True


def test_curves_go_to_the_trackers_that_are_named(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "ledger", Ledger)
    recipe: Recipe = small("flow", steps=12)
    result = train(recipe, data, tmp_path / "p", device="cpu", track=["ledger"])
    (ledger,) = Ledger.runs
    assert [step for _, step in ledger.rows] == [10, 12]
    assert ledger.rows[1][0]["loss"] == result.losses[-1]
    assert ledger.settings["training.steps"] == 12
    assert ledger.finished
    assert not (tmp_path / "p" / "tensorboard").exists()
    with pytest.raises(TrainingError, match="no tracker 'tensorbord': did you mean tensorboard"):
        train(recipe, data, tmp_path / "q", track=["tensorbord"])


def test_a_tracker_that_is_not_installed_is_one_sentence(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ulna.policies.train.track.get_available_trackers", list)
    with pytest.raises(TrainingError, match="--track wandb needs the package wandb, which is not installed"):
        train(small("flow"), data, tmp_path / "q", track=["wandb"])
    assert not (tmp_path / "q").exists()


def test_a_policy_is_told_the_wordings_of_a_task_or_its_steps(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d")
    relabel(store, [0], {"task": "tidy up", "phrases": ["clear the table"]})
    relabel(store, [1], {"task": "tidy up", "steps": [("open the box", 0.5), ("put it in", None)]})
    recipe = small("sparse_dp", steps=2)

    def run(out: str, told: Told = "task", **options: Any) -> TrainingRecord:
        opened = open_data(store.path, options=DataOptions(told=told))
        train(recipe, opened, tmp_path / out, device="cpu", track=(), **options)
        return read_train(tmp_path / out)

    assert run("a").tasks == ["clear the table", "tidy up"]
    assert run("b", told="steps").tasks == ["open the box", "put it in", "tidy up"]
    recipe = small("sparse_dp", steps=3)
    with pytest.raises(TrainingError, match="--told was task, not steps"):
        run("a", told="steps", resume=True)
    relabel(store, [0], {"phrases": ["make it neat"]})
    with pytest.raises(TrainingError, match="the labels that say what the policy is told"):
        run("a", resume=True)
    assert run("b", told="steps", resume=True).steps == 3, "of a label that it was not told"
    recipe = small("flow", steps=2)
    with pytest.raises(TrainingError, match="this one is not: leave it out"):
        run("c", told="steps")
