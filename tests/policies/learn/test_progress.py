"""A progress critic learns from labelled steps how much of a task is done, and is asked by trainings and
learners. Directors that ask it are in tests/robot/directors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import CAMERA, FEATURES, WITH_IMAGE, frame, write_store
from contracts.recipes import small

from ulna.datasets.episode import StoreError
from ulna.datasets.features import ACTION, ENVIRONMENT, STATE, FeatureMismatch, Features
from ulna.datasets.reading.windows import WindowSpec
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.encoders.vector import MLP, Encoder
from ulna.policies.hashed import CheckpointError
from ulna.policies.learn.iql import potential_of
from ulna.policies.learn.steps import Labelled, as_told, counter_errors, errors, learn_progress, spec_like
from ulna.policies.progress import MARKS, Answer, ProgressSpec, gained, load_progress, progress_of
from ulna.policies.train.data import DataOptions, open_data
from ulna.robot.cli import main

TASKS = {"a then b": ("do a", "do b"), "b then a": ("do b", "do a")}
SPEC = ProgressSpec(Encoder(MLP(32, 1)), frames=4, clip_s=0.4, width=64, depth=1)


def recording(path: Path, features: Features = FEATURES, n: int = 24) -> EpisodeStore:
    """A lamp for a, and one for b, is lit for a moment when that is done; afterwards nothing shows it. Every
    fourth episode stops after the first step."""
    store, rng = EpisodeStore.create(path, features, 20.0), np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        for i in range(n):
            task = list(TASKS)[i % 2]
            first, second = int(rng.integers(4, 12)), int(rng.integers(20, 30))
            at = [first] if i // 2 % 4 == 3 else [first, second]
            lit = {words: t for words, t in zip(TASKS[task], at, strict=False)}
            writer.start({"task": task, "agent": "test"})
            for t in range(40):
                values = frame(rng, features, t)
                lamps = [words in lit and 0 <= t - lit[words] < 6 for words in ("do a", "do b")]
                values[ENVIRONMENT] = np.array(lamps, np.float32)
                if CAMERA in features:
                    values[CAMERA] = np.full((24, 32, 3), 250 if any(lamps) else 30, np.uint8)
                writer.tick(values, {k: (t * 50_000_000, t * 50_000_000) for k in values})
            steps = [
                {"words": w, "changes_ns": [lit[w] * 50_000_000] if w in lit else []} for w in TASKS[task]
            ]
            writer.end({"success": len(lit) == 2, "steps": steps})
    return EpisodeStore.open(path)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EpisodeStore, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("progress")
    store = recording(folder / "d")
    answer = learn_progress(folder / "d", folder / "p", SPEC, [ENVIRONMENT], steps=120, batch=8)
    return folder / "p", store, answer


def test_it_remembers_by_its_own_answers_what_no_clip_shows(
    learned: tuple[Path, EpisodeStore, dict[str, Any]],
) -> None:
    folder, store, answer = learned
    critic = load_progress(folder)
    assert critic.measured["mae"] == answer["mae"]
    some = Labelled.of(store, range(len(store)))
    assert np.mean(np.concatenate(errors(critic, some))) < 0.08
    assert np.mean(np.concatenate(counter_errors(SPEC, some, some))) > 0.1
    # told the other task: the same steps in another order, which count just as well
    other = some.told(
        [list(TASKS)[1 - list(TASKS).index(t)] for t in some.tasks], [p[::-1] for p in some.plans]
    )
    assert np.mean(np.concatenate(errors(critic, other))) < 0.12


def test_what_does_not_fit_is_named(
    learned: tuple[Path, EpisodeStore, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _, _ = learned
    critic = load_progress(folder)
    with pytest.raises(FeatureMismatch, match="the progress critic"):
        critic.require_robot({STATE: FEATURES[STATE]})
    with pytest.raises(ValueError, match="knows no plan of 'dance': it knows"):
        critic.plan("dance")
    with pytest.raises(CheckpointError, match="holds a progress critic, and a policy is needed"):
        load_checkpoint(folder)
    with pytest.raises(CheckpointError, match="learn one by `ulna progress`"):
        load_progress(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no vision-language model"):
        spec_like(small("flow"), weights="somewhere")
    write_store(tmp_path / "few", (20, 20))
    with pytest.raises(StoreError, match="1 episodes of which a step is known to be done, and it takes 5"):
        learn_progress(tmp_path / "few", tmp_path / "x")


def test_a_vision_language_model_is_another_encoder(tmp_path: Path) -> None:
    recording(tmp_path / "d", WITH_IMAGE, 8)
    spec = replace(spec_like(small("smolvla_small")), frames=2, clip_s=0.5, width=16, depth=1)
    learn_progress(tmp_path / "d", tmp_path / "p", spec, [CAMERA, STATE], steps=2, batch=2)
    critic = load_progress(tmp_path / "p")
    asked = critic.asked("a then b", TASKS["a then b"], np.array([True, False]), 1)
    assert "1. do a: done\n2. do b: pending\nIs step 2 done now, do b?" in asked
    clip = {CAMERA: np.zeros((2, 24, 32, 3), np.uint8), STATE: np.zeros((2, 3), np.float32)}
    answer = critic.revise(clip, "a then b", Answer.pending(critic.plan("a then b")))
    assert answer.steps == TASKS["a then b"]
    # what was answered before is read: the model's own tokens differ by it
    z = critic.see({k: torch.from_numpy(v)[None] for k, v in clip.items()})
    with torch.no_grad():
        critic.net.enter.weight[:, -MARKS:] = 0  # the marks themselves are not told
        critic.net.out.weight.normal_()
        said = [
            critic.logits(z, ["a then b"], [TASKS["a then b"]], np.array([done]))
            for done in ([False, False], [True, False])
        ]
    assert not torch.allclose(said[0], said[1])


def test_the_command_learns_and_a_training_takes_what_it_made(
    learned: tuple[Path, EpisodeStore, dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, out = str(learned[1].path), str(tmp_path / "p")
    line = ["progress", "--data", data, "--out", out, "--clip", "0.4", "--steps", "2"]
    assert main([*line, "--like", "flow", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["checkpoint"] == load_progress(out).content_hash
    assert answer["tasks"] == 2
    assert main([*line, "--like", "flwo"]) == 2
    assert "did you mean flow" in capfd.readouterr().err
    assert main(["train", "flow", "--data", data, "--out", out, "--weights", "progres:x"]) == 2
    assert "did you mean progress:FOLDER" in capfd.readouterr().err


def test_an_answer_is_a_list_with_marks() -> None:
    answer = Answer(("open", "put in", "close"), (True, False, True))
    assert answer.p == pytest.approx(2 / 3)
    assert answer.next == "put in"
    assert str(answer) == "1. open: done\n2. put in: pending\n3. close: done"


def test_another_plan_counts_the_same_words_as_often_as_they_were_done() -> None:
    done = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]], bool)
    told = as_told(done, ("visit a", "visit b", "visit a"), ("visit a", "visit a", "visit c"))
    assert told.tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0]]


def test_ticks_count_by_the_gain_that_follows() -> None:
    assert gained(np.array([0, 0, 0.5, 0.25, 0.25, 0.5, 1, 1])).tolist() == [0.5, 0.5, *[0.5] * 4, 0, 0]
    assert gained(np.array([0.0, 0.0])).tolist() == [0, 0]


def test_trainings_draw_ticks_by_the_progress_that_they_led_to(
    learned: tuple[Path, EpisodeStore, dict[str, Any]],
) -> None:
    folder, store, _ = learned
    data = open_data(store.path, [STATE], DataOptions(weights=f"progress:{folder}"))
    windows = data.windows(WindowSpec(1, 4, 0, (STATE,), next_after=4))
    assert windows.cumulative is not None
    weight = np.diff(windows.cumulative, prepend=0).reshape(len(store), 40)
    progress = progress_of(load_progress(folder), store, range(len(store)))
    for e, (p, w) in enumerate(zip(progress, weight, strict=True)):
        assert w == pytest.approx(gained(p)), e
    with pytest.raises(StoreError, match="there is no weighting 'progres'"):
        open_data(store.path, [STATE], DataOptions(weights="progres")).windows(WindowSpec(1, 4, 0, (STATE,)))
    # and a learner adds the difference of potentials
    batch = {k: torch.from_numpy(v) for k, v in windows.train.batch(np.array([3, 36, 39])).items()}
    shaping = potential_of(str(folder), data, windows.train, "cpu").shaping(batch, 0.9)
    p = progress[0]
    assert batch["alive"].tolist() == [1, 0, 0]  # the first episode succeeds
    assert shaping.tolist() == pytest.approx([0.9**4 * p[7] - p[3], -p[36], -p[39]])


def test_without_steps_a_task_is_one(tmp_path: Path) -> None:
    store = write_store(tmp_path / "d", (20, 13))
    some = Labelled.of(store, [0, 1])
    assert some.plans == [("task 0",), ("task 1",)]
    assert [int(d.sum()) for d in some.done] == [1, 0], "done at the last tick of the success"
    assert ACTION in store.features
