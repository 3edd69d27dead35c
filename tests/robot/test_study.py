"""A study from its file to its result: what it finds, that it goes on where it was killed, and what it
refuses."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ulna.datasets.features import ACTION, STATE
from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main
from ulna.robot.report.evaluation import Outcome
from ulna.robot.rollout import Rollout
from ulna.robot.statistics import paired_difference, rate_interval, wilson
from ulna.robot.study.result import summarise
from ulna.robot.study.study import StudyError, read_study
from ulna.robot.study.work import Work, metrics, run_all
from ulna.sim.planar.demonstrations import demonstrations
from ulna.sim.vector import vector_env

TINY = """
recipe = "flow"
backbone.widths = [16, 32]
steps = 2
batch_size = 8
"""
STUDY = f"""
claim = "a chunk is better than a tick"
seeds = 1
episodes = 3
modes = "side"
base = "long"
[task]
name = "contracts.vector_env:Go"
radius = 0.06
[demonstrations]
count = 4
noise = 0.01
[arms.long]
{TINY}
[arms.short]
of = "long"
n_action_steps = 1
sampling_steps = 2
[[expect]]
arm = "short"
at_most = 1.0
[[expect]]
arm = "short"
metric = "nfe"
at_least = 3
[[expect]]
better = "short"
than = "long"
by = 1.5
[variants.control]
task = {{radius = 3.0}}
demonstrations = {{first_seed = 100, count = 2}}
[[variants.control.expect]]
same = "short"
as = "long"
within = 0.0
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str = STUDY) -> Path:
        file = tmp_path / "benchmarks" / "studies" / "chunks.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write


