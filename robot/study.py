"""A study: one claim about methods, the arms that test it, and what is expected of them, in one TOML file
that is written before the run. `ulna study FILE` runs it, see `study_run.py`.

```toml
name = "mip_fork"                      # of the results: benchmarks/results/studies/mip_fork.json
claim = "..."                          # what the paper says, in a sentence or two
paper = "Authors, year, title (arXiv ...)"
expectation = "..."                    # in words, before the run: what we expect to see, and why
control_text = "..."                   # the negative control: where it should not help, and why
task = "fork"                          # a planar task of `ulna.sim.planar.all`
options = {routes = 2}                 # of the task; may be left out
demonstrations = {count = 50, seeds_from = 0, noise = 0.005}   # and what the task's expert takes: skill
seeds = [0, 1, 2, 3, 4]                # of the trainings
episodes = 100                         # for each training, of the seeds evaluation_seeds_from, +1, ...
evaluation_seeds_from = 10000          # the default; lower ones are for development
base = "regression"                    # the arm to which all are compared; the first by default

[common]                               # overrides of every arm's recipe, named as on the command line of
backbone = "ResidualMLP"               # `ulna train`: short names (steps) and long ones (training.steps),
"training.steps" = 2000                # with or without quotes; lists for several values or parts

[arms.regression]
recipe = "regression_mlp"              # of `ulna recipes`; every other field is an override of it that wins
                                       # over [common], but for those listed below
[arms.flow_10]
recipe = "flow"
sampling_steps = 10

[arms.flow_1]
of = "flow_10"                         # the same trained policy; only what acts at test time may differ:
sampling_steps = 1                     # sampling_steps, solver, solver.*, steering, steering.PART.*,
                                       # n_action_steps, decoder, ensemble_decay; and request, given, delay

[arms.distilled]
recipe = "consistency"
"training.start" = "{flow_10}"         # the folder of that arm's checkpoint of the same variant and seed

# An arm may also have:
# learner = "iql"                      # instead of recipe: trained by another way than `ulna train`
# text = "..."                         # what it is, for the table
# data = {weights = "success", observe = ["observation.state"]}   # fields of `DataOptions`, and observe:
#                                      # which observations are used (all by default)
# request = {steps = 4, steering = [{part = "Inpaint"}]}          # options of every request
# given = {"label.quality" = [1.0]}    # arrays added to every request
# delay = 2                            # control ticks that pass until a chunk can be used; the one before is
#                                      # executed meanwhile

[variants.control]                     # the same arms again. The file itself is the variant "main"
options = {routes = 1}                 # changed options of the task, in demonstrations and evaluation
demonstrations = {count = 25}          # changed fields
evaluation_options = {}                # changed options of the task in the evaluation only
arms = ["regression", "flow_10"]       # all by default

[[expect]]                             # a value of one arm
arm = "flow_10"
at_least = 0.8                         # or at_most, or both
variant = "control"                    # "main" by default
metric = "success"                     # the default; any that is reported: score, ticks, reward, nfe,
                                       # mode_entropy, parameters, train_seconds, evaluation_seconds, ...
[[expect]]                             # a difference of two arms, paired by training and evaluation seed:
better = "flow_10"                     # metric of `better` - metric of `than` > by (0 by default);
than = "regression"                    # `less` instead of `better` for metrics that should be small
by = 0.3
[[expect]]                             # no difference worth the name, for controls
alike = ["flow_10", "regression"]
within = 0.1
variant = "control"
```

A condition `goal.<key>` of a policy is `observation.goal` of the environment; `prompt.*` are demonstrations
of the same instruction; other conditions are what `given` says. Trainings that variants have in common are
done once."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

MAIN = "main"
EVALUATION_SEEDS_FROM = 10_000
TEST_TIME = ("sampling_steps", "solver", "steering", "n_action_steps", "decoder", "ensemble_decay")
"""Overrides that change nothing in a training."""
CHECKPOINT = re.compile(r"\{([^{}]+)\}")


class StudyError(ValueError):
    """The file is no study, or does not fit its results; one sentence."""


@dataclass(frozen=True)
class Demonstrations:
    count: int
    seeds_from: int = 0
    noise: float = 0.0
    """Standard deviation of the disturbance on the expert's targets, m."""
    mode: Mapping[str, Any] = field(default_factory=dict)
    """What the task's expert takes besides."""

    @property
    def seeds(self) -> range:
        return range(self.seeds_from, self.seeds_from + self.count)


