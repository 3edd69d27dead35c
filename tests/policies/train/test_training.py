"""Recipes, training, resuming and checkpoints, on real stores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import CAMERA, FEATURES, WITH_IMAGE, write_store
from contracts.recipes import small
from safetensors.torch import load_file

from ulna.datasets.features import ACTION, PAST, STATE
from ulna.datasets.normalise import affine
from ulna.datasets.reading.windows import Windows
from ulna.datasets.stats import compute_stats
from ulna.policies.backbones.backbone import Head, Sizes
from ulna.policies.checkpoint import CheckpointError, load_checkpoint, read_train, save_checkpoint
from ulna.policies.hooks.guidance import CFG
from ulna.policies.parts import leaves, override, recipe_from_json, recipe_to_json
from ulna.policies.policy import Policy
from ulna.policies.recipes.all import RECIPES
from ulna.policies.request import Request
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.protocol import BadRequest
from ulna.policies.train.data import DataOptions, open_data, tensors, window_spec
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import Progress, train
from ulna.policies.train.state import STATE_FILE, read_header


@pytest.mark.parametrize(
    ("name", "features"),
    [*((n, FEATURES) for n in RECIPES), ("flow", WITH_IMAGE)],
    ids=[*RECIPES, "flow-image"],
)
def test_a_recipe_overfits_one_batch_and_samples_it(name: str, features, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    store = write_store(tmp_path / "d", features=features)
    changes: dict[str, object] = {"encoder.image": "SmallCNN"} if features is not FEATURES else {}
    recipe = override(small(name, features), changes)
    torch.manual_seed(0)
    windows = Windows(store, window_spec(recipe, features))
    stats = compute_stats(store, [k for k in features if k != CAMERA])
    stats |= recipe.codec.fit(windows, features, recipe.n_past_actions)
    policy = Policy(recipe, features, stats)
    batch = tensors(windows.batch(np.array([5, 9])), "cpu")

    def loss() -> float:
        torch.manual_seed(1)  # the same noise before and after
        return float(torch.stack([policy.loss(batch).detach() for _ in range(8)]).mean())

    before = loss()
    optimizer = torch.optim.AdamW(policy.parameters(), 3e-3)
    for _ in range(4):  # most need one of these: enough is enough
        for _ in range(25):
            optimizer.zero_grad()
            policy.loss(batch).backward()
            optimizer.step()
        if loss() < 0.7 * before:
            break
    else:
        pytest.fail(f"the loss went from {before} to {loss()} only")
    policy.eval()
    if getattr(recipe.context, "chain", 1) > 1:  # it is asked at the first of the windows in a row
        batch = {k: v[:, 0] if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    observation = {k: batch[k] for k in (*policy.observation_keys, *policy.condition_keys)}
    first = policy.sample(Request(observation, 1))
    assert first.chunk.shape == batch[ACTION].shape
    writes = recipe.objective.needs.output == "tokens"  # at most one for each element
    each = first.chunk[0].numel() if writes else getattr(policy.net, "evaluations", 1)
    most = recipe.sampling_steps * each
    most *= 2 if any(isinstance(hook, CFG) for hook in recipe.steering) else 1  # told, and not told
    if name == "ebt" or "fast" in name:  # a row may be done before
        assert 1 <= int(first.nfe.min()) <= int(first.nfe.max()) <= most
    else:
        assert first.nfe.tolist() == [most] * 2
    assert torch.equal(first.chunk, policy.sample(Request(observation, 1)).chunk), "same seed, same action"
    error = (first.chunk - batch[ACTION]).abs().mean()
    assert error < (batch[ACTION] + batch[ACTION].mean()).abs().mean(), "in the action's own units"


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json_and_overrides(name: str) -> None:
    recipe = RECIPES[name](FEATURES)
    assert recipe_from_json(json.loads(json.dumps(recipe_to_json(recipe)))) == recipe
    assert RECIPES[name].__doc__
    for field, (_, value) in leaves(recipe).items():
        text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert override(recipe, {field: text}) == recipe, f"{field} reads back from text"


def test_overrides_say_what_is_wrong() -> None:
    recipe = RECIPES["flow"](FEATURES)
    for changes, says in (
        ({"horizn": "3"}, "no field 'horizn'"),
        ({"horizon": "many"}, "horizon is a int"),
        ({"objective.time": "gamma"}, "beta, uniform"),
        ({"backbone": "Resnet"}, "UNet1D, Transformer"),
        ({"training.betas": "0.9"}, "takes 2 values"),
        ({"n_action_steps": "99"}, r"choose 1\.\.16"),
    ):
        with pytest.raises(ValueError, match=says):
            override(recipe, changes)
    bad = override(recipe, {"horizon": "18"})
    with pytest.raises(ValueError, match="--horizon 20"):
        bad.backbone.build(Sizes(3, bad.horizon, 8, 8), Head())
    assert override(recipe, {"backbone": "Transformer", "backbone.depth": "2"}).backbone.depth == 2  # type: ignore[union-attr]


def test_training_resumes_with_the_losses_of_an_unbroken_run(tmp_path: Path) -> None:
    """Killed for real, by SIGKILL, after a state was saved."""
    write_store(tmp_path / "d")
    recipe = small("flow", steps=14, checkpoint_every=4)
    whole = train(recipe, tmp_path / "d", tmp_path / "whole", device="cpu")
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2]);"
        "from contracts.recipes import small; from ulna.policies.train.loop import train;"
        "from pathlib import Path;"
        "d = Path(sys.argv[1]);"
        "train(small('flow', steps=14, checkpoint_every=4), d / 'd', d / 'cut', device='cpu',"
        " report=lambda p: p.step == 10 and time.sleep(60))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parents[2])])
    state = tmp_path / "cut" / STATE_FILE
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (state.exists() and _steps(state) == 8):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _steps(state) == 8
    with pytest.raises(TrainingError, match="--resume"):
        train(recipe, tmp_path / "d", tmp_path / "cut", device="cpu")
    with pytest.raises(TrainingError, match="--seed was 0, not 1: "):
        train(recipe, tmp_path / "d", tmp_path / "cut", device="cpu", resume=True, seed=1)
    resumed = train(recipe, tmp_path / "d", tmp_path / "cut", device="cpu", resume=True)
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-5)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut")]
    torch.testing.assert_close(
        *weights, rtol=1e-4, atol=1e-5
    )  # averages of all steps, those before the kill too
    assert _steps(state) == 14, "a finished training can go on with more steps"
    assert any((tmp_path / "cut" / "tensorboard").iterdir())


def grow(data: Path) -> None:
    """One more episode; those before stay as they are."""
    shutil.rmtree(data)
    write_store(data, (20, 13, 25))


def _stop(at: int, progress: Progress) -> None:
    if progress.step == at:
        raise KeyboardInterrupt


def test_a_finished_training_goes_on_with_more_steps_and_data_that_grew(tmp_path: Path) -> None:
    data, out = tmp_path / "d", tmp_path / "p"
    write_store(data)
    resume = partial(train, data=data, out=out, device="cpu", track=(), resume=True)
    first = train(small("flow", steps=4), data, out, device="cpu", track=())
    with pytest.raises(TrainingError, match="already trained 4 of 4 steps: more --steps"):
        resume(small("flow", steps=4))
    with pytest.raises(TrainingError, match="go on with it by --resume --steps N"):
        train(small("flow", steps=8), data, out, device="cpu")
    with pytest.raises(TrainingError, match=r"--training\.batch-size was"):
        resume(small("flow", steps=8, batch_size=2))
    more = resume(small("flow", steps=8))
    assert more.losses[:4] == first.losses
    assert len(more.losses) == 8
    assert read_train(out).steps == 8

    scale, says = load_checkpoint(out).stats[STATE].mean, []
    grow(data)
    with pytest.raises(KeyboardInterrupt):
        resume(small("flow", steps=10), say=says.append, report=partial(_stop, 10))
    assert "the data have grown by 1 episodes since it was trained: it goes on with all 3" in says
    assert _steps(out / STATE_FILE) == 9
    last = resume(small("flow", steps=10))
    assert last.losses[:8] == more.losses
    assert np.array_equal(load_checkpoint(out).stats[STATE].mean, scale), "with the scales of its weights"


def test_an_unfinished_training_ends_with_the_data_that_it_began_with(tmp_path: Path) -> None:
    data, out = tmp_path / "d", tmp_path / "p"
    write_store(data)
    recipe = small("flow", steps=6, checkpoint_every=3)
    whole = train(recipe, data, tmp_path / "whole", device="cpu", track=())

    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, out, device="cpu", track=(), report=partial(_stop, 4))
    grow(data)
    says: list[str] = []
    resumed = train(recipe, data, out, device="cpu", track=(), resume=True, say=says.append)
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-5)
    assert any("it ends without them, as it was begun" in s for s in says)


def _steps(state: Path) -> int:
    return len(read_header(state)["losses"])


def test_accumulated_batches_train_like_one(tmp_path: Path) -> None:
    write_store(tmp_path / "d")
    result = train(small("act", accumulate=2), tmp_path / "d", tmp_path / "out", device="cpu")
    assert len(result.losses) == 6
    assert all(np.isfinite(result.losses))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    write_store(root / "d")
    train(small("flow"), root / "d", root / "flow", device="cpu")
    return root / "flow"


def copy(trained: Path, to: Path) -> Path:
    import shutil

    shutil.copytree(trained, to)
    return to


def test_a_checkpoint_comes_back_the_same(trained: Path, tmp_path: Path) -> None:
    policy, again = load_checkpoint(trained), load_checkpoint(trained)
    o = {
        k: torch.zeros(1, policy.recipe.n_obs_steps, *policy.features[k].shape)
        for k in policy.observation_keys
    }
    assert torch.equal(policy.sample(Request(o, 3)).chunk, again.sample(Request(o, 3)).chunk)
    assert save_checkpoint(tmp_path / "again", policy, read_train(trained)) == policy.content_hash
    assert read_train(tmp_path / "again") == read_train(trained)
    names = {p.name for p in trained.iterdir()}
    assert {"model.safetensors", "recipe.json", "features.json", "stats.json", "train.json"} <= names
    assert not [n for n in names if n.endswith((".pt", ".pkl", ".bin"))]


def test_damaged_and_foreign_checkpoints_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "foreign").mkdir()
    with pytest.raises(CheckpointError, match="lacks model"):
        load_checkpoint(tmp_path / "foreign")
    cut = copy(trained, tmp_path / "cut")
    os.truncate(cut / "model.safetensors", 1000)
    with pytest.raises(CheckpointError, match="truncated or was changed"):
        load_checkpoint(cut)
    changed = copy(trained, tmp_path / "changed")
    (changed / "stats.json").write_text((changed / "stats.json").read_text().replace("0.", "1.", 1))
    with pytest.raises(CheckpointError, match="content hash"):
        load_checkpoint(changed)
    newer = copy(trained, tmp_path / "newer")
    (newer / "hash.json").write_text('{"format": 99, "sha256": ""}')
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(newer)


def test_nothing_is_trained_over_what_is_there(trained: Path, tmp_path: Path) -> None:
    data = trained.parent / "d"
    with pytest.raises(TrainingError, match="--overwrite"):
        train(small("flow"), data, trained, device="cpu")
    with pytest.raises(TrainingError, match="no unfinished"):
        train(small("flow"), data, tmp_path / "x", device="cpu", resume=True)
    with pytest.raises(TrainingError, match="no observation"):
        open_data(data, ["observation.images.top"])


def test_images_that_do_not_fit_into_the_cache_are_said_once(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in "ab"]
    for name in names:
        write_store(Path(name), (200, 160), WITH_IMAGE)  # 0.77 MiB, of each
    spec = window_spec(small("flow", WITH_IMAGE), WITH_IMAGE)

    def notes(options: DataOptions) -> str:
        return " ".join(open_data(names, None, options).windows(spec).notes)

    says = (
        f"the images of {CAMERA} are decoded anew whenever they are read: all of them take 0.0015 GiB, "
        "and the cache in memory has 0.00098 GiB; --cache-gb 0.01 holds them there, --cache disk on the disk"
    )
    assert notes(DataOptions(cache_bytes=1 << 20)).count(says) == 1, "the first fits, the second does not"
    for options in (DataOptions(), DataOptions(cache_bytes=1 << 24), DataOptions(cache="none")):
        assert "decoded" not in notes(options)


def test_a_local_policy_checks_what_it_is_given(trained: Path) -> None:
    policy = LocalPolicy(trained)
    metadata, recipe = policy.metadata, policy.policy.recipe
    assert Metadata.from_json(json.loads(json.dumps(metadata.to_json()))) == metadata
    good = {k: np.zeros(FEATURES[k].shape, np.float32) for k in FEATURES if k != ACTION}
    reply = policy.infer(Request(good, 4).to_wire())
    actions = reply["actions"]
    assert actions.shape == (metadata.n_actions_ahead, 3)
    assert (metadata.horizon, metadata.n_past_actions) == (recipe.horizon, recipe.n_past_actions)
    assert metadata.needs_past == recipe.needs_past
    assert (reply["nfe"], reply["checkpoint"]) == (10, metadata.checkpoint)
    repeated = policy.infer(Request({k: np.stack([v, v]) for k, v in good.items()}, 4).to_wire())
    np.testing.assert_array_equal(actions, repeated["actions"])
    first, again = policy.infer(good), policy.infer(good)
    assert (first["actions"] != again["actions"]).any(), "no seed, no repetition"
    for bad, says in (
        ({STATE: good[STATE]}, "lacks observation.environment_state"),
        ({**good, STATE: np.zeros(4, np.float32)}, r"float32 \(4,\), the policy wants float32 \(3,\)"),
        ({**good, STATE: np.full(3, np.nan, np.float32)}, "not finite"),
        ({**good, STATE: np.array(["a", "b", "c"])}, "the policy wants float32"),
    ):
        with pytest.raises(BadRequest, match=says):
            policy.infer(bad)


def test_normalised_actions_lie_in_the_unit_box(trained: Path) -> None:
    policy = load_checkpoint(trained)
    scale, offset = affine(policy.stats[ACTION], "minmax")
    ends = np.stack([policy.stats[ACTION].min, policy.stats[ACTION].max]) * scale + offset
    np.testing.assert_allclose(ends, [[-1] * 3, [1] * 3], atol=1e-5)
    x = torch.rand(2, 5, 3)
    torch.testing.assert_close(policy.codec.decode(policy.codec.encode(x, {}), {}), x)


def actions(policy: LocalPolicy, observation: dict[str, np.ndarray], past: Any = None) -> np.ndarray:
    return policy.infer(Request(observation, 1, past).to_wire())["actions"]


def test_relative_chunks_start_from_the_state_and_go_on_from_what_was_sent(tmp_path: Path) -> None:
    write_store(tmp_path / "d")
    changes = {
        "codec": "Relative",
        "n_past_actions": 2,
        "steering": "Inpaint",
    }
    recipe = override(small("flow"), changes)
    train(recipe, tmp_path / "d", tmp_path / "out", device="cpu")
    local = LocalPolicy(tmp_path / "out")
    assert (local.metadata.needs_past, local.metadata.n_past_actions) == (True, 2)
    policy = local.policy
    o = {k: torch.zeros(1, 2, *FEATURES[k].shape) for k in policy.observation_keys}
    moved = {**o, STATE: o[STATE] + 0.0}
    moved[STATE][:, -1] += 5.0
    past = torch.tensor([[[0.1, 0.2, 0.3], [0.2, 0.3, 0.4]]])
    for observation in (o, moved):
        chunk = policy.sample(Request(observation, 0, past)).chunk
        torch.testing.assert_close(chunk[:, :2], past, atol=1e-4, rtol=0)
    far = policy.sample(Request(moved, 0)).chunk.mean() - policy.sample(Request(o, 0)).chunk.mean()
    assert far > 2.0, "the chunk moves with the state it is measured from"

    flat = {k: np.zeros(FEATURES[k].shape, np.float32) for k in policy.observation_keys}
    one, other = (actions(local, flat, np.full((2, 3), v, np.float32)) for v in (0.0, 0.5))
    assert (one != other).any()
    assert (actions(local, flat) != one).any(), "without it the chunk is drawn freely"
    with pytest.raises(
        BadRequest, match=r"action.past is float32 \(3,\), the policy wants finite float \(2, 3\)"
    ):
        actions(local, flat, np.zeros(3, np.float32))

    names = {**FEATURES, STATE: type(FEATURES[STATE])((3,), "float32", ("x", "y", "z"))}
    with pytest.raises(ValueError, match="--codec Absolute"):
        Policy(recipe, names, policy.stats)


def test_deltas_are_measured_from_the_last_command(tmp_path: Path) -> None:
    write_store(tmp_path / "d")
    recipe = override(small("flow"), {"codec": "Delta", "n_past_actions": "1"})
    train(recipe, tmp_path / "d", tmp_path / "out", device="cpu")
    local = LocalPolicy(tmp_path / "out")
    assert (local.metadata.needs_past, local.metadata.n_past_actions) == (True, 1)
    flat = {k: np.zeros(FEATURES[k].shape, np.float32) for k in local.policy.observation_keys}
    here, there = (actions(local, flat, np.full((1, 3), v, np.float32)) for v in (0.0, 5.0))
    assert (there - here).mean() > 2.0, "the chunk moves with the last command"
    moved = {**flat, STATE: np.full(3, 5.0, np.float32)}
    assert (actions(local, moved) - actions(local, flat)).mean() > 2.0, "or, without one, with the state"
    with pytest.raises(ValueError, match="n_past_actions to at least 1"):
        override(small("flow"), {"codec": "Delta"})


def test_a_delta_is_learned_as_it_is_executed(tmp_path: Path) -> None:
    """At an episode's first tick, too, where no command was sent before."""
    write_store(tmp_path / "d")
    recipe = override(small("flow"), {"codec": "Delta", "n_past_actions": 1})
    data = open_data(tmp_path / "d")
    windows = data.windows(window_spec(recipe, data.features))
    fitted = recipe.codec.fit(windows.train, data.features, 1)
    policy = Policy(recipe, data.features, windows.stats() | fitted)
    batch = tensors(windows.train.batch(np.array([0, 20, 7])), "cpu")  # two first ticks, and another
    learned = policy.codec.encode(batch[ACTION], batch)
    acting = {k: batch[k] for k in policy.observation_keys}
    later = acting | {PAST: batch[ACTION][:, :1]}
    for rows, known in ((slice(2), acting), (slice(2, 3), later)):
        of_rows = {k: v[rows] for k, v in known.items()}
        torch.testing.assert_close(policy.codec.decode(learned[rows], of_rows), batch[ACTION][rows])
        seen, taught = (policy.encodings(o)[rows] for o in (known, batch))
        torch.testing.assert_close(taught, seen)
