"""Run a study: demonstrations once a variant, a training for each arm and seed, its episodes, one JSON for
each (variant, arm, seed). Those that are there already are not made again, so a study that was killed goes
on. The numbers depend on the file alone, not on the order or the number of processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets.features import ACTION, REWARD, Feature, Features
from .report.report import commit
from .study import CHECKPOINT, Arm, Study, StudyError, Variant
from .study_arms import runner_of
from .study_rollout import run_episodes

if TYPE_CHECKING:
    from ..sim.planar.demonstrations import Demonstration
    from ..sim.planar.env import PlanarEnv

QUICK_EPISODES = 50
QUICK_SEEDS_FROM = 5000  # of the evaluation: development seeds, so that nothing is tuned on the others
PROMPT_SEEDS_FROM, PROMPT_COUNT = 1_000_000, 64
STAMP = "study.json"


@dataclass(frozen=True)
class Training:
    """One training, and the evaluations that wait for it."""

    folder: Path
    """Of the study's work."""
    key: str
    """Equal for what is the same training in several variants."""
    arm: Arm
    seed: int
    task: str
    variant: Variant
    """One of those that share it."""
    needs: tuple[tuple[str, str], ...]
    """(arm, key) of trainings that come before."""
    evaluations: tuple[tuple[Variant, Arm], ...]
    episode_seeds: range

    @property
    def name(self) -> str:
        return f"{self.key}-{self.seed}"

    @property
    def before(self) -> tuple[str, ...]:
        return tuple(f"{key}-{self.seed}" for _, key in self.needs)

    @property
    def missing(self) -> list[tuple[Variant, Arm]]:
        """Evaluations without a result."""
        return [
            (v, a)
            for v, a in self.evaluations
            if not result_path(self.folder, v.name, a.name, self.seed).exists()
        ]

    def resolved(self, arm: Arm) -> Arm:
        """The arm that is trained, or one that is evaluated with it, other arms' checkpoints named by their
        folders."""
        folders = {name: str(_checkpoint(self.folder, f"{key}-{self.seed}")) for name, key in self.needs}
        overrides = {
            k: CHECKPOINT.sub(lambda m: folders[m[1]], v) if isinstance(v, str) else v
            for k, v in arm.overrides.items()
        }
        return replace(arm, overrides=overrides)


def quick(study: Study) -> Study:
    """A small one, to see whether it is in range, on development seeds."""
    episodes = min(study.episodes, QUICK_EPISODES)
    return replace(study, seeds=study.seeds[:1], episodes=episodes, evaluation_seeds_from=QUICK_SEEDS_FROM)


def run_study(
    study: Study,
    folder: Path,
    *,
    source: str = "the file",
    processes: int = 2,
    restart: bool = False,
    progress: Callable[[int, int, str], None] = lambda finished, total, note: None,
) -> list[dict[str, Any]]:
    """The results of every (variant, arm, seed), in this order. source: the file's name, for errors.
    processes: that train and evaluate; 1 is this one. progress: called with how many results there are, their
    number, and what was finished last.

    StudyError where the folder's results are of another file, or where an arm failed: the others are kept."""
    plan(study)
    begin(study, folder, source, restart)
    trainings = trainings_of(study, folder)
    paths = [
        result_path(folder, v.name, a, s)
        for v in study.variants.values()
        for a in v.arms
        for s in study.seeds
    ]

    def report(note: str) -> None:
        progress(sum(p.exists() for p in paths), len(paths), note)

    report("")
    waiting = _waiting(trainings)
    for task, variant in {data_key(t.task, t.variant): (t.task, t.variant) for t in waiting}.values():
        record(task, variant, folder)
    failures = []
    for training, error in _run_all(waiting, processes):
        failures += [error] if error else []
        report(f"{training.arm.name}, seed {training.seed}")
    if failures:
        raise StudyError("; ".join(failures) + " (what is finished is kept: run the study again to go on)")
    return [json.loads(path.read_text()) for path in paths]


