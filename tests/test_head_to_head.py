"""The logic of `benchmarks/head_to_head.py`: what is paired with what, and that a comparison which was killed
goes on."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ulna.datasets.store import EpisodeStore
from ulna.robot.report.comparison import write_comparison
from ulna.robot.study.arms import runner
from ulna.robot.study.study import read_study

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from head_to_head import Plan, cells, collect, data_of, pace_of, run
from head_to_head_baselines import baselines
from head_to_head_methods import (
    EQUAL_LATENCY,
    EQUAL_NFE,
    METHODS,
    NFE,
    OURS,
    TRAINED,
    Pace,
    run_time_arms,
    settings,
    study_text,
)
from head_to_head_result import (
    BASELINES,
    CELL,
    Cell,
    against_best,
    compare,
    cross_validated,
    folds,
    outcomes,
    paired,
    summarise,
)
from head_to_head_tables import text

PACE = Pace(step_s=0.1, first_s=0.01, more_s=0.005)


def row(method: str, group: str, seed: int, successes: list[int], **more: Any) -> dict[str, Any]:
    return {
        "task": "lift",
        "method": method,
        "demonstrations": 100,
        "budget_s": 600.0,
        "arm": method if group == TRAINED else f"{method}, {group}",
        "seed": seed,
        "outcomes": successes,
        "mean_ticks": 40.0,
        "decisions": 5 * len(successes),
        "nfe_per_decision": 10.0,
        "parameters": 1000,
        "steps": 50,
        "training_seconds": 600.0,
        "metrics": {},
        "machine": "two cores",
        "commit": "abc",
        "date": "2026-11-27",
        **more,
    }


def test_pairs_are_of_the_seeds_that_both_have() -> None:
    ours = outcomes([row("flow", TRAINED, 0, [1, 1, 1, 0]), row("flow", TRAINED, 1, [1, 1, 1, 1])])
    theirs = outcomes([row("lerobot_act", TRAINED, 1, [0, 0, 0, 1]), row("lerobot_act", TRAINED, 2, [1] * 4)])
    found = paired(ours, theirs)
    assert found is not None
    assert (found["seeds"], found["difference"], found["wins"], found["losses"]) == ([1], 0.75, 3, 0)
    assert found["verdict"] in ("above", "undecided")
    assert paired({0: [1]}, {1: [1]}) is None
    with pytest.raises(ValueError, match="same episodes"):
        paired({0: [1, 0]}, {0: [1]})
    with pytest.raises(ValueError, match="twice"):
        outcomes([row("flow", TRAINED, 0, [1]), row("flow", TRAINED, 0, [1])])


def test_groups_are_compared_among_themselves() -> None:
    rows = [
        row("flow", TRAINED, 0, [1] * 10),
        row("flow", EQUAL_NFE, 0, [1] * 5 + [0] * 5),
        row("lerobot_diffusion", TRAINED, 0, [1] * 2 + [0] * 8),
        row("lerobot_diffusion", EQUAL_NFE, 0, [1] * 6 + [0] * 4),
        row("lerobot_act", TRAINED, 0, [0] * 10),
        row("lerobot_act", "ensemble", 0, [1] * 9 + [0]),
    ]
    found = compare(rows)
    as_pairs = {(p["group"], p["ours"], p["theirs"]): p["difference"] for p in found["pairs"]}
    assert as_pairs == {
        (TRAINED, "flow", "lerobot_act"): 1.0,
        (TRAINED, "flow", "lerobot_act, ensemble"): pytest.approx(0.1),
        (TRAINED, "flow", "lerobot_diffusion"): 0.8,
        (EQUAL_NFE, "flow, equal NFE", "lerobot_diffusion, equal NFE"): pytest.approx(-0.1),
    }
    assert against_best(found["pairs"], TRAINED)["flow"]["theirs"] == "lerobot_act, ensemble"
    assert found["arms"]["flow"]["nfe_per_tick"] == pytest.approx(10 * 5 / 40)
    assert next(iter(found["arms"])) == "flow"


def test_a_budget_is_steps_and_a_decision_evaluations() -> None:
    assert PACE.steps_in(600) == 5820
    assert PACE.steps_in(0.01) == 1
    assert [PACE.evaluations_in(s, 16) for s in (0.005, 0.01, 0.021, 9.0)] == [1, 1, 3, 16]
    late = run_time_arms("flow", PACE, 42.0)[EQUAL_LATENCY]
    assert (late["sampling_steps"], late["latency"], late["strategy"]) == (7, 42.0, "async")
    # that of which not one evaluation fits takes as long as it takes
    assert run_time_arms("lerobot_act", Pace(0.1, 0.09, 0.0), 40.0)[EQUAL_LATENCY]["latency"] == 90.0
    assert run_time_arms("lerobot_diffusion", PACE, 40.0)[EQUAL_NFE]["sampling_steps"] == NFE


@pytest.mark.parametrize("size", ["small", "base"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_an_arm_that_fits(name: str, size: str, tmp_path: Path) -> None:
    from ulna.robot.rollout import env_features
    from ulna.robot.study.arms import task_maker

    run_time = run_time_arms(name, PACE, 100.0)
    trained = settings(name, size, 30)
    file = tmp_path / "x.toml"
    file.write_text(study_text(name, "catch", {}, 5, 0.0, 10, trained, run_time))
    study = read_study(file)
    arm = study.arms[name]
    assert (arm.kind, arm.source) == (METHODS[name].kind, METHODS[name].source)
    assert arm.settings["training.steps" if arm.kind == OURS else "steps"] == 30
    env = task_maker("catch", {})(1)
    runner(arm).check(arm, [a for _, a in study.trials(arm, "main") if a is not arm], env_features(env))
    env.close()


def plan_of(work: Path, seeds: int = 1) -> Plan:
    return Plan(work, "small", ["flow", "mip"], seeds, 3, 100.0, 0.0, "cpu", quick=True)


def test_a_comparison_that_was_killed_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, task = plan_of(tmp_path / "small"), "contracts.vector_env:Go"
    todo = cells([task], plan, 2, 5.0, curves=False)
    assert [c.method for c in todo] == ["flow", "mip"]
    for cell in todo:
        run(cell, 0, plan)
    assert capsys.readouterr().err.count("seed 0") == 6, "each as trained and in both other groups"
    data = {(c.folder(plan.work) / "main" / "data").resolve() for c in todo}
    assert data == {data_of(todo[0], plan)}, "the same episodes"
    before = summarise(plan.work)
    # an evaluation is missing: it alone is made again
    missing = todo[0].folder(plan.work) / "main" / f"flow, {EQUAL_NFE}" / "seed-0.json"
    checkpoint = json.loads(missing.read_text())["checkpoint"]
    missing.unlink()
    run(todo[0], 0, plan)
    assert capsys.readouterr().err.count("seed 0") == 1
    assert json.loads(missing.read_text())["checkpoint"] == checkpoint
    assert summarise(plan.work) == before
    # another seed is added
    run(todo[0], 1, plan)
    arms = summarise(plan.work)["tasks"][task][0]["arms"]
    assert (arms["flow"]["seeds"], arms["mip"]["seeds"]) == ([0, 1], [0])
    assert (todo[0].folder(plan.work) / CELL).is_file()
    # one more, as it was trained only; asked for all, the rest is made, too
    capsys.readouterr()
    run(todo[0], 2, replace(plan, equal_seeds=2))
    arms = summarise(plan.work)["tasks"][task][0]["arms"]
    assert (arms["flow"]["seeds"], arms[f"flow, {EQUAL_NFE}"]["seeds"]) == ([0, 1, 2], [0, 1])
    run(todo[0], 2, plan)
    assert capsys.readouterr().err.count("seed 2") == 3


def test_another_machine_adds_to_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, task = plan_of(tmp_path / "small"), "contracts.vector_env:Go"
    todo = cells([task], plan, 2, 5.0, curves=False)
    run(todo[0], 0, plan)
    found = json.loads(json.dumps(summarise(plan.work)))
    elsewhere = replace(plan, work=tmp_path / "elsewhere" / "small", before=found)
    capsys.readouterr()
    run(todo[0], 0, elsewhere)
    assert capsys.readouterr().err == "", "it is there already"
    assert summarise(elsewhere.work, found) == found
    for seed, cell in ((1, todo[0]), (0, todo[1])):
        run(cell, seed, elsewhere)
    arms = summarise(elsewhere.work, found)["tasks"][task][0]["arms"]
    assert (arms["flow"]["seeds"], arms["mip"]["seeds"]) == ([0, 1], [0])
    before = found["tasks"][task][0]["arms"]["flow"]
    assert arms["flow"]["successes"][0] == before["successes"][0]
    paced = replace(elsewhere, quick=False, before={**found, "paces": {task: {"flow": asdict(PACE)}}})
    assert pace_of(todo[0], paced) == PACE, "as it was measured"


def test_curves_are_along_one_axis_at_a_time(tmp_path: Path) -> None:
    todo = cells(["lift"], plan_of(tmp_path), 100, 600.0, curves=True)
    assert {(c.demonstrations, c.seconds) for c in todo} == {
        *((n, 600.0) for n in (10, 30, 100, 300)),
        *((100, s) for s in (75.0, 150.0, 300.0)),
    }
    assert len(todo) == len(set(todo))


def test_fewer_demonstrations_are_the_first_of_more(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    few, more = (EpisodeStore.open(data_of(Cell("fork", "flow", n, 1.0), plan)).episodes for n in (2, 3))
    assert [len(few), len(more)] == [2, 3]
    np.testing.assert_array_equal(few[1].read("action"), more[1].read("action"))


def recorded(method_error: float) -> dict[str, Any]:
    rows = [
        {
            "fold": e // 2,
            "episode": e,
            "error": {"policy": method_error + 0.01 * e, "hold": 0.5 + 0.01 * e, "extrapolate": 0.3},
            "n_ticks": 20,
            "training_seconds": 60.0,
            "nfe_per_decision": 10,
            "parameters": 1000,
        }
        for e in range(6)
    ]
    return cross_validated(rows)


def test_what_methods_lie_between() -> None:
    assert sum(baselines("peg", 3)["expert"]) >= 2
    found = baselines("lift", 1)
    assert (len(found["expert"]), found["hold"]) == (1, [0])


def test_every_episode_is_left_out_once() -> None:
    assert folds(range(5), 2) == [[0, 1], [2, 3], [4]]
    for k in (0, 5):
        with pytest.raises(ValueError, match="leave out 1 to 4"):
            folds(range(5), k)
    found = recorded(0.2)
    assert found["episodes"] == list(range(6))
    assert found["minus"]["hold"]["mean"] == pytest.approx(-0.3)
    assert found["minus"]["hold"]["better"]
    assert not recorded(0.6)["minus"]["hold"]["better"]


def test_the_table_and_the_page_say_what_was_found(tmp_path: Path) -> None:
    cell = tmp_path / "small" / "lift"
    for demonstrations in (10, 100):
        for method, successes in (("flow", [1, 1, 0, 1]), ("lerobot_act", [0, 1, 0, 0])):
            folder = Cell("lift", method, demonstrations, 600.0).folder(tmp_path / "small")
            (folder / "main" / method).mkdir(parents=True)
            about = {k: row(method, TRAINED, 0, [])[k] for k in ("task", "method", "budget_s")}
            (folder / CELL).write_text(json.dumps({**about, "demonstrations": demonstrations}))
            for seed in range(2):
                file = folder / "main" / method / f"seed-{seed}.json"
                result = row(method, TRAINED, seed, successes)
                file.write_text(json.dumps({k: v for k, v in result.items() if k not in about}))
    (cell / BASELINES).write_text(json.dumps({"expert": [1, 1, 1, 1], "hold": [0, 0, 0, 0]}))
    (tmp_path / "real").mkdir()
    real = {
        "episodes": 6,
        "leave_out": 2,
        "seconds": 60.0,
        "sees": "state",
        "methods": {"flow": recorded(0.2), "act": recorded(0.6)},
    }
    (tmp_path / "real" / "bottle.json").write_text(json.dumps(real))
    found = collect(tmp_path)
    lines = "\n".join(text(found))
    assert "| as trained | `flow` | 75 % |" in lines
    assert "+50 (" in lines
    assert "expert 100 % of 4, hold 0 % of 4" in lines
    assert "| flow | 0.225 | " in lines
    page = write_comparison(tmp_path / "report.html", found).read_text()
    assert "flow minus lerobot_act" in page
    assert page.count('<svg class="chart"') == 1, "there is one number of seconds"
    assert "bottle: recorded episodes" in page
    assert 'class="n good">-0.300' in page
    assert "http" not in page.replace("http-equiv", "")
    assert text({"sizes": {}, "real": {}}) == ["nothing is finished yet"]
