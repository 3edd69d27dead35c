"""Arms `lerobot = "act"`: a policy of LeRobot 0.6, trained by LeRobot's own command on the same episodes,
which are exported for it, and run in a process of its own. The settings of such an arm are options of
`lerobot-train` (`batch_size`, `steps`, `"policy.chunk_size"`), and `seconds` of the processor, after which
the training is ended, be it done or not: its last checkpoint counts.

LeRobot is that of this environment, or the one whose Python the variable ULNA_LEROBOT_PYTHON names."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datasets.features import (
    ACTION,
    ENVIRONMENT,
    Features,
    features_from_json,
    features_to_json,
    image_keys,
)
from ...policies.request import Request
from ...policies.serving.metadata import Metadata
from . import lerobot
from .result import write_json
from .runner import Trained, execution
from .study import Arm, StudyError, Variant

if TYPE_CHECKING:
    from ...policies.serving.batch import Answers

PYTHON = "ULNA_LEROBOT_PYTHON"
CHANGES = ("sampling_steps", "n_action_steps", "decoder", "ensemble_decay", "solver")
"""What an arm that shares the training can change, beside how chunks are executed."""
SCHEDULERS = ("DDPM", "DDIM")  # of LeRobot's diffusion
STARTED, LOG, TRAINED = "Start offline training", "lerobot.log", "trained.json"
CHECKPOINTS = 10  # in a training that is ended by the clock
POLL_S, GRACE_S = 0.1, 20.0
SLOWEST = 20  # seconds of a clock for one of the processor: what waits for longer hangs
OURS = ("dataset.repo_id", "dataset.root", "policy.type", "output_dir", "seed", "resume")


def python() -> str:
    """LeRobot's."""
    return os.environ.get(PYTHON) or sys.executable