def test_a_study_by_the_command(
    write: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, work = write(STUDY), tmp_path / "runs"
    assert main(["study", str(file), "--work", str(work), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    path = tmp_path / "benchmarks" / "results" / "studies" / "chunks.json"
    result = json.loads(path.read_text())
    assert answer == {**result, "result": str(path)}
    assert (result["name"], result["seeds"], result["episodes"]) == ("chunks", 1, 3)
    long, short = (result["variants"]["main"]["arms"][a] for a in ("long", "short"))
    assert (long["nfe_per_decision"], short["nfe_per_decision"]) == (10, 2)
    assert long["parameters"] == short["parameters"]
    assert long["checkpoints"] == short["checkpoints"], "it shares the training"
    assert short["training_seconds"] == 0 < long["training_seconds"]
    low, high = short["minus_base"]["bootstrap_95"]
    assert low <= short["minus_base"]["difference"] <= high
    assert "minus_base" not in long
    # with the goal everywhere all succeed, and each of both ways is counted
    control = result["variants"]["control"]["arms"]["long"]
    assert (control["successes"], control["success_rate"]) == ([3], 1.0)
    assert sum(control["metrics"]["modes"].values()) == 3
    # what failed is said to have failed
    assert [e["holds"] for e in result["expectations"]] == [True, False, False, True]
    assert [e["certain"] for e in result["expectations"]] == [None] * 4, "of one training"
    assert result["expectations"][1]["measured"] == 2
    assert result["machines"]
    store = EpisodeStore.open(work / "chunks" / "control" / "data")
    assert [e.attrs["seed"] for e in store.episodes] == [100, 101]
    episode = EpisodeStore.open(work / "chunks" / "main" / "data").episodes[0]
    assert episode.attrs["agent"] == "expert"
    # the same again finds everything there
    assert main(["study", str(file), "--work", str(work)]) == 0
    text = capfd.readouterr().out
    assert "2 of 4 expectations held" in text
    assert "FAILED: short better than long by 1.5 (main)" in text


def test_arms_that_are_late(write: Callable[[str], Path], tmp_path: Path) -> None:
    """One training, run by two strategies, and charged for its decisions."""
    late = """
[arms.late]
of = "long"
strategy = "rtc"
"strategy.beta" = 2.0
latency = "50/nfe"
sampling_steps = 4

[[expect]]
arm = "short"
at_most"""
    work = Work(write(STUDY.replace('[[expect]]\narm = "short"\nat_most', late, 1)), tmp_path / "work")
    work.begin()
    run_all(work, 1)
    found = {r["arm"]: r for r in work.results() if r["variant"] == "main"}
    # four evaluations of 50 ms are two ticks, in which the last action is repeated
    assert found["late"]["metrics"]["starved"] >= 2
    assert "starved" not in found["long"]["metrics"]
    assert found["late"]["nfe_per_decision"] == 4
    assert found["late"]["checkpoint"] == found["long"]["checkpoint"]


def test_a_killed_study_goes_on(write: Callable[[str], Path], tmp_path: Path) -> None:
    file = write(STUDY)
    work = Work(file, tmp_path / "work")
    work.begin()
    ended: list[tuple[str, str]] = []

    def report(job: object, arm: str, successes: int, there: bool) -> None:
        if not there:
            ended.append((job.variant, arm))  # type: ignore[attr-defined]
        if len(ended) == 3 and not there:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(work, 1, report)
    before = work.results()
    assert [(r["variant"], r["arm"]) for r in before] == ended
    assert len(ended) == 3
    # killed again while a checkpoint was there already, and its evaluation was not
    work.result_file("main", "long", 0).unlink()
    again = Work(file, tmp_path / "work")
    again.begin()
    run_all(again, 1, report)
    assert ended[3:] == [("main", "long"), ("control", "short")]
    after = again.results()
    assert [r["checkpoint"] for r in after if r["variant"] == "main"] == [before[0]["checkpoint"]] * 2
    assert not again.open_jobs()
    assert len(summarise(again.study, after)["expectations"]) == 4


def test_the_same_results_from_several_processes(write: Callable[[str], Path], tmp_path: Path) -> None:
    file = write(STUDY.replace("seeds = 1", "seeds = 2", 1).replace("episodes = 3", "episodes = 2", 1))
    found = {}
    for processes in (1, 2):
        work = Work(file, tmp_path / f"work-{processes}")
        work.begin()
        run_all(work, processes)
        found[processes] = [(r["arm"], r["checkpoint"], r["outcomes"]) for r in work.results()]
    assert len(found[1]) == 8
    assert found[1] == found[2]


def test_a_study_that_changed_is_refused(
    write: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(STUDY)
    Work(file, tmp_path / "chunks").begin()
    (tmp_path / "chunks" / "main").mkdir()
    write(STUDY.replace("by = 1.5", "by = 0.5"))
    assert main(["study", str(file), "--work", str(tmp_path)]) == 1
    err = capfd.readouterr().err
    assert "has changed since this study began" in err
    assert "--restart discards" in err
    Work(file, tmp_path / "chunks").begin(restart=True)
    assert not (tmp_path / "chunks" / "main").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    with pytest.raises(StudyError, match="something else"):
        Work(file, tmp_path / "other").begin(restart=True)
    assert (tmp_path / "other" / "precious").exists()


def test_quick_stays_in_the_work_folder(
    write: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(
        STUDY.replace("episodes = 3", "episodes = 300").replace("[variants.control]", "[variants.c]")
    )
    assert main(["study", str(file), "--work", str(tmp_path), "--quick", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert (answer["quick"], answer["seeds"], answer["episodes"]) == (True, 1, 10)
    assert answer["result"] == str(tmp_path / "chunks-quick" / "result.json")
    assert not (tmp_path / "benchmarks" / "results").exists()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("claim =", "clam =", "did you mean claim"),
        ('of = "long"', 'of = "lang"', "of must name an arm that is trained"),
        ("n_action_steps = 1", "horizon = 1", "there is no key 'horizon'"),
        ("first_seed = 100", "first_seed = 10001", "share seeds"),
        ("at_most = 1.0", "at_worst = 1.0", "no key 'at_worst'"),
        ('than = "long"', 'than = "lung"', "no arm 'lung'"),
        ("by = 1.5", 'by = "much"', "needs a number"),
        ("count = 4", "count = 0", "count must be a number from 1"),
        ('base = "long"', 'base = "wrong"', "base is 'wrong'"),
        ("seeds = 1", "seeds = 0", "seeds must be a whole number"),
        ('recipe = "flow"', 'recepe = "flow"', "must name one of recipe, learner, lerobot, blend, of"),
        ('name = "contracts.vector_env:Go"', 'kind = "go"', "lacks name"),
        ("[arms.long]", "[arms.long", "is not TOML"),
    ],
)
def test_a_file_that_does_not_fit(write: Callable[[str], Path], old: str, new: str, sentence: str) -> None:
    assert old in STUDY
    with pytest.raises(StudyError, match=sentence) as error:
        read_study(write(STUDY.replace(old, new, 1)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("backbone.widths =", "backbone.width =", r"\[arms.long\]: .*did you mean --backbone.widths"),
        ('recipe = "flow"', 'recipe = "flw"', r"no recipe 'flw': did you mean flow"),
        ('recipe = "flow"', 'learner = "flow"', "no learner 'flow': "),
        (
            "n_action_steps = 1",
            "n_action_steps = 99",
            "short, which shares its training: n_action_steps is 99",
        ),
        (
            "n_action_steps = 1",
            'strategy = "rct"',
            "short, which shares its training: there is no strategy 'rct'",
        ),
        ("n_action_steps = 1", '"strategy.beta" = 1', "belongs to no strategy"),
        ("n_action_steps = 1", 'latency = "measured"', "name milliseconds"),
        ("n_action_steps = 1", 'latency = "soon"', "a latency is milliseconds"),
        ("radius = 0.06", "radios = 0.06", "does not take these options"),
        ("contracts.vector_env:Go", "reech", "no task 'reech': did you mean reach"),
    ],
)
def test_an_arm_that_cannot_run_is_refused_before_any_is_trained(
    write: Callable[[str], Path], tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    assert old in STUDY
    with pytest.raises(ValueError, match=sentence):
        Work(write(STUDY.replace(old, new, 1)), tmp_path / "work").begin()
    assert not (tmp_path / "work").exists()


def test_the_example_in_the_docs_is_a_study(tmp_path: Path) -> None:
    import ulna.robot.study.study as module

    example = (module.__doc__ or "").split("```toml")[1].split("```")[0]
    tomllib.loads(example)
    (tmp_path / "fork.toml").write_text(example)
    study = read_study(tmp_path / "fork.toml")
    assert [(v, a.name) for v, a in study.trials(study.arms["flow"], "control")] == [
        ("control", "flow"),
        ("control", "once"),
    ]
    assert study.trainings("control") == [study.arms["flow"], study.arms["learned_before"]]
    assert study.arms["tuned"].needs == ("flow",)
    assert study.arms["between"].needs == ("flow", "tuned")
    assert study.arms["filtered"].data == {"weights": "success"}
    assert study.arms["flow"].settings["backbone"] == "ResidualMLP"
    assert study.arms["best"].needs == ("iql",)
    assert study.variants["control"].options == {"routes": 1}
    assert [e.text() for e in study.expect] == [
        "flow at least 0.9 (main)",
        "flow better than once by 0.3 (main)",
        "once within 0.1 of flow (control)",
    ]


LEARNER = """
[arms.ranked]
of = "long"
steering = "BestOfN"
"steering.BestOfN.critic" = "{values}/critic"
"steering.BestOfN.candidates" = 3
sampling_steps = 2
[arms.values]
learner = "iql"
backbone = "ResidualMLP"
steps = 2
batch_size = 8
"iql.critic_first" = 1
"iql.critic.width" = 16
[[expect]]
arm = "short"
"""


def test_an_arm_is_evaluated_with_the_critic_of_another(write: Callable[[str], Path], tmp_path: Path) -> None:
    """Whose training comes before that evaluation, though it stands later in the file."""
    from ulna.policies.learn.critic import load_critic

    work = Work(write(STUDY.replace('[[expect]]\narm = "short"\n', LEARNER, 1)), tmp_path / "work")
    work.begin()
    run_all(work, 1)
    results = {r["arm"]: r for r in work.results() if r["variant"] == "main"}
    assert results["ranked"]["nfe_per_decision"] == 3 * 2
    assert results["values"]["checkpoint"] != results["long"]["checkpoint"]
    assert load_critic(tmp_path / "work/main/values/seed-0/critic").spec.width == 16


TUNING = f"""
claim = "what was known is forgotten"
seeds = 1
episodes = 3
base = "before"
[task]
name = "contracts.vector_env:Go"
radius = 0.06
[demonstrations]
count = 4
[variants.old]
task = {{radius = 3.0}}
demonstrations = {{first_seed = 100, count = 6}}
[arms.before]
trained_on = "old"
{TINY}
[arms.tuned]
trained_on = "main"
training.start = "{{before}}"
{TINY}
[arms.tuned_once]
of = "tuned"
sampling_steps = 1
[arms.replay]
trained_on = "main"
training.start = "{{before}}"
data = {{also = ["old"], mix = [0.75, 0.25]}}
{TINY}
[arms.apart]
trained_on = "old"
seed_offset = 7
{TINY}
[arms.between]
trained_on = "main"
blend = "tuned"
with = "before"
weight = 0.25
modules = "net.*:0"
"""


def test_an_arm_is_tuned_from_another_and_tried_on_what_that_one_knew(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from ulna.policies.checkpoint import read_train

    work = Work(write(TUNING), tmp_path / "work")
    work.begin()
    assert [(j.variant, j.arm) for j in work.jobs] == [
        *(("main", arm) for arm in ("tuned", "replay", "between")),
        ("old", "before"),
        ("old", "apart"),
    ]
    run_all(work, 1)
    results = {(r["variant"], r["arm"]): r for r in work.results()}
    arms = ("before", "tuned", "tuned_once", "replay", "apart", "between")
    assert set(results) == {(v, a) for v in ("main", "old") for a in arms}
    for arm in arms:  # one training, tried twice
        assert results["main", arm]["checkpoint"] == results["old", arm]["checkpoint"]
        assert sum(results["old", arm]["outcomes"]) == 3, "the goal is everywhere there"
    assert not (tmp_path / "work/old/tuned/seed-0").exists()
    records = {a: read_train(tmp_path / f"work/main/{a}/seed-0") for a in ("tuned", "replay", "between")}
    assert read_train(tmp_path / "work/old/apart/seed-0").seed == 7
    assert records["tuned"].start == results["main", "before"]["checkpoint"]
    assert [len(e) for e in records["replay"].episodes] == [4, 6]
    assert records["replay"].options["mix"] == [0.75, 0.25]
    assert records["between"].blend["weight"] == 0.25
    before, tuned, between = (
        load_file(tmp_path / f"work/{at}/seed-0/model.safetensors")
        for at in ("old/before", "main/tuned", "main/between")
    )
    name = next(n for n in before if n.startswith("encoder."))
    assert torch.allclose(between[name], 0.75 * before[name] + 0.25 * tuned[name])
    assert torch.equal(between["net.out.1.weight"], before["net.out.1.weight"])
    assert not work.open_jobs()
    assert summarise(work.study, work.results())["variants"]["old"]["arms"]["between"]["blend"] == "tuned"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('trained_on = "old"', 'trained_on = "odd"', "there is no variant 'odd', did you mean old"),
        ('also = ["old"]', 'also = ["new"]', "there is no variant 'new'"),
        ('also = ["old"]', 'also = "old"', "also lists variants"),
        ('with = "before"', 'with = "nobody"', "{nobody} must name an arm that is trained before"),
        ('with = "before"\n', "", "with must name the arm that tuned is blended with"),
        ("weight = 0.25", "wait = 0.25", "of a blend: there is no key 'wait', did you mean"),
        ("weight = 0.25", "weight = 2", "from 0 to 1, not 2"),
        ('modules = "net.*:0"', 'modules = "net.*"', "is written PATTERN:WEIGHT"),
        ("seed_offset = 7", "seed_offset = -1", "seed_offset must be a whole number from 0, not -1"),
        ("sampling_steps = 1", 'trained_on = "old"', "trained_on goes to the arm that is trained, 'tuned'"),
    ],
)
def test_a_tuning_that_does_not_fit_is_refused(
    write: Callable[[str], Path], tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    with pytest.raises(StudyError, match=re.escape(sentence)):
        Work(write(TUNING.replace(old, new, 1)), tmp_path / "work").begin()


def test_an_arm_is_not_tried_on_what_it_cannot_see(write: Callable[[str], Path], tmp_path: Path) -> None:
    text = TUNING.replace('"contracts.vector_env:Go"\nradius = 0.06', '"fork"')
    text = text.replace("{radius = 3.0}", '{name = "peg"}')
    with pytest.raises(StudyError, match=r"\[arms.before\]: it is trained on old, and main has other obs"):
        Work(write(text), tmp_path / "work").begin()


@pytest.mark.parametrize("name", ["nobody", "short", "long"])
def test_a_critic_is_of_an_arm_that_is_trained_before(write: Callable[[str], Path], name: str) -> None:
    text = STUDY.replace("n_action_steps = 1", f'n_action_steps = 1\nsteering = "{{{name}}}"', 1)
    if name == "long":  # its own arm's checkpoint is there
        assert read_study(write(text)).arms["short"].needs == ("long",)
        return
    with pytest.raises(StudyError, match=rf"\[arms.short\]: {{{name}}} must name an arm that is trained"):
        read_study(write(text))


def test_ways_are_counted_among_successes() -> None:
    def of(ways: list[int], successes: list[bool]) -> Rollout:
        outcomes = [Outcome(i, s, 5, float(s)) for i, s in enumerate(successes)]
        infos = [{"success": s, "route": w, "depth": 0.5} for w, s in zip(ways, successes, strict=True)]
        return Rollout(outcomes, infos, 1, 1, 1.0, 0.0)

    assert metrics(of([0, 1, 0, 1, 2], [True] * 4 + [False]), "route") == {
        "depth": 0.5,
        "mode_entropy": 1.0,
        "modes": {"0": 2, "1": 2},
    }
    assert metrics(of([0, 0], [True, True]), "route")["mode_entropy"] == 0.0
    assert metrics(of([0, 1], [False, False]), "route")["mode_entropy"] is None
    assert metrics(of([0, 1], [True, True]))["route"] == 0.5
    with pytest.raises(StudyError, match="modes is 'rout'"):
        metrics(of([0], [True]), "rout")


def test_paired_differences() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((5, 100)) < 0.9, rng.random((5, 100)) < 0.5
    mean, low, high = paired_difference(a, b)
    assert mean == pytest.approx(a.mean() - b.mean())
    assert 0.2 < low < mean < high < 0.6
    assert paired_difference(a, a) == (0.0, 0.0, 0.0)
    # a policy whose luck is its training seed's: five seeds tell little, however many episodes
    lucky = np.repeat([[1], [1], [0], [1], [0]], 100, axis=1)
    _, low, high = paired_difference(lucky, np.zeros((5, 100)))
    assert high - low > 0.7


def test_the_interval_of_a_rate_knows_that_episodes_share_their_training() -> None:
    assert rate_interval([40], 100) == wilson(40, 100)
    alike = rate_interval([40, 41, 39, 40, 40], 100)
    assert alike == wilson(200, 500), "trainings that are alike: the episodes decide"
    # mean 0.404, deviation 0.2702: Student's t of four degrees of freedom, 2.776
    low, high = rate_interval([27, 32, 7, 64, 72], 100)
    assert (low, high) == pytest.approx((0.0685, 0.7395), abs=1e-3)
    assert rate_interval([100, 0], 100) == (0.0, 1.0)
    assert rate_interval([50, 50], 50)[0] == wilson(100, 100)[0]


def test_demonstrations_of_a_pybullet_task() -> None:
    """Those of the vector environment are as the experts of single scenes give them."""
    demos = demonstrations(lambda n: vector_env("reach", num_envs=n), [3, 4], batch=2)
    alone = demonstrations(lambda n: vector_env("reach", num_envs=n), [3, 4], batch=1)
    assert all(d.success for d in demos)
    for a, b in zip(demos, alone, strict=True):
        assert a.observation[STATE].shape[0] == a.action.shape[0] == len(a.reward)
        np.testing.assert_array_equal(a.action, b.action)
        np.testing.assert_array_equal(a.observation[STATE], b.observation[STATE])
    assert ACTION not in demos[0].observation