def plan(study: Study) -> None:
    """StudyError for what would fail later: an unknown task or option, a recipe or a field that does not
    fit."""
    for variant in study.variants.values():
        where = f"variant {variant.name}"
        env = make_env(study.task, variant.options, 1, where)
        make_env(study.task, variant.evaluation_options, 1, where)
        shown = variant.demonstrations
        try:
            env.expert([shown.seeds_from], shown.noise, **shown.mode)
        except TypeError as error:
            raise StudyError(f"demonstrations of {where}: the expert of {study.task} says: {error}") from None
        features = env_features(env)
        for arm in (study.arms[name] for name in variant.arms):
            trained = study.trained(arm.name)
            try:
                runner_of(trained).check(trained, features)
                if arm.of:  # what it changes must fit the recipe, too
                    both = replace(trained, name=arm.name, overrides={**trained.overrides, **arm.overrides})
                    runner_of(trained).check(both, features)
            except (ValueError, TypeError) as error:
                said = str(error)
                raise StudyError(said if f"arm {arm.name}" in said else f"arm {arm.name}: {said}") from error


def make_env(task: str, options: Mapping[str, Any], n: int, where: str = "the study") -> PlanarEnv:
    from ..sim.planar.all import TASKS
    from .commands.errors import unknown

    if task not in TASKS:
        raise unknown("planar task", task, TASKS)
    try:
        return TASKS[task](n, **options)
    except (TypeError, ValueError) as error:
        raise StudyError(f"options of {where}: {error}") from None


def env_features(env: PlanarEnv) -> Features:
    """What is seen and commanded in `env`, with names and units."""
    features = {k: Feature((len(v.names),), "float32", v.names, v.units) for k, v in env.observed.items()}
    features[ACTION] = Feature((len(env.action.names),), "float32", env.action.names, env.action.units)
    return features


def begin(study: Study, folder: Path, source: str, restart: bool) -> None:
    """The folder of the results, which remembers the file that they are of. StudyError where that was
    another."""
    stamp = folder / STAMP
    if restart:
        shutil.rmtree(folder, ignore_errors=True)
    if stamp.exists():
        if json.loads(stamp.read_text()).get("content") != study.content:
            raise StudyError(
                f"{source} is not as it was when the study {study.name} began, and an expectation is written "
                f"before the run: put it back to go on, or discard the results in {folder} with --restart"
            )
    else:
        (folder / "results").mkdir(parents=True, exist_ok=True)
        write_whole(stamp, {"name": study.name, "content": study.content})


def trainings_of(study: Study, folder: Path) -> list[Training]:
    """Each one once, after those that it or its evaluations need."""
    made: dict[str, Training] = {}
    for variant in study.variants.values():
        keys: dict[str, str] = {}
        wanted = [study.arms[name] for name in variant.arms]
        for arm, names in _in_order(study, wanted).items():
            keys[arm] = f"{arm}-{_training_hash(study.task, variant, study.arms[arm], keys)}"
            evaluations = tuple((variant, a) for a in wanted if study.trained(a.name).name == arm)
            needs = tuple((name, keys[name]) for name in names)
            for seed in study.seeds:
                training = Training(
                    folder,
                    keys[arm],
                    study.arms[arm],
                    seed,
                    study.task,
                    variant,
                    needs,
                    evaluations,
                    study.evaluation_seeds,
                )
                same = made.get(training.name)
                if same is not None:
                    both = tuple(dict.fromkeys(same.needs + needs))
                    training = replace(same, evaluations=same.evaluations + evaluations, needs=both)
                made[training.name] = training
    return list(made.values())


