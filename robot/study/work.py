"""What a study does, one training and its evaluations at a time. All that is finished is a file in the
study's work folder, so that a study goes on where it was killed:

study.toml                   the file, as it was when the study began
VARIANT/data/                its demonstrations, an episode store
VARIANT/ARM/seed-K/          checkpoint
VARIANT/ARM/seed-K.json      what an evaluation found
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import secrets
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from ..prompts import Prompts, shown_to
from ..report.report import commit, machine
from ..rollout import Rollout, env_features, rollout
from .arms import runner, task_maker
from .demonstrations import gather_demonstrations, record_demonstrations
from .result import write_json
from .runner import Trained, execution
from .study import Arm, Study, StudyError, Variant, read_study

ROWS = 100  # episodes at once in an evaluation


@dataclass(frozen=True)
class Job:
    """One training, and the evaluation of all arms that share it."""

    variant: str
    arm: str
    seed: int


class Work:
    """The work folder of a study that is in `file`."""

    def __init__(self, file: Path, folder: Path, quick: bool = False, device: str = "cpu") -> None:
        self.file, self.folder, self.quick, self.device = file, folder, quick, device
        self.study: Study = read_study(file, quick)

    def begin(self, restart: bool = False) -> None:
        """Make the folder ready, and check that every arm fits the task before any is trained. StudyError
        where the file is not the one that the study began with; restart: discard what it found."""
        copy = self.folder / "study.toml"
        if restart and copy.is_file():  # only what a study has made
            import shutil

            shutil.rmtree(self.folder)
        if copy.is_file() and copy.read_bytes() != self.file.read_bytes():
            raise StudyError(
                f"{self.file} has changed since this study began: put it back as it was, or --restart "
                f"discards what {self.folder} holds"
            )
        if self.folder.is_dir() and any(self.folder.iterdir()) and not copy.is_file():
            raise StudyError(f"{self.folder} holds something else: choose another --work")
        self._require_alike({v.name: self._check(v) for v in self.study.variants.values()})
        self.folder.mkdir(parents=True, exist_ok=True)
        if not copy.is_file():
            new = self.folder / f".study.{secrets.token_hex(4)}"
            new.write_bytes(self.file.read_bytes())
            os.replace(new, copy)

    def _check(self, variant: Variant) -> Any:
        """The features of its task, after looking whether its arms fit them."""
        where = f"{self.file}, [task]" if len(self.study.variants) == 1 else f"{self.file}, {variant.name}"
        try:
            env = task_maker(variant.task, variant.options)(1)
        except TypeError as error:
            raise StudyError(f"{where}: {variant.task} does not take these options: {error}") from None
        except ValueError as error:
            raise StudyError(f"{where}: {error}") from None
        try:
            features = env_features(env)
        finally:
            env.close()
        for arm in self.study.trainings(variant.name):
            others = [a for _, a in self.study.trials(arm, variant.name) if a is not arm]
            try:
                runner(arm).check(arm, others, features)
            except ValueError as error:
                raise StudyError(f"{self.file}, [arms.{arm.name}]: {error}") from None
        return features

    def _require_alike(self, features: Mapping[str, Any]) -> None:
        """StudyError where an arm meets a task whose observations are not those that it learned from.
        features: of each variant."""
        for arm in self.study.arms.values():
            also = arm.data.get("also", [])
            for on in self.study.variants:
                home = self.study.home(arm, on)
                tried = arm in self.study.arms_of(on)
                for other in (*([on] if tried else []), *(also if self.study.trials(arm, home) else [])):
                    if features[other] != features[home]:
                        raise StudyError(
                            f"{self.file}, [arms.{arm.name}]: it is trained on {home}, and {other} has other "
                            "observations or actions"
                        )

    @property
    def jobs(self) -> list[Job]:
        """All of them; every seed's before the next, so that a study that is cut short has all arms."""
        return [
            Job(variant, arm.name, seed)
            for seed in range(self.study.seeds)
            for variant in self.study.variants
            for arm in self.study.trainings(variant)
        ]

    def evaluations(self, job: Job) -> list[tuple[str, Arm]]:
        """(variant, arm) of what is evaluated in `job`."""
        return self.study.trials(self.study.arms[job.arm], job.variant)

    def result_file(self, variant: str, arm: str, seed: int) -> Path:
        return self.folder / variant / arm / f"seed-{seed}.json"

    def open_jobs(self) -> list[Job]:
        """Those of which some evaluation is missing."""
        return [
            j
            for j in self.jobs
            if not all(self.result_file(v, a.name, j.seed).is_file() for v, a in self.evaluations(j))
        ]

    def results(self) -> list[dict[str, Any]]:
        """What has been found so far."""
        files = [
            self.result_file(v, a, s)
            for v in self.study.variants
            for a in self.study.arms
            for s in range(self.study.seeds)
        ]
        return [json.loads(f.read_text()) for f in files if f.is_file()]

    def record(self, variant: Variant) -> Path:
        """The demonstrations of a variant, recorded where they are not there yet."""
        folder, d = self.folder / variant.name / "data", variant.demonstrations
        with self._alone(folder.parent / "data.lock"):
            if not folder.is_dir():
                make = task_maker(variant.task, variant.options)
                env = make(1)
                features, hz, name = env_features(env), float(env.control_hz), str(env.task_name)
                only = bool(getattr(env, "only_successes", False))
                env.close()
                demos = gather_demonstrations(make, d.first_seed, d.count, d.noise, only, **d.mode)
                record_demonstrations(demos, folder, features, hz, f"sim:{name}")
        return folder

    def run(
        self, job: Job, report: Callable[[str, int, bool], None], *, as_trained_only: bool = False
    ) -> None:
        """Train and evaluate what is missing of `job`. report: called after each evaluation with the arm, its
        successes, and whether it was there already. as_trained_only: leave out the arms that change what was
        trained when it runs."""
        out = self._checkpoint(job)
        wanted = [(on, a) for on, a in self.evaluations(job) if not (as_trained_only and a.of)]
        for arm in (self.study.arms[job.arm], *(a for _, a in wanted)):
            for name in arm.needs:
                self.train(self._job(name, job))
        # what was killed may still run in another process, which then finishes it
        with self._alone(out.with_suffix(".lock")):
            trained = None
            for on, arm in wanted:
                file = self.result_file(on, arm.name, job.seed)
                there = file.is_file()
                if not there:
                    if trained is None:
                        trained = self._train(job)
                    settings = self._resolved(arm, job).settings if arm.of else {}  # else the checkpoint's
                    policy = runner(self.study.arms[job.arm]).decider(out, settings, self.device)
                    result = self._evaluate(self.study.variants[on], arm, policy)
                    write_json(
                        file,
                        {
                            "variant": on,
                            "arm": arm.name,
                            "seed": job.seed,
                            **result,
                            "parameters": trained.parameters,
                            "steps": trained.steps,
                            "training_seconds": 0.0 if arm.of else round(trained.seconds, 4),
                            "final_loss": trained.final_loss,
                            "checkpoint": trained.content_hash,
                            "machine": machine(),
                            "commit": commit(),
                            "date": datetime.now(UTC).date().isoformat(),
                        },
                    )
                name = arm.name if on == job.variant else f"{arm.name} on {on}"
                report(name, sum(json.loads(file.read_text())["outcomes"]), there)

    def train(self, job: Job) -> None:
        """Train its arm, where it is not trained, and those that it needs."""
        for name in self.study.arms[job.arm].needs:
            self.train(self._job(name, job))
        with self._alone(self._checkpoint(job).with_suffix(".lock")):
            self._train(job)

    def _train(self, job: Job) -> Trained:
        variant, arm = self.study.variants[job.variant], self._resolved(self.study.arms[job.arm], job)
        out, data = self._checkpoint(job), self.record(variant)
        return runner(arm).train(arm, variant, data, out, job.seed + arm.seed_offset, self.device)

    def _resolved(self, arm: Arm, job: Job) -> Arm:
        """With folders in the place of the arms and the variants that it names."""
        arm = arm.with_checkpoints({n: self._checkpoint(self._job(n, job)) for n in arm.needs})
        if "also" not in arm.data:
            return arm
        also = [self.record(self.study.variants[name]) for name in arm.data["also"]]
        return replace(arm, data={**arm.data, "also": also})

    def _job(self, arm: str, of: Job) -> Job:
        """The one that trains what the job `of` needs of `arm`."""
        return Job(self.study.home(self.study.arms[arm], of.variant), arm, of.seed)

    def _checkpoint(self, job: Job) -> Path:
        return self.folder / job.variant / job.arm / f"seed-{job.seed}"

    def _evaluate(self, variant: Variant, arm: Arm, policy: Any) -> dict[str, Any]:
        study = self.study
        env = task_maker(variant.task, {**variant.options, **variant.evaluation})(min(ROWS, study.episodes))
        try:
            first = study.evaluation_seed
            _, strategy, charge = execution(arm.settings)
            seeds = range(first, first + study.episodes)
            prompts = None
            if shown_to(policy.metadata):
                prompts = Prompts(self.record(variant), policy.metadata, most=arm.settings.get("prompts"))
            r = rollout(policy, env, seeds, strategy=strategy, charge=charge, prompts=prompts)
        finally:
            env.close()
        more = {"starved": r.starved / study.episodes} if charge.ms else {}
        if r.writes is not None:
            more["writes"] = r.writes
        return {
            "outcomes": [int(o.success) for o in r.outcomes],
            "mean_ticks": float(np.mean([o.ticks for o in r.outcomes])),
            "decisions": r.decisions,
            "nfe_per_decision": r.nfe_per_decision,
            "evaluation_seconds": round(r.seconds, 4),
            "metrics": metrics(r, study.modes) | more,
        }

    @contextlib.contextmanager
    def _alone(self, lock: Path) -> Iterator[None]:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield


def metrics(r: Rollout, modes: str = "") -> dict[str, Any]:
    """Means of the numbers that the environment's info has of its episodes' ends, and with `modes`, the key
    that says which way an episode went, how often each way succeeded and their entropy in bits, 0 where all
    successes went one way; None without success."""
    skip = {"success", "task", "sent", modes}
    means = {
        k: float(np.mean([i[k] for i in r.infos]))
        for k, v in r.infos[0].items()
        if k not in skip and type(v) in (int, float, bool)
    }
    if not modes:
        return means
    if modes not in r.infos[0]:
        raise StudyError(f"modes is {modes!r}, but the task's info has {', '.join(r.infos[0])}")
    ways = Counter(str(i[modes]) for i, o in zip(r.infos, r.outcomes, strict=True) if o.success)
    shares = np.array(list(ways.values())) / max(sum(ways.values()), 1)
    entropy = float(-(shares * np.log2(shares)).sum()) + 0.0 if len(shares) else None
    return {**means, "mode_entropy": entropy, "modes": dict(sorted(ways.items()))}


def run_all(
    work: Work, processes: int, report: Callable[[Job, str, int, bool], None] = lambda *_: None
) -> None:
    """Run every job that is open, `processes` at once, each on one thread. report: as of `Work.run`."""
    jobs = work.open_jobs()
    processes = min(processes, len(jobs))
    if processes <= 1:
        for job in jobs:
            work.run(job, lambda *what, job=job: report(job, *what))
        return
    # spawned: a fork would copy torch's threads, which are not there any more
    context = multiprocessing.get_context("spawn")
    pipes: dict[Any, Job | None] = {}
    workers = []
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(theirs, work))
            worker.start()
            theirs.close()
            workers.append(worker)
            pipes[ours] = jobs.pop(0)
            ours.send(pipes[ours])
        while any(job is not None for job in pipes.values()):
            for pipe in wait([p for p, job in pipes.items() if job is not None]):
                job = pipes[pipe]
                assert isinstance(pipe, Connection)
                assert job is not None
                try:
                    kind, what = pipe.recv()
                except (EOFError, ConnectionError):
                    raise RuntimeError(f"the process that ran {job} has died: run the study again") from None
                if kind == "failed":
                    raise what
                if kind == "report":
                    report(job, *what)
                else:
                    pipes[pipe] = jobs.pop(0) if jobs else None
                    if pipes[pipe] is not None:
                        pipe.send(pipes[pipe])
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    finally:
        for pipe in pipes:
            pipe.close()  # they end on that
        for worker in workers:
            worker.join()


def _serve(pipe: Connection, work: Work) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        while True:
            work.run(pipe.recv(), lambda *what: pipe.send(("report", what)))
            pipe.send(("done", None))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass  # the other side has gone
    except Exception as error:  # noqa: BLE001  (raised by the other side)
        traceback.print_exc()
        mendable = isinstance(error, OSError | ValueError)
        pipe.send(("failed", (StudyError if mendable else RuntimeError)(f"{type(error).__name__}: {error}")))