@dataclass(frozen=True)
class Arm:
    name: str
    recipe: str = ""
    learner: str = ""
    """How it is trained, where not by a recipe."""
    of: str = ""
    """The arm whose training it shares; else it is trained itself."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """By dotted names, those of [common] among them."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `policies.train.data.DataOptions`, and `observe`."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """Options of every request, see `policies.request.Request`."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Arrays added to every request, by key."""
    delay: int = 0
    """Control ticks until a chunk can be used."""
    text: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """Arms whose checkpoints its overrides name."""
        texts = (v for v in self.overrides.values() if isinstance(v, str))
        return tuple(dict.fromkeys(name for text in texts for name in CHECKPOINT.findall(text)))


@dataclass(frozen=True)
class Variant:
    name: str
    options: Mapping[str, Any]
    """Of the task, those of the file among them."""
    evaluation_options: Mapping[str, Any]
    """Of the task in the evaluation, `options` among them."""
    demonstrations: Demonstrations
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Expectation:
    """Either the value of `arm` in [at_least, at_most], or a difference from `than`: of `arm` minus `than`
    (kind "better") or `than` minus `arm` ("less") above `by`, or no larger than `within` ("alike")."""

    kind: str
    arm: str
    than: str = ""
    at_least: float = -math.inf
    at_most: float = math.inf
    by: float = 0.0
    within: float = 0.0
    metric: str = "success"
    variant: str = MAIN

    def words(self) -> str:
        where = "" if self.variant == MAIN else f" ({self.variant})"
        if self.kind == "value":
            low, high = self.at_least, self.at_most
            bounds = [f"at least {low:g}"] * (low > -math.inf) + [f"at most {high:g}"] * (high < math.inf)
            return f"{self.metric} of {self.arm} {' and '.join(bounds)}{where}"
        if self.kind == "alike":
            return f"{self.metric} of {self.arm} and {self.than} within {self.within:g}{where}"
        margin = f" by more than {self.by:g}" if self.by else ""
        return f"{self.metric} of {self.arm} {self.kind} than of {self.than}{margin}{where}"


@dataclass(frozen=True)
class Study:
    name: str
    claim: str
    paper: str
    expectation: str
    control_text: str
    task: str
    seeds: tuple[int, ...]
    episodes: int
    evaluation_seeds_from: int
    base: str
    arms: Mapping[str, Arm]
    variants: Mapping[str, Variant]
    expect: tuple[Expectation, ...]
    content: str
    """SHA-256 of what the file says: comments and order of tables count for nothing."""

    @property
    def evaluation_seeds(self) -> range:
        return range(self.evaluation_seeds_from, self.evaluation_seeds_from + self.episodes)

    def trained(self, name: str) -> Arm:
        """The arm whose training `name` has: itself, unless it is `of` another."""
        arm = self.arms[name]
        return self.arms[arm.of] if arm.of else arm


FIELDS = {
    "name": str,
    "claim": str,
    "paper": str,
    "expectation": str,
    "control_text": str,
    "task": str,
    "options": dict,
    "demonstrations": dict,
    "seeds": list,
    "episodes": int,
    "evaluation_seeds_from": int,
    "base": str,
    "common": dict,
    "arms": dict,
    "variants": dict,
    "expect": list,
}
REQUIRED = ("name", "claim", "paper", "expectation", "task", "demonstrations", "seeds", "episodes", "arms")
ARM_FIELDS = {
    "recipe": str,
    "learner": str,
    "of": str,
    "data": dict,
    "request": dict,
    "given": dict,
    "delay": int,
    "text": str,
}
VARIANT_FIELDS = {"options": dict, "demonstrations": dict, "evaluation_options": dict, "arms": list}
EXPECT_FIELDS = {
    "arm": str,
    "at_least": float,
    "at_most": float,
    "better": str,
    "less": str,
    "than": str,
    "by": float,
    "alike": list,
    "within": float,
    "metric": str,
    "variant": str,
}
KINDS = {str: "text", int: "a whole number", float: "a number", dict: "a table", list: "a list"}


def read_study(path: str | Path) -> Study:
    """The study in the file `path`. StudyError names what is missing, unknown or does not fit; recipes, their
    fields and the task's options are judged by who makes them, see `study_run.plan`."""
    try:
        raw = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StudyError(f"{path} cannot be read as a study: {error}") from None
    try:
        return study_of(raw)
    except StudyError as error:
        raise StudyError(f"{path}: {error}") from None


