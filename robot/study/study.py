"""A study: one claim, measured. Read from one TOML file, and checked as a whole before anything runs.

```toml
claim = "one evaluation of a flow network averages the two ways round, ten do not"
paper = "Lipman et al. 2023 (arXiv 2210.02747)"
expectation = "in words, before the run"
control = "where the method should not help, in words"
base = "flow"                     # what the other arms are compared with; the first by default
seeds = 5                         # of training
episodes = 100                    # for each of them, the same for all arms
modes = "route"                   # the key of the environment's info that says which way an episode went

[task]
name = "fork"                     # and options of the task
routes = 2

[evaluation]                      # options of the task that are changed where it is evaluated only

[demonstrations]
count = 50                        # of the seeds first_seed, first_seed + 1, ...
noise = 0.005                     # of the expert, and its other options

[common]                          # fields of every trained arm's recipe, where it does not say otherwise
backbone = "ResidualMLP"

[arms.flow]
recipe = "flow"                   # and its fields, as `ulna train` has them; or lerobot, see `lerobot_arm`
steps = 2000
[arms.once]
of = "flow"                       # the same training, and other settings when it runs
sampling_steps = 1
[arms.late]
of = "flow"
strategy = "rtc"                  # how chunks are asked for and executed; its fields are "strategy.FIELD"
latency = 150                     # ms that a decision costs in simulated time, or "10/nfe"
# prompts = 1                     # to a policy that is shown demonstrations (icrt): how many of the variant's

[arms.best]
of = "flow"
steering = "BestOfN"              # {ARM} is the folder of what that arm has learned from the same seed
"steering.BestOfN.critic" = "{iql}/critic"
[arms.iql]
learner = "iql"                   # its fields are iql.FIELD; the others are of `actor`, the recipe

[[expect]]
arm = "flow"
at_least = 0.9
[[expect]]
better = "flow"
than = "once"
by = 0.3

[arms.filtered]
recipe = "flow"
data = {weights = "success"}      # fields of `DataOptions`; and observe: which observations are used

[arms.tuned]                      # from what another arm learned, on another variant
recipe = "flow"
"training.start" = "{flow}"
data = {also = ["control"], mix = [0.8, 0.2]}     # and on the demonstrations of other variants
[arms.learned_before]
recipe = "flow"
trained_on = "control"            # wherever it is tried; by default on each variant anew
[arms.apart]
recipe = "flow"
seed_offset = 1000                # arms of one seed begin from the same random weights, this one does not
[arms.between]
blend = "tuned"                   # weights between those of two arms, as `ulna blend`; modules, too
with = "flow"
weight = 0.5

[variants.control]                # the same arms again, on a task that was changed
task = {routes = 1}
evaluation = {}                   # options of the task that are changed where it is evaluated only
arms = ["flow", "once"]           # which of them; all by default
[[variants.control.expect]]
same = "once"
as = "flow"
within = 0.1
```"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .expect import Expectation

MAIN = "main"
KINDS = ("recipe", "learner", "lerobot", "blend", "of")
EXECUTION = ("strategy", "latency", "prompts")
"""What an arm says of how its policy is run, which no recipe knows: see `arms.execution`."""
RUN_TIME = (
    *("sampling_steps", "n_action_steps", "decoder", "ensemble_decay", "solver", "steering"),
    *EXECUTION,
)
QUICK_EPISODES = 10
QUICK_SEED = 5000  # tuning must not see the episodes that a study is judged by
CHECKPOINT = re.compile(r"\{([^{}\":]+)\}")  # and no JSON


class StudyError(ValueError):
    """The file does not fit; one sentence says where and how."""


@dataclass(frozen=True)
class Demonstrations:
    """What every arm learns from."""

    count: int
    """How many, failures included, unless the task's environment says `only_successes`."""
    first_seed: int = 0
    """They have this seed and those that follow it, with those left out that are not kept."""
    noise: float = 0.0
    """Standard deviation of the disturbance on the expert's targets, in their unit."""
    mode: Mapping[str, Any] = field(default_factory=dict)
    """The expert's other options."""