def _in_order(study: Study, wanted: Sequence[Arm]) -> dict[str, tuple[str, ...]]:
    """The arms to train for `wanted`, each after the ones that it needs: for its own training, or for an arm
    that is evaluated with it, such as a critic. StudyError where there is no such order."""
    order: dict[str, tuple[str, ...]] = {}

    def add(name: str, waiting: tuple[str, ...]) -> None:
        if name in waiting:
            raise StudyError(
                f"the arms {', '.join(waiting)} need each other's checkpoints: train another arm for one of them"
            )
        with_it = [a for a in wanted if study.trained(a.name).name == name]
        names = dict.fromkeys(n for a in (study.arms[name], *with_it) for n in a.needs)
        for other in names:
            add(other, (*waiting, name))
        order.setdefault(name, tuple(names))

    for name in dict.fromkeys(study.trained(a.name).name for a in wanted):
        add(name, ())
    return order


def _training_hash(task: str, variant: Variant, arm: Arm, keys: Mapping[str, str]) -> str:
    return _digest(
        [
            data_key(task, variant),
            arm.recipe,
            arm.learner,
            arm.overrides,
            arm.data,
            [keys[name] for name in arm.needs],
        ]
    )


def data_key(task: str, variant: Variant) -> str:
    shown = variant.demonstrations
    return _digest([task, variant.options, shown.count, shown.seeds_from, shown.noise, shown.mode])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=dict).encode()).hexdigest()[:12]


def result_path(folder: Path, variant: str, arm: str, seed: int) -> Path:
    return folder / "results" / f"{variant}.{arm}.{seed}.json"


def _checkpoint(folder: Path, name: str) -> Path:
    return folder / "trainings" / name


def _data_folder(folder: Path, task: str, variant: Variant) -> Path:
    return folder / "data" / data_key(task, variant)


def _waiting(trainings: Sequence[Training]) -> list[Training]:
    """Those without all results, and those that they need and that have no checkpoint."""
    by_name = {t.name: t for t in trainings}
    wanted = {t.name for t in trainings if t.missing}

    def add(name: str) -> None:
        for other in by_name[name].before:
            wanted.add(other)
            add(other)

    for name in list(wanted):
        add(name)
    return [t for t in trainings if t.name in wanted]