def study_of(raw: Mapping[str, Any]) -> Study:
    """The study of a file's tables."""
    _check("the study", raw, FIELDS, REQUIRED)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", raw["name"]):
        raise StudyError(f"name is of letters, digits, _ and -, not {raw['name']!r}")
    seeds = raw["seeds"]
    if not seeds or any(type(s) is not int or s < 0 for s in seeds) or len(set(seeds)) != len(seeds):
        raise StudyError(f"seeds is a list of different whole numbers, not {seeds!r}")
    if raw["episodes"] < 1:
        raise StudyError("episodes is at least 1")
    arms = _arms(raw["arms"], _flat(raw.get("common", {})))
    base = raw.get("base", next(iter(arms)))
    _require_name("base", base, arms)
    study = Study(
        name=raw["name"],
        claim=raw["claim"],
        paper=raw["paper"],
        expectation=raw["expectation"],
        control_text=raw.get("control_text", ""),
        task=raw["task"],
        seeds=tuple(seeds),
        episodes=raw["episodes"],
        evaluation_seeds_from=raw.get("evaluation_seeds_from", EVALUATION_SEEDS_FROM),
        base=base,
        arms=arms,
        variants=_variants(raw, arms),
        expect=(),
        content=hashlib.sha256(json.dumps(raw, sort_keys=True, default=str).encode()).hexdigest(),
    )
    for variant in study.variants.values():
        mine, theirs = variant.demonstrations.seeds, study.evaluation_seeds
        if max(mine.start, theirs.start) < min(mine.stop, theirs.stop):
            raise StudyError(
                f"the demonstrations' seeds {mine.start} to {mine.stop - 1} and the evaluation's "
                f"{theirs.start} to {theirs.stop - 1} overlap: choose others"
            )
    rows = raw.get("expect", [])
    expect = tuple(_expectation(f"expect row {i}", row, study) for i, row in enumerate(rows, 1))
    return Study(**{**{f.name: getattr(study, f.name) for f in fields(Study)}, "expect": expect})


def _arms(raw: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Arm]:
    if not raw:
        raise StudyError("it has no [arms.NAME]")
    for name, table in raw.items():
        what = f"arm {name}"
        if not isinstance(table, dict):
            raise StudyError(f"{what} is a table, not {table!r:.60}")
        _check(what, {k: v for k, v in table.items() if k in ARM_FIELDS}, ARM_FIELDS)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise StudyError(f"an arm's name is of letters, digits, _ and -, not {name!r}")
        if sum(k in table for k in ("recipe", "learner", "of")) != 1:
            raise StudyError(
                f"{what} needs one of recipe, learner and of, which say where its policy is from"
            )
        if table.get("delay", 0) < 0:
            raise StudyError(f"delay of {what} is at least 0")
    arms = {name: _arm(name, table, common) for name, table in raw.items()}
    for arm in arms.values():
        for other in (arm.of, *arm.needs) if arm.of else arm.needs:
            _require_name(f"arm {arm.name} names an arm", other, arms)
            if arms[other].of or other == arm.name:
                raise StudyError(f"arm {arm.name} names the arm {other}, which is not trained itself")
    _require_order(arms)
    return arms


def _arm(name: str, table: Mapping[str, Any], common: Mapping[str, Any]) -> Arm:
    own = _flat({k: v for k, v in table.items() if k not in ARM_FIELDS})
    if "of" not in table:
        own = {**{k: v for k, v in common.items() if not any(_replaces(o, k) for o in own)}, **own}
    else:
        strange = [k for k in own if k.split(".")[0] not in TEST_TIME]
        if strange or "data" in table:
            raise StudyError(
                f"arm {name} shares the training of {table['of']}, so it cannot change "
                f"{(strange or ['data'])[0]}: what may differ is {', '.join(TEST_TIME)}, request, given and "
                "delay"
            )
    return Arm(name, overrides=own, **{k: v for k, v in table.items() if k in ARM_FIELDS})


def _replaces(name: str, other: str) -> bool:
    """Whether the override `name` makes `other` void: the same field, perhaps by a short name, or a field of
    the part that it replaces."""
    same = other == name or other.endswith(f".{name}") or name.endswith(f".{other}")
    return same or other.startswith(f"{name}.")