@dataclass(frozen=True)
class Arm:
    """One way to do it."""

    name: str
    kind: str
    """How it is trained: a key of `arms.RUNNERS`."""
    source: str
    """The recipe's or the learner's name."""
    settings: Mapping[str, Any]
    """Fields of the recipe, dotted or short."""
    of: str = ""
    """The arm whose training it shares; its settings are then those of `RUN_TIME`."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `policies.train.data.DataOptions`; `observe`: names of observations; `also`: variants whose
    demonstrations are used besides."""
    trained_on: str = ""
    """The variant on which it is trained, wherever it is tried; empty: on each where it is tried."""
    seed_offset: int = 0
    """Added to the study's seeds for its training: arms of one seed begin from the same random weights."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The arms whose checkpoints its settings name, as `{ARM}`."""
        texts = [v for v in self.settings.values() if isinstance(v, str)]
        return tuple(dict.fromkeys(name for text in texts for name in CHECKPOINT.findall(text)))

    def with_checkpoints(self, folders: Mapping[str, Path]) -> Arm:
        """With the folders in the place of the names of the arms that it needs."""
        settings = {
            k: CHECKPOINT.sub(lambda m: str(folders[m[1]]), v) if isinstance(v, str) else v
            for k, v in self.settings.items()
        }
        return replace(self, settings=settings)


@dataclass(frozen=True)
class Variant:
    """A task and its demonstrations: the study's own, called main, or with changes."""

    name: str
    task: str
    options: Mapping[str, Any]
    demonstrations: Demonstrations
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """Options of the task that differ where it is evaluated."""
    arms: tuple[str, ...] = ()
    """The arms that are tried; none: all."""


@dataclass(frozen=True)
class Study:
    """Seeds of training count from 0."""

    name: str
    claim: str
    arms: Mapping[str, Arm]
    variants: Mapping[str, Variant]
    expect: tuple[Expectation, ...]
    base: str
    paper: str = ""
    expectation: str = ""
    control: str = ""
    seeds: int = 5
    episodes: int = 100
    evaluation_seed: int = 10_000
    """Of the first episode of evaluation; all arms meet the same."""
    modes: str = ""

    def arms_of(self, variant: str) -> list[Arm]:
        """The arms that are tried on the variant."""
        chosen = self.variants[variant].arms or tuple(self.arms)
        return [a for a in self.arms.values() if a.name in chosen]

    def home(self, arm: Arm, variant: str) -> str:
        """The variant on which that is trained which `arm` runs where it is tried on `variant`."""
        return self.arms[arm.of or arm.name].trained_on or variant

    def trainings(self, variant: str) -> list[Arm]:
        """The arms that are trained on the variant: those that are tried, here or elsewhere, and those whose
        training they share."""
        return [a for a in self.arms.values() if not a.of and self.trials(a, variant)]

    def trials(self, training: Arm, variant: str) -> list[tuple[str, Arm]]:
        """(variant, arm) wherever an arm is tried that runs what `training` has learned on `variant`."""
        return [
            (on, a)
            for on in self.variants
            for a in self.arms_of(on)
            if training.name == (a.of or a.name) and self.home(a, on) == variant
        ]