class LeRobotRunner:
    """See above. A training that was killed begins anew."""

    def check(self, arm: Arm, sharing: Sequence[Arm], features: Mapping[str, Any]) -> None:
        if arm.data:
            raise StudyError("data: a policy of LeRobot learns from all that was recorded")
        if ENVIRONMENT not in features and not image_keys(dict(features)):
            raise StudyError(
                f"LeRobot's {arm.source} needs pictures or {ENVIRONMENT}, and the task shows neither"
            )
        for key, feature in features.items():
            if key.startswith("observation.") and tuple(feature.shape) == (1,):
                raise StudyError(
                    f"LeRobot reads {key}, one number, without its dimension, and its policies fail on that: "
                    "use a task that shows more"
                )
        for name in OURS:
            if name in arm.settings:
                raise StudyError(f"{name} is not the arm's to choose: the study says it")
        for name in ("steps", "seconds"):
            value = arm.settings.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise StudyError(f"{name} is a number above 0, not {value!r}")
        for other in sharing:
            _changes(execution(other.settings)[0], arm.source)

    def train(self, arm: Arm, variant: Variant, data: Path, out: Path, seed: int, device: str) -> Trained:
        note = out / TRAINED
        if not note.is_file():
            out.mkdir(parents=True, exist_ok=True)
            write_json(note, self._train(arm, data, out, seed, device))
        record = json.loads(note.read_text())
        return Trained(out, **{f.name: record[f.name] for f in fields(Trained) if f.name in record})

    def decider(self, checkpoint: Path, settings: Mapping[str, Any], device: str) -> LeRobotPolicy:
        return LeRobotPolicy(checkpoint, execution(settings)[0], device)

    def _train(self, arm: Arm, data: Path, out: Path, seed: int, device: str) -> dict[str, Any]:
        from ...datasets.store import EpisodeStore

        store, settings = EpisodeStore.open(data), dict(execution(arm.settings)[0])
        seconds = float(settings.pop("seconds", 0)) or None
        steps = int(settings.get("steps", 100_000))
        options = {
            "dataset.repo_id": "ulna/study",
            "dataset.root": exported(data),
            "policy.type": arm.source,
            "policy.push_to_hub": False,
            "policy.device": device,
            "output_dir": out / "lerobot",
            "job_name": arm.name,
            "seed": seed,
            "num_workers": 0 if not image_keys(store.features) else 2,
            "save_freq": -(-steps // CHECKPOINTS) if seconds else steps,
            "log_freq": -(-steps // 200),
            "env_eval_freq": 0,
            "wandb.enable": False,
            **settings,
        }
        shutil.rmtree(out / "lerobot", ignore_errors=True)
        command = [python(), "-P", "-m", "lerobot.scripts.lerobot_train"]
        command += [f"--{k}={_option(v)}" for k, v in options.items()]
        trained_s, processor_s = _run(command, out / LOG, seconds)
        last = out / "lerobot" / "checkpoints" / "last"
        folder = last / "pretrained_model"
        if not (folder / "config.json").is_file():
            raise StudyError(
                f"LeRobot's {arm.source} saved no checkpoint in {processor_s:.0f} s of training: give it "
                f"more seconds or fewer steps (see {out / LOG})"
            )
        done = int(last.resolve().name)
        for other in last.parent.iterdir():  # with its optimiser's state each is three times its policy
            if other.is_dir() and not other.is_symlink() and other.name != last.resolve().name:
                shutil.rmtree(other)
        digest = hashlib.sha256()
        for file in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors")):
            digest.update(file.read_bytes())
        log = (out / LOG).read_text(errors="replace")
        parameters = re.findall(r"num_total_params=(\d+)", log)
        losses = [float(v) for v in re.findall(r" loss:([\d.]+)", log)]
        return {
            "content_hash": digest.hexdigest(),
            "parameters": int(parameters[0]) if parameters else 0,
            "seconds": round(trained_s, 3),
            "processor_seconds": round(processor_s, 3),
            "steps": done,
            "final_loss": float(np.mean(losses[-10:])) if losses else 0.0,
            "control_hz": store.control_hz,
            "features": features_to_json(store.features),
        }


def exported(data: Path) -> Path:
    """The LeRobot folder of the demonstrations, made beside them where it is not there yet."""
    from ...datasets.formats.lerobot_export import export_lerobot
    from ...datasets.store import EpisodeStore

    data = data.resolve()
    folder = data.with_name(f"{data.name}-lerobot")
    with data.with_name(f"{data.name}-lerobot.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            export_lerobot(EpisodeStore.open(data), folder)
    return folder


def step_seconds(log: str) -> list[float]:
    """How long each step took that LeRobot's training logged, reading its batch included, of the log's
    text."""
    pairs = re.findall(r" updt_s:([\d.]+) data_s:([\d.]+)", log)
    return [float(update) + float(reading) for update, reading in pairs]


def _environment() -> dict[str, str]:
    """Of LeRobot's processes: as many threads as ours have, and nothing is fetched from its hub."""
    import torch

    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}


def processor_seconds(pid: int) -> float:
    """That a process, its threads and its children have had; 0 where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    # of `man 5 proc`, after the name in brackets: utime, stime, and those of children that have ended
    ticks = sum(map(int, text.rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK") + sum(processor_seconds(int(child)) for child in children)


def _run(command: Sequence[str], log: Path, seconds: float | None) -> tuple[float, float]:
    """Run LeRobot's training, for so many seconds of the processor from its first step at most: what else
    the machine does costs it no step. How many seconds it took, by the clock and of the processor. StudyError
    with its last words where it fails."""
    with log.with_suffix(".lock").open("a+") as lock, log.open("wb") as file:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise StudyError(
                f"a training of LeRobot that was begun before still runs, as process {lock.read()}: end it, "
                "or wait"
            ) from None
        try:  # which holds the lock, too, should this process die before it
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=_environment(),
                pass_fds=[lock.fileno()],
            )
        except OSError as error:
            raise StudyError(f"cannot start {command[0]}, which {PYTHON} names: {error.strerror}") from None
        lock.truncate(0)
        lock.write(str(process.pid))
        lock.flush()
    began, ended, before, used = None, False, 0.0, 0.0
    try:
        while process.poll() is None:
            now = processor_seconds(process.pid)
            if began is None and STARTED.encode() in log.read_bytes():
                began, before = time.monotonic(), now
            used = max(used, now - before) if began else 0.0  # what has just ended is said to have used none
            taken = time.monotonic() - began if began else 0.0
            if seconds is not None and (used > seconds or taken > SLOWEST * seconds):
                ended = True
                break
            time.sleep(POLL_S)
        over = time.monotonic()
    finally:
        stop(process)
    if not ended and process.returncode:
        words = [w for w in log.read_text(errors="replace").splitlines() if w.strip()]
        missing = "No module named 'lerobot'" in (words[-1] if words else "")
        hint = f": name the Python of its environment in {PYTHON}" if missing else f" (see {log})"
        raise StudyError(f"LeRobot's training failed: {words[-1] if words else 'no word'}{hint}")
    return over - (began or over), used


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it, in the end by force."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _option(value: Any) -> str:
    """As LeRobot's command reads it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)


def _changes(settings: Mapping[str, Any], source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields of LeRobot's config, of our `Metadata`) that the settings of an arm at run time are."""
    for name in settings:
        if name not in CHANGES:
            raise StudyError(
                f"a policy of LeRobot takes no {name} when it runs: it takes {', '.join(CHANGES)}"
            )
    config = {}
    for name, field in (("sampling_steps", "num_inference_steps"), ("solver", "noise_scheduler_type")):
        if name in settings:
            if source != "diffusion":
                raise StudyError(f"LeRobot's {source} takes no {name}: its diffusion does")
            config[field] = settings[name]
    if settings.get("solver", SCHEDULERS[0]) not in SCHEDULERS:
        raise StudyError(f"solver is one of LeRobot's, {' or '.join(SCHEDULERS)}, not {settings['solver']!r}")
    return config, {k: settings[k] for k in ("n_action_steps", "decoder", "ensemble_decay") if k in settings}


class _Process:
    """LeRobot's, which holds any number of policies."""

    def __init__(self, interpreter: str) -> None:
        self.process = subprocess.Popen(
            [interpreter, "-P", lerobot.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
        )
        atexit.register(self._close)

    def ask(self, **values: Any) -> dict[str, np.ndarray]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            lerobot.write_message(self.process.stdin, values)  # type: ignore[arg-type]
            answer = lerobot.read_message(self.process.stdout)  # type: ignore[arg-type]
        except OSError:
            answer = None
        if answer is None:
            _process.cache_clear()
            raise StudyError(f"the process with LeRobot's policy, {python()}, has died: its words are above")
        if "error" in answer:
            raise StudyError(f"LeRobot's policy: {answer['error']}")
        return answer

    def drop(self, policy: np.ndarray) -> None:
        with contextlib.suppress(StudyError):
            self.ask(order="drop", policy=policy)

    def _close(self) -> None:
        stop(self.process)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@cache
def _process(interpreter: str) -> _Process:
    return _Process(interpreter)


class LeRobotPolicy:
    """A `Decider` and a `ServedPolicy`: what `LeRobotRunner` left in `checkpoint`. Its rows share what DDPM
    draws between its steps, so they depend on what is asked together, though not in distribution."""

    def __init__(self, checkpoint: Path, settings: Mapping[str, Any], device: str = "cpu") -> None:
        record = json.loads((checkpoint / TRAINED).read_text())
        folder = checkpoint / "lerobot" / "checkpoints" / "last" / "pretrained_model"
        source = json.loads((folder / "config.json").read_text())["type"]
        config, own = _changes(settings, source)
        self._server = _process(python())
        answer = self._server.ask(
            order="load", checkpoint=str(folder), device=device, changes=json.dumps(config)
        )
        self._policy, about = answer["policy"], json.loads(str(answer["about"]))
        weakref.finalize(self, self._server.drop, self._policy).atexit = False
        self.nfe: int = about["nfe"]
        self.seconds: list[float] = []  # that each decision took it
        features: Features = features_from_json(record["features"])
        used = {k: f for k, f in features.items() if k in about["features"]}
        ensemble = about["ensemble"]
        metadata = Metadata(
            recipe=f"lerobot {source}",
            features={**used, ACTION: features[ACTION]},
            n_obs_steps=about["n_obs_steps"],
            n_action_steps=about["to_execute"],
            decoder="slice" if ensemble is None else "ensemble",
            ensemble_decay=0.01 if ensemble is None else ensemble,
            sampling_steps=self.nfe,
            control_hz=record["control_hz"],
            checkpoint=record["content_hash"],
        )
        self.metadata = replace(metadata, horizon=self._horizon(metadata), **own)

    def _horizon(self, metadata: Metadata) -> int:
        """How many actions it answers."""
        n = metadata.n_obs_steps
        blank = {k: np.zeros((n, *f.shape), f.dtype) for k, f in metadata.features.items() if k != ACTION}
        return self._decide([Request(blank, 0)]).shape[1]

    def decide(self, requests: Sequence[Request]) -> Answers:
        from ...policies.serving.batch import Answers

        return Answers(self._decide(requests), np.full(len(requests), self.nfe))

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        chunk = self._decide([Request.from_wire(request)])[0]
        return {"actions": chunk, "nfe": self.nfe, "checkpoint": self.metadata.checkpoint}

    def _decide(self, requests: Sequence[Request]) -> np.ndarray:
        seeds = np.array([0 if r.seed is None else int(r.seed) for r in requests], np.int64)
        keys = requests[0].observation
        observation = {k: np.stack([np.asarray(r.observation[k]) for r in requests]) for k in keys}
        tasks = np.array([r.task or "" for r in requests])
        answer = self._server.ask(order="decide", policy=self._policy, seed=seeds, task=tasks, **observation)
        self.seconds.append(float(answer["seconds"]))
        return answer["actions"].astype(np.float32)