def record(task: str, variant: Variant, folder: Path) -> Path:
    """The variant's demonstrations as an episode store, with rewards and success labels; nothing where it is
    there."""
    from functools import partial

    from ..sim.planar.all import TASKS
    from ..sim.planar.demonstrations import demonstrations

    path = _data_folder(folder, task, variant)
    if path.exists():
        return path
    shown = variant.demonstrations
    episodes = demonstrations(partial(TASKS[task], **variant.options), shown.seeds, shown.noise, **shown.mode)
    env = make_env(task, variant.options, 1)
    unfinished = path.with_name(f".{path.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    write_store(unfinished, env_features(env), env.control_hz, f"planar {task}", episodes)
    unfinished.rename(path)
    return path


def write_store(
    path: Path, features: Features, control_hz: float, robot: str, episodes: Sequence[Demonstration]
) -> None:
    """Demonstrations as a new store; ticks come at exact times, and are received when they are captured."""
    from ..datasets.recording.writer import EpisodeWriter
    from ..datasets.store import EpisodeStore

    features = {**features, REWARD: Feature((1,), "float32", ("reward",), ("",))}
    period = round(1e9 / control_hz)
    with EpisodeWriter(EpisodeStore.create(path, features, control_hz, robot)) as writer:
        for episode in episodes:
            writer.start({"task": episode.task, "seed": episode.seed, "agent": "expert"})
            for t, (action, reward) in enumerate(zip(episode.action, episode.reward, strict=True)):
                values = {k: v[t] for k, v in episode.observation.items()}
                values |= {ACTION: action, REWARD: np.float32([reward])}
                writer.tick(values, {k: (t * period, t * period) for k in values})
            writer.end({"success": episode.success})


def prompts_of(training: Training, variant: Variant) -> dict[str, list[dict[str, np.ndarray]]]:
    """Demonstrations by instruction, of the evaluation's task and of seeds that are neither trained nor
    evaluated on."""
    from functools import partial

    from ..sim.planar.all import TASKS
    from ..sim.planar.demonstrations import demonstrations

    shown, seeds = variant.demonstrations, range(PROMPT_SEEDS_FROM, PROMPT_SEEDS_FROM + PROMPT_COUNT)
    make = partial(TASKS[training.task], **variant.evaluation_options)
    by_task: dict[str, list[dict[str, np.ndarray]]] = {}
    for episode in demonstrations(make, seeds, shown.noise, **shown.mode):
        by_task.setdefault(episode.task, []).append({**episode.observation, ACTION: episode.action})
    return by_task


def work(training: Training) -> str:
    """Train, where there is no checkpoint, and evaluate what is missing. What went wrong in one sentence; ""
    where nothing did."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        checkpoint = _checkpoint(training.folder, training.name)
        runner = runner_of(training.arm)
        where = checkpoint / "where.json"  # written last
        if not where.exists():
            shutil.rmtree(checkpoint, ignore_errors=True)
            data = _data_folder(training.folder, training.task, training.variant)
            result = runner.train(training.resolved(training.arm), data, training.seed, checkpoint)
            write_whole(where, {"checkpoint": str(result.relative_to(checkpoint))})
        result = checkpoint / json.loads(where.read_text())["checkpoint"]
        for variant, arm in training.missing:
            evaluate(training, result, variant, arm)
    except Exception as error:  # noqa: BLE001  the other arms are to go on
        if not isinstance(error, ValueError | OSError):
            traceback.print_exc()
        return f"arm {training.arm.name}, seed {training.seed}: {type(error).__name__}: {error}"
    finally:
        torch.set_num_threads(threads)
    return ""


def evaluate(training: Training, checkpoint: Path, variant: Variant, arm: Arm) -> None:
    """Write the result of one (variant, arm, seed), by a rename."""
    runner = runner_of(training.arm)
    decider = runner.policy_of(checkpoint, training.resolved(arm))
    seeds = training.episode_seeds
    env = make_env(training.task, variant.evaluation_options, len(seeds))
    prompted = any(k.startswith("prompt.") for k in decider.needs.condition_keys)
    episodes = run_episodes(
        decider,
        env,
        seeds,
        given=arm.given,
        delay=arm.delay,
        prompts=prompts_of(training, variant) if prompted else None,
    )
    trained = runner.trained(checkpoint)
    write_whole(
        result_path(training.folder, variant.name, arm.name, training.seed),
        {
            "variant": variant.name,
            "arm": arm.name,
            "seed": training.seed,
            "commit": commit(),
            "parameters": trained.parameters,
            "train_seconds": trained.seconds,
            **episodes.to_json(),
        },
    )


def write_whole(path: Path, value: Mapping[str, Any]) -> None:
    """As JSON, by a rename."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps(value, allow_nan=False) + "\n")
    os.replace(new, path)


def _run_all(trainings: Sequence[Training], processes: int) -> Iterator[tuple[Training, str]]:
    """(training, what went wrong), as they are finished; one whose predecessor failed is left out."""
    if processes == 1:
        failures: set[str] = set()
        for training in trainings:
            if failures & set(training.before):
                failures.add(training.name)
                continue
            error = work(training)
            failures |= {training.name} if error else set()
            yield training, error
        return
    todo = {t.name: t for t in trainings}
    done: set[str] = set()
    running: dict[Future[str], Training] = {}
    with _one_thread(), ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        try:
            while True:
                for name, training in list(todo.items()):
                    if set(training.before) <= done:
                        running[pool.submit(work, todo.pop(name))] = training
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    training, error = running.pop(future), future.result()
                    done |= set() if error else {training.name}
                    yield training, error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes begun meanwhile compute with one thread each."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {n: os.environ.get(n) for n in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