def read_study(path: Path, quick: bool = False) -> Study:
    """The study in `path`; its name is the file's. quick: one seed, few and other episodes, to try it out.
    StudyError."""
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise StudyError(f"cannot read the study {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise StudyError(f"the study {path} is not TOML: {error}") from None
    where = str(path)
    plain = [f.name for f in fields(Study) if f.name not in ("arms", "variants", "expect")]
    tables = ["arms", "variants", "expect", "task", "demonstrations", "common", "evaluation"]
    _require_keys(table, [*plain, *tables], where)
    for name in ("claim", "task", "demonstrations", "arms"):
        if not table.get(name):
            raise StudyError(f"{where} lacks {name}")
    common = dict(_flat(table.get("common", {})))
    arms = {
        name: _arm(name, t, common, f"{where}, [arms.{name}]") for name, t in _tables(table, "arms", where)
    }
    for arm in arms.values():
        if arm.of and (arm.of not in arms or arms[arm.of].of):
            raise StudyError(
                f"{where}, [arms.{arm.name}]: of must name an arm that is trained, not {arm.of!r}"
            )
        _require_order(arm, arms, where)
    if not any(not a.of for a in arms.values()):
        raise StudyError(f"{where} has no arm that is trained")
    if table.get("name", path.stem) != path.stem:
        raise StudyError(f"{where} is called {table['name']!r} within: name it as its file, {path.stem!r}")
    main = _variant(MAIN, table["task"], table["demonstrations"], where)
    evaluation = table.get("evaluation", {})
    main = replace(main, evaluation=evaluation)
    variants, rows = {MAIN: main}, [(row, MAIN) for row in table.get("expect", ())]
    for name, t in _tables(table, "variants", where):
        here = f"{where}, [variants.{name}]"
        _require_keys(t, ("task", "demonstrations", "expect", "evaluation", "arms"), here)
        if name == MAIN:
            raise StudyError(f"{here}: {MAIN} is what the study without changes is called")
        task = {**table["task"], **t.get("task", {})}
        demonstrations = {**table["demonstrations"], **t.get("demonstrations", {})}
        variants[name] = replace(
            _variant(name, task, demonstrations, here),
            evaluation={**evaluation, **t.get("evaluation", {})},
            arms=tuple(t.get("arms", ())),
        )
        if strange := [a for a in variants[name].arms if a not in arms]:
            raise StudyError(f"{here}: there is no arm {strange[0]!r}, {_near(strange[0], arms)}")
        rows += [(row, name) for row in t.get("expect", ())]
    for arm in arms.values():
        here = f"{where}, [arms.{arm.name}]"
        named = [v for v in (arm.trained_on, *_also(arm, here)) if v]
        if strange := [v for v in named if v not in variants]:
            raise StudyError(f"{here}: there is no variant {strange[0]!r}, {_near(strange[0], variants)}")
    try:
        expect = tuple(Expectation.of({"on": on, **row}, arms, variants) for row, on in rows)
    except ValueError as error:
        raise StudyError(f"{where}, [[expect]]: {error}") from None
    settings = {k: v for k, v in table.items() if k in plain}
    study = Study(
        **{**settings, "name": path.stem, "base": settings.get("base", next(iter(arms)))},
        arms=arms,
        variants=variants,
        expect=expect,
    )
    if study.base not in arms:
        raise StudyError(f"{where}: base is {study.base!r}, {_near(study.base, arms)}")
    for name in ("seeds", "episodes", "evaluation_seed"):
        if type(getattr(study, name)) is not int or getattr(study, name) < (name != "evaluation_seed"):
            raise StudyError(f"{where}: {name} must be a whole number, not {getattr(study, name)!r}")
    for variant in variants.values():
        d = variant.demonstrations
        if (
            d.first_seed < study.evaluation_seed + study.episodes
            and study.evaluation_seed < d.first_seed + d.count
        ):
            raise StudyError(
                f"{where}: the demonstrations of {variant.name} and the evaluation share seeds: move "
                "first_seed or evaluation_seed"
            )
    if quick:
        episodes = min(study.episodes, QUICK_EPISODES)
        return replace(study, seeds=1, episodes=episodes, evaluation_seed=QUICK_SEED)
    return study


def _require_order(arm: Arm, arms: Mapping[str, Arm], where: str, waiting: tuple[str, ...] = ()) -> None:
    """StudyError where an arm needs the checkpoint of one that is not trained, or of itself in the end."""
    for name in (arm.of, *arm.needs) if arm.of else arm.needs:
        if name not in arms or (name != arm.of and arms[name].of) or name in (*waiting, arm.name):
            raise StudyError(
                f"{where}, [arms.{arm.name}]: {{{name}}} must name an arm that is trained before it"
            )
        _require_order(arms[name], arms, where, (*waiting, arm.name))


def _arm(name: str, table: Mapping[str, Any], common: Mapping[str, Any], where: str) -> Arm:
    kinds = [k for k in KINDS if k in table]
    if len(kinds) != 1:
        raise StudyError(f"{where} must name one of {', '.join(KINDS)}, not {' and '.join(kinds) or 'none'}")
    data = table.get("data", {})
    if not isinstance(data, Mapping):
        raise StudyError(f'{where}: data is a table of options, such as {{weights = "success"}}')
    apart = (*kinds, "data", "trained_on", "seed_offset")
    settings = dict(_flat({k: v for k, v in table.items() if k not in apart}))
    if kinds == ["of"]:
        heads = {k.split(".")[0]: v for k, v in settings.items()}
        _require_keys(heads, RUN_TIME, f"{where}: what an arm that shares a training can change is")
        for key in ("trained_on", "seed_offset"):
            if key in table:
                raise StudyError(f"{where}: {key} goes to the arm that is trained, {table['of']!r}")
        return Arm(name, "", "", settings, str(table["of"]))
    source, on, offset = str(table[kinds[0]]), str(table.get("trained_on", "")), table.get("seed_offset", 0)
    if type(offset) is not int or offset < 0:
        raise StudyError(f"{where}: seed_offset must be a whole number from 0, not {offset!r}")
    if kinds == ["blend"]:
        _require_keys(settings, ("with", "weight", "modules"), f"{where}: of a blend")
        if "with" not in settings:
            raise StudyError(f"{where}: with must name the arm that {source} is blended with")
        of = {"of": f"{{{source}}}", "with": f"{{{settings['with']}}}"}
        return Arm(name, "blend", source, {**settings, **of}, trained_on=on)
    shared = {} if kinds == ["lerobot"] else common  # which are fields of recipes
    return Arm(name, kinds[0], source, {**shared, **settings}, data=data, trained_on=on, seed_offset=offset)


def _also(arm: Arm, where: str) -> list[str]:
    """The variants whose demonstrations the arm uses besides."""
    names = arm.data.get("also", [])
    if not isinstance(names, list):
        raise StudyError(f'{where}: also lists variants, such as also = ["control"]')
    return names


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Tables in tables as dotted names: `backbone.width = 3` and `"backbone.width" = 3` are one."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _variant(name: str, task: Any, demonstrations: Any, where: str) -> Variant:
    if not isinstance(task, Mapping) or "name" not in task:
        raise StudyError(f'{where}, [task] lacks name, such as name = "reach"')
    options = {k: v for k, v in task.items() if k != "name"}
    known = {f.name for f in fields(Demonstrations)} - {"mode"}
    plain = {k: v for k, v in demonstrations.items() if k in known}
    if type(plain.get("count")) is not int or plain["count"] < 1:
        raise StudyError(f"{where}, [demonstrations]: count must be a number from 1")
    mode = {k: v for k, v in demonstrations.items() if k not in known}
    return Variant(name, str(task["name"]), options, Demonstrations(**plain, mode=mode))


def _tables(table: Mapping[str, Any], key: str, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    tables = table.get(key, {})
    if not isinstance(tables, Mapping) or not all(isinstance(t, Mapping) for t in tables.values()):
        raise StudyError(f"{where}: {key} must be tables like [{key}.NAME]")
    return list(tables.items())


def _require_keys(table: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    for key in table:
        if key not in (keys := list(keys)):
            raise StudyError(f"{where}: there is no key {key!r}, {_near(key, keys)}")


def _near(name: str, names: Iterable[str]) -> str:
    names = list(names)
    near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(names)}"