def _require_order(arms: Mapping[str, Arm]) -> None:
    done: set[str] = set()
    while waiting := [a for a in arms.values() if a.name not in done]:
        ready = [a.name for a in waiting if set(a.needs) <= done]
        if not ready:
            raise StudyError(f"the arms {', '.join(a.name for a in waiting)} need each other's checkpoints")
        done |= set(ready)


def _variants(raw: Mapping[str, Any], arms: Mapping[str, Arm]) -> dict[str, Variant]:
    variants: dict[str, Variant] = {}
    for name, table in {MAIN: {}, **raw.get("variants", {})}.items():
        what = f"variant {name}"
        if not isinstance(table, dict):
            raise StudyError(f"{what} is a table, not {table!r:.60}")
        _check(what, table, VARIANT_FIELDS)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise StudyError(f"a variant's name is of letters, digits, _ and -, not {name!r}")
        some = table.get("arms", list(arms))
        for arm in some:
            _require_name(f"{what} names an arm", arm, arms)
        options = {**raw.get("options", {}), **table.get("options", {})}
        shown = _demonstrations({**raw["demonstrations"], **table.get("demonstrations", {})})
        evaluation = {**options, **table.get("evaluation_options", {})}
        variants[name] = Variant(name, options, evaluation, shown, tuple(some))
    return variants


def _demonstrations(table: Mapping[str, Any]) -> Demonstrations:
    kinds = {"count": int, "seeds_from": int, "noise": float}
    own = {k: v for k, v in table.items() if k in kinds}
    _check("demonstrations", own, kinds, ("count",))
    if own["count"] < 1 or own.get("seeds_from", 0) < 0 or own.get("noise", 0) < 0:
        raise StudyError("demonstrations has a count of at least 1, and no seeds_from and noise below 0")
    return Demonstrations(**own, mode={k: v for k, v in table.items() if k not in kinds})


def _expectation(what: str, row: Any, study: Study) -> Expectation:
    if not isinstance(row, dict):
        raise StudyError(f"{what} is a table, not {row!r:.60}")
    _check(what, row, EXPECT_FIELDS)
    about = {k: row[k] for k in ("metric", "variant") if k in row}
    kinds = [k for k in ("arm", "better", "less", "alike") if k in row]
    needs = {
        "arm": ("at_least", "at_most"),
        "better": ("than", "by"),
        "less": ("than", "by"),
        "alike": ("within",),
    }
    if len(kinds) != 1:
        raise StudyError(f"{what} needs one of arm, better, less and alike")
    (kind,) = kinds
    numbers = {k: v for k, v in row.items() if k not in ("metric", "variant", kind)}
    if stray := [k for k in numbers if k not in needs[kind]]:
        raise StudyError(f"{what} names {stray[0]}, which does not go with {kind}")
    if not numbers or ("than" in needs[kind] and "than" not in numbers):
        raise StudyError(
            f"{what} needs {' or '.join(needs[kind][:1] if 'than' in needs[kind] else needs[kind])}"
        )
    if kind == "alike":
        if len(row["alike"]) != 2:
            raise StudyError(f"{what}: alike are two arms, not {row['alike']!r}")
        expectation = Expectation(kind, row["alike"][0], row["alike"][1], **numbers, **about)
    else:
        expectation = Expectation("value" if kind == "arm" else kind, row[kind], **numbers, **about)
    _require_name(f"{what} names a variant", expectation.variant, study.variants)
    some = study.variants[expectation.variant].arms
    for name in (expectation.arm, *([expectation.than] if expectation.than else [])):
        _require_name(f"{what} names an arm", name, some)
    return expectation


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Tables in tables by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _check(
    what: str, table: Mapping[str, Any], kinds: Mapping[str, type], required: Collection[str] = ()
) -> None:
    """StudyError for a field that is unknown, missing or of another type."""
    for name, value in table.items():
        _require_name(f"{what} has a field", name, kinds)
        kind = kinds[name]
        fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        if not fits or (kind in (int, float) and isinstance(value, bool)):
            raise StudyError(f"{name} of {what} is {KINDS[kind]}, not {value!r:.60}")
    if missing := [name for name in required if name not in table]:
        raise StudyError(f"{what} lacks {missing[0]}")


def _require_name(what: str, name: Any, names: Collection[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(str(name), list(names), 2, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(names)}"
        raise StudyError(f"{what} {name!r} that does not exist: {hint}")
