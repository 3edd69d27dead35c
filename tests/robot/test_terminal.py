"""No control character of a dataset, a file's name or an error reaches the terminal, and `--json` stays
JSON."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from ulna.datasets.edit import delete
from ulna.datasets.features import ACTION, STATE, Feature, Features
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main
from ulna.robot.commands import terminal
from ulna.robot.commands.parsing import Output
from ulna.robot.commands.terminal import UNSAFE, clean, clean_streams

# the title of the window, the cursor to the top, CSI in one byte, a bell, text from right to left, half a
# character, the end of a line without a new one
EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[H\x9b31m\u202egnp\u2028\u2066\x7f\ud800\rgone"


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    """Every text of a store that may hold anything holds what is evil."""
    features: Features = {
        STATE: Feature((2,), "float32", (f"a{EVIL}", "b"), (f"rad{EVIL}", "m")),
        ACTION: Feature((2,), "float32", ("a", "b")),
        f"observation.{EVIL}": Feature((1,), "float32"),
    }
    store = EpisodeStore.create(tmp_path / "d", features, 20.0, EVIL)
    header = json.loads((store.path / "ulna.json").read_text())
    header["provenance"] = {EVIL: {EVIL: EVIL}, "list": [EVIL]}
    header["features"].pop(f"observation.{EVIL}")
    meta = {
        "task": EVIL,
        "agent": EVIL,
        "notes": [EVIL],
        "interrupted": EVIL,
        "dropped": {EVIL: 3},
        "damaged": EVIL,
        "limits": {f"a{EVIL}": [-0.1, 0.1]},
    }
    (store.path / "ulna.json").write_text(json.dumps(header))
    store = EpisodeStore.open(store.path)
    with EpisodeWriter(store) as writer:
        for _ in range(3):
            writer.start(meta)
            for t in range(4):
                row = {k: np.full(f.shape, t, np.float32) for k, f in store.features.items()}
                writer.tick(row, dict.fromkeys(row, (50_000_000 * t, 50_000_000 * t + 1)))
            writer.end({})
    delete(store, [2])
    return store


@pytest.mark.parametrize("command", ["info", "check", "stats", "restore", "split"])
@pytest.mark.parametrize("as_json", [False, True])
def test_what_a_dataset_says_is_cleaned(
    store: EpisodeStore, command: str, as_json: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = {"restore": ["--list"], "split": ["--out", str(tmp_path / "parts"), "--parts", "a=0.5", "b=0.5"]}
    words = ["data", command, str(store.path), *more.get(command, []), *(["--json"] if as_json else [])]
    assert main(words) in (0, 1)
    out, err = capfd.readouterr()
    assert not UNSAFE.search(out + err), repr(out + err)
    assert out
    if as_json:
        answer = json.loads(out)
        assert command != "info" or answer["tasks"] == [EVIL], "JSON loses nothing"


def test_errors_are_cleaned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evil = tmp_path / EVIL.replace("\ud800", "").replace("/", "")
    evil.mkdir()
    (evil / "ulna.json").write_text(json.dumps({"format": EVIL}))
    name = "\x1b[2J\u202e"
    for words in (
        ["data", "info", str(evil)],
        ["data", "info", str(evil / "none")],
        ["data", "stats", str(evil), "--keys", name],
        ["data", "delete", str(evil), "--episodes", name],
        [name],
        ["train", "flow", f"--{name}"],
    ):
        assert main(words) in (1, 2)
        out, err = capfd.readouterr()
        assert err.startswith("ulna: ")
        assert not UNSAFE.search(out + err), (words, repr(out + err))


def test_logs_prints_and_tracebacks_are_cleaned(capfd: pytest.CaptureFixture[str]) -> None:
    with clean_streams():
        handler = logging.StreamHandler(sys.stderr)
        log = logging.getLogger("test.terminal")
        log.propagate = False  # pytest would keep the raw text, which it cannot pass between processes
        log.addHandler(handler)
        log.error("%s", EVIL)
        log.removeHandler(handler)
        print(EVIL, file=sys.stderr)
        print(EVIL)
        sys.stderr.writelines([EVIL, "\n"])
        try:
            raise ValueError(EVIL)
        except ValueError as error:
            sys.excepthook(ValueError, error, error.__traceback__)
    out, err = capfd.readouterr()
    assert not UNSAFE.search(out + err), repr(out + err)
    assert err.count("owned") >= 4


def test_a_bar_draws_but_its_texts_are_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with clean_streams():
        console = terminal.console()
        console.print(f"[bold]here[/bold] {clean(EVIL)[:4]}")
        console.print(EVIL, markup=False)
    drawn = screen.getvalue()
    assert "\x1b[1m" in drawn, "it still draws"
    assert "\x1b]0;" not in drawn
    assert "\x1b[2J" not in drawn
    assert "\x9b" not in drawn


def test_what_is_not_finite_is_null_in_json(capfd: pytest.CaptureFixture[str]) -> None:
    with Output(as_json=True) as out:
        out.answer({"a": [float("nan"), 1.5, {"b": float("inf")}], "c": "\x7f"}, "")
    line = capfd.readouterr().out
    assert json.loads(line) == {"a": [None, 1.5, {"b": None}], "c": "\x7f"}
    assert "\x7f" not in line


def test_ordinary_words_of_any_language_stay_as_they_are() -> None:
    text = "Würfel 積む\tкуб\n👩\u200d🔧 é"
    assert clean(text) == text
