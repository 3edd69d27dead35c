"""Studies: what a file may say, that the numbers are those of the file whatever happens to the run, and that
an expectation that failed is reported as such."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ulna.datasets.features import ACTION, REWARD
from ulna.datasets.store import EpisodeStore
from ulna.robot import cli
from ulna.robot.statistics import bootstrap_crossed
from ulna.robot.study import StudyError, read_study, study_of
from ulna.robot.study_results import mode_entropy, summary
from ulna.robot.study_run import plan, quick, run_study

STUDIES = sorted((Path(__file__).parents[2] / "benchmarks" / "studies").glob("*.toml"))
TEXT = """
name = "tiny"
claim = "Flow passes a fork"
paper = "nobody, 2026"
expectation = "not after eight steps"
task = "fork"
demonstrations = {count = 6, noise = 0.005}
seeds = [3]
episodes = 6
[common]
backbone = "ResidualMLP"
"backbone.width" = 16
"backbone.depth" = 1
training = {steps = 8, batch_size = 8, warmup = 2}
[arms.flow]
recipe = "flow"
[arms.once]
of = "flow"
sampling_steps = 1
[arms.more]
recipe = "flow"
"training.start" = "{flow}"
[variants.control]
options = {routes = 1}
arms = ["once"]
[[expect]]
arm = "flow"
at_least = 0.9
[[expect]]
arm = "once"
metric = "nfe"
at_most = 1
variant = "control"
[[expect]]
less = "once"
than = "flow"
metric = "nfe"
by = 8.5
[[expect]]
alike = ["more", "flow"]
within = 1.0
"""


def raw() -> dict[str, Any]:
    return tomllib.loads(TEXT)


def without_times(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if not k.endswith("seconds") and k != "commit"} for r in results]


def run(folder: Path, study=None, **how: Any) -> list[dict[str, Any]]:  # type: ignore[no-untyped-def]
    return run_study(study or study_of(raw()), folder, **{"processes": 1, **how})


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("study")
    return folder, run(folder)


def test_results_are_those_of_every_variant_arm_and_seed(
    complete: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, results = complete
    assert [(r["variant"], r["arm"], r["seed"]) for r in results] == [
        ("main", "flow", 3),
        ("main", "once", 3),
        ("main", "more", 3),
        ("control", "once", 3),
    ]
    assert all(len(r["success"]) == 6 for r in results)
    assert [r["nfe"] for r in results] == [10, 1, 10, 1]
    assert len({r["parameters"] for r in results}) == 1
    # `once` shares the training of `flow`; the control has data of its own
    assert len(list((folder / "trainings").iterdir())) == 3
    stores = [EpisodeStore.open(p) for p in (folder / "data").iterdir()]
    assert [len(s.episodes) for s in stores] == [6, 6]
    episode = stores[0].episodes[0]
    assert episode.attrs["success"] is True
    assert episode.read(REWARD).sum() == 1
    assert episode.read(ACTION).shape == (episode.length, 2)


def test_a_training_may_begin_from_another_arms_checkpoint(
    complete: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, _ = complete
    (checkpoint,) = (p for p in (folder / "trainings").iterdir() if p.name.startswith("more-"))
    start = json.loads((checkpoint / "recipe.json").read_text())["training"]["start"]
    assert (Path(start) / "hash.json").exists()
    assert Path(start).name.startswith("flow-")


def test_a_killed_study_goes_on_and_gives_the_same_numbers(
    complete: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    def kill(finished: int, total: int, note: str) -> None:
        if finished:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=kill)
    results = sorted((tmp_path / "results").iterdir())
    assert 0 < len(results) < 4
    times = [p.stat().st_mtime_ns for p in results]
    # in processes of their own, too
    assert without_times(run(tmp_path, processes=2)) == without_times(complete[1])
    assert [p.stat().st_mtime_ns for p in results] == times


def test_an_expectation_that_failed_is_reported_as_such(
    complete: tuple[Path, list[dict[str, Any]]],
) -> None:
    numbers = summary(study_of(raw()), complete[1])
    assert [v["held"] for v in numbers["verdicts"]] == [False, True, True, True]
    assert (numbers["held"], numbers["expectations"]) == (3, 4)
    arms = numbers["variants"]["main"]["arms"]
    assert numbers["verdicts"][0]["estimate"] == arms["flow"]["rate"] < 0.9
    assert numbers["verdicts"][2]["estimate"] == 9
    assert arms["flow"]["difference_to_base"] is None
    low, high = arms["once"]["difference_to_base"]["bootstrap_95"]
    assert low <= arms["once"]["rate"] - arms["flow"]["rate"] <= high


def test_the_command_writes_numbers_and_refuses_a_changed_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.toml"
    file.write_text(TEXT.split("[arms.more]")[0] + '[[expect]]\narm = "once"\nat_most = 0.9\n')
    command = ["study", "tiny.toml", "--processes", "1", "--out", "numbers"]
    assert cli.main([*command, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said == json.loads((tmp_path / "numbers" / "tiny.json").read_text())
    assert said["command"] == "ulna study tiny.toml"
    assert str(tmp_path) not in json.dumps(said)
    file.write_text("# a comment changes nothing\n" + file.read_text())
    assert cli.main(command) == 0
    assert "held: success of once at most 0.9" in capfd.readouterr().out
    file.write_text(file.read_text().replace("at_most = 0.9", "at_most = 0.1"))
    assert cli.main(command) == 1
    assert "tiny.toml is not as it was when the study tiny began" in capfd.readouterr().err
    assert cli.main([*command, "--quick"]) == 0
    assert "QUICK" in capfd.readouterr().out
    assert json.loads((tmp_path / "runs/studies/tiny-quick/numbers.json").read_text())["quick"] is True


def changed(**changes: Any) -> dict[str, Any]:
    """The file with `table__field=value`; None leaves it out."""
    tables = copy.deepcopy(raw())
    for name, value in changes.items():
        *path, last = name.split("__")
        table: Any = tables
        for step in path:
            table = table[int(step)] if isinstance(table, list) else table.setdefault(step, {})
        if value is None:
            del table[last]
        else:
            table[last] = value
    return tables


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"expectation": None}, "the study lacks expectation"),
        ({"episode": 3}, "'episode' that does not exist: did you mean episodes"),
        ({"seeds": []}, "seeds is a list of different whole numbers"),
        ({"episodes": "many"}, "episodes of the study is a whole number, not 'many'"),
        ({"evaluation_seeds_from": 2}, "overlap"),
        ({"base": "flaw"}, "base 'flaw' that does not exist: did you mean flow"),
        ({"arms__once__of": "flw"}, "arm once names an arm 'flw' that does not exist"),
        ({"arms__once__horizon": 8}, "cannot change horizon"),
        ({"arms__flow__of": "once"}, "needs one of recipe, learner and of"),
        ({"arms__more__training.start": "{mroe}"}, "names an arm 'mroe'"),
        ({"arms__flow__training.start": "{more}"}, "need each other's checkpoints"),
        ({"variants__control__arms": ["twice"]}, "names an arm 'twice'"),
        ({"expect__0__arm": "flaw"}, "expect row 1 names an arm 'flaw'"),
        ({"expect__0__by": 1.0}, "by, which does not go with arm"),
        ({"expect__0__variant": "control"}, "names an arm 'flow' that does not exist: there is once"),
    ],
)
def test_a_file_that_says_nonsense_is_refused(changes: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence.replace("'", ".")):
        study_of(changed(**changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": "frok"}, "no planar task 'frok': did you mean fork"),
        ({"options": {"route": 2}}, "options of variant main: .*route"),
        ({"demonstrations__skill": "good"}, "demonstrations of variant main"),
        ({"arms__flow__recipe": "flo"}, "arm flow: there is no recipe 'flo': did you mean flow"),
        ({"common__horizn": 8}, "horizn"),
        ({"arms__once__solver": "Hein"}, "arm once: solver is one of"),
        ({"arms__flow__data": {"weight": "success"}}, "no field of data in arm flow 'weight'"),
        ({"arms__flow": {"learner": "magic"}, "arms__more": None, "expect": []}, "learner 'magic'"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(
    changes: Mapping[str, Any], sentence: str, tmp_path: Path
) -> None:
    study = study_of(changed(**changes))
    with pytest.raises(ValueError, match=sentence):
        run_study(study, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_an_arm_wins_over_what_is_common() -> None:
    tables = changed(arms__flow__steps=4, arms__more__backbone="UNet1D")
    arms = study_of(tables).arms
    assert arms["flow"].overrides["steps"] == 4
    assert "training.steps" not in arms["flow"].overrides
    assert not [k for k in arms["more"].overrides if k.startswith("backbone.")]
    plan(study_of(tables))


def test_quick_keeps_to_development_seeds() -> None:
    small = quick(study_of(changed(seeds=[1, 2], episodes=100)))
    assert small.seeds == (1,)
    assert (small.evaluation_seeds.start, len(small.evaluation_seeds)) == (5000, 50)


def test_mode_entropy_counts_successes_only() -> None:
    routes = {"route": [0, 1, 1, 0, 5]}
    assert mode_entropy({"info": routes, "success": [True] * 4 + [False]}) == pytest.approx(1)
    assert mode_entropy({"info": routes, "success": [True, False, False, True, False]}) == 0
    assert mode_entropy({"info": routes, "success": [False] * 5}) is None


def test_the_crossed_bootstrap_sees_the_spread_over_seeds() -> None:
    rng = np.random.default_rng(1)
    independent = rng.random((5, 200)) < 0.5
    by_seed = np.repeat(np.array([[0], [1], [0], [1], [0]]), 200, axis=1)
    mean, low, high = bootstrap_crossed(independent)
    assert low < mean < high
    assert high - low < 0.2
    _, low, high = bootstrap_crossed(by_seed)
    assert high - low > 0.6


@pytest.mark.parametrize("file", STUDIES, ids=lambda f: f.stem)
def test_studies_of_the_repository_fit(file: Path) -> None:
    study = read_study(file)
    assert study.name == file.stem
    plan(study)
