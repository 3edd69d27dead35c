"""Recording by hand: keys, and how images are kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from ulna.datasets.edit import trash
from ulna.datasets.features import ACTION
from ulna.datasets.steps import marks, steps_of
from ulna.datasets.store import EpisodeStore
from ulna.drivers.teleoperator import Hand
from ulna.robot.agent import HoldAgent
from ulna.robot.cli import main
from ulna.robot.config import Rig, load_robot
from ulna.robot.keys import Keys
from ulna.robot.people import TeleoperatorAgent
from ulna.robot.record import record


def test_keys_end_repeat_and_drop_episodes(tmp_path: Path) -> None:
    """On a real terminal: s marks and ends, r repeats the seed, x drops the one before, q throws the present
    one away."""
    terminal, file = os.openpty()
    typist = Typist(terminal, [b"s", b"r", b"\x1b[C", b"x", b"", b"q"])
    try:
        with Keys(file) as keys, load_robot("sim:so101", "reach") as rig:
            rig.sim.max_seconds = 0.5  # type: ignore[union-attr]
            result = record(rig, typist, tmp_path / "d", 10, keys=keys)
    finally:
        os.close(terminal)
        os.close(file)
    assert typist.seeds == [0, 1, 1, 2, 3, 4]
    store = EpisodeStore.open(tmp_path / "d")
    # seed 0 was kept as a success, 1 ended at once the second time and was then dropped, 2 and 3 ran out
    assert [(e.attrs["seed"], e.attrs["success"]) for e in store.episodes] == [
        (0, True),
        (2, False),
        (3, False),
    ]
    assert [t.name[:6] for t in trash(store)] == ["000001"]
    assert (result.episodes, result.successes) == (3, 1)
    attrs = store.episodes[0].attrs
    assert attrs["limits"].keys() == set(store.features[ACTION].names)
    assert attrs["robot_config"]["name"] == "sim:so101"
    assert attrs["software"].startswith("ulna ")


def test_images_may_be_recorded_small_and_as_jpeg(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with load_robot("sim:so101", "reach", ["front"]) as rig:
        how: dict[str, Any] = {"storage": {"codec": "jpeg", "quality": 90}, "image_size": (48, 64)}
        for options in (how, {}):  # a store that is continued keeps its way
            record(rig, HoldAgent(), tmp_path / "d", 1, **options)
        with pytest.raises(ValueError, match="keeps jpeg 90 images of 64x48 pixels, not 32x24 pixels"):
            record(rig, HoldAgent(), tmp_path / "d", 1, image_size=(24, 32))
        record(rig, HoldAgent(), tmp_path / "small", 1, image_size=(24, 32))
    for data, told in (("d", "jpeg 90"), ("small", "lossless")):
        assert main(["data", "info", str(tmp_path / data)]) == 0
        assert told in capfd.readouterr().out
    store = EpisodeStore.open(tmp_path / "d")
    assert len(store) == 2
    assert store.episodes[1].read("observation.images.front", 0, 3).shape == (3, 48, 64, 3)


@pytest.mark.parametrize(
    ("during", "at_prompts", "outcomes", "seeds", "n_trashed"),
    [
        # x where people are asked drops the episode before
        ([], [b"x\n", b"\n", b"q"], [(1, None), (2, None)], [0, 1, 2], 1),
        # r there has it done again
        ([], [b"r\n", b"\n", b"q"], [(0, None), (1, None)], [0, 0, 1], 1),
        # what is pressed once too often neither begins, nor ends, nor marks the next one
        ([b"ss", b"\n\n"], [b"\ns", b"q"], [(0, True), (1, None)], [0, 1], 0),
        # an episode that is repeated has its things put back first, even the first one
        ([b"r", b""], [b"\n", b"q"], [(0, None)], [0, 0], 0),
    ],
)
def test_keys_between_episodes_are_for_the_one_before(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    during: list[bytes],
    at_prompts: list[bytes],
    outcomes: list[tuple[int, bool | None]],
    seeds: list[int],
    n_trashed: int,
) -> None:
    terminal, file = os.openpty()
    typist, prompts = Typist(terminal, during), iter(at_prompts)
    monkeypatch.setattr(
        sys, "stderr", Heard(lambda text: "put everything" in text and os.write(terminal, next(prompts)))
    )
    try:
        with Keys(file) as keys, load_robot("sim:so101", "reach") as rig:
            bare = Rig(rig.robot, None, rig.config)  # nobody but people to set the scene up
            record(bare, typist, tmp_path / "d", 9, keys=keys, task="x", max_seconds=0.2)
    finally:
        os.close(terminal)
        os.close(file)
    store = EpisodeStore.open(tmp_path / "d")
    assert [(e.attrs["seed"], e.attrs["success"]) for e in store.episodes] == outcomes
    assert typist.seeds == seeds
    assert next(prompts, None) is None, "people were asked as often"
    assert len(trash(store)) == n_trashed


def test_buttons_between_episodes_are_for_the_one_before(tmp_path: Path) -> None:
    """A browser queues what is pressed while nobody reads it."""
    waiting: list[str] = []

    class Buttons:
        name = "buttons"

        def open(self) -> None: ...

        def close(self) -> None: ...

        def read(self) -> Hand:
            words, waiting[:] = tuple(waiting), []
            return Hand(False, events=words)

    def report(count: int, successes: int, frames: int) -> None:
        pressed = {1: ["success", "finish"], 2: ["again"]}
        if count not in counts:
            waiting.extend(pressed.get(count, []))
        counts.append(count)

    counts: list[int] = []
    with load_robot("sim:so101", "reach") as rig:
        assert rig.sim is not None
        agent = TeleoperatorAgent(Buttons(), rig.robot, "so101")
        waiting.append("failure")
        rig.sim.max_seconds = 0.3
        record(rig, agent, tmp_path / "d", 3, report=report)
    store = EpisodeStore.open(tmp_path / "d")
    assert [(e.attrs["seed"], e.length) for e in store.episodes] == [(0, 6), (1, 6), (2, 6)]
    assert counts == [1, 2, 1, 2, 3], "the second was done again"


def test_of_several_tasks_the_one_with_the_fewest_episodes_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator is told which; one that is done again is the same; the next session goes on."""
    terminal, file = os.openpty()
    typist, asked, says = Typist(terminal, [b"s", b"s", b"r", b"s", b"q", b"s"]), list[str](), list[str]()

    def heard(text: str) -> None:
        if "put everything" in text:
            asked.append(text)
            os.write(terminal, b"\n")

    monkeypatch.setattr(sys, "stderr", Heard(heard))
    try:
        with Keys(file) as keys, load_robot("sim:so101", "reach") as rig:
            bare = Rig(rig.robot, None, rig.config)
            record(bare, typist, tmp_path / "d", 9, keys=keys, task="fold it; open it;", max_seconds=0.2)
            more = {"keys": keys, "task": "open it; fold it", "max_seconds": 0.2, "say": says.append}
            record(bare, typist, tmp_path / "d", 1, **more)
    finally:
        os.close(terminal)
        os.close(file)
    tasks = [e.task for e in EpisodeStore.open(tmp_path / "d").episodes]
    assert tasks == ["fold it", "open it", "fold it", "open it"]
    assert [text.partition("“")[2].partition("”")[0] for text in asked] == [
        "open it",
        "fold it",
        "fold it",
        "open it",
    ]
    assert not says, "the next task is no change of settings"


class Typist(HoldAgent):
    """Types a word as each episode begins."""

    def __init__(self, terminal: int, words: Iterable[bytes]) -> None:
        self.terminal, self.words = terminal, iter(words)
        self.seeds: list[int] = []

    def reset(self, task: str, seed: int) -> None:
        super().reset(task, seed)
        self.seeds.append(seed)
        os.write(self.terminal, next(self.words, b""))


class Heard:
    """Standard error that somebody reads."""

    def __init__(self, heard: Callable[[str], Any]) -> None:
        self.write, self.flush = heard, lambda: None


def test_a_simulated_task_labels_its_steps(tmp_path: Path) -> None:
    words = ["record", "--task", "sort", "--agent", "expert", "--episodes", "1", "--out", str(tmp_path / "d")]
    assert main(words) == 0
    (episode,) = EpisodeStore.open(tmp_path / "d").episodes
    colour = next(c for c in ("red", "green", "blue") if c in episode.task)
    steps = steps_of(episode)
    assert [s.words for s in steps] == [f"put the {colour} cube into the tray", "let go of it"]
    done = marks(steps, episode)
    assert not done[0].any()
    assert done[-1].all()
    assert done[:, 0].argmax() <= done[:, 1].argmax()
