"""Ulna's policies as LeRobot's: any checkpoint runs under `lerobot-rollout` and `lerobot-eval`, and
`lerobot-train` trains any recipe whose loss one training minimises.

A policy folder is Ulna's own checkpoint with LeRobot's `config.json` and processors beside it, so that
`ulna serve` and `ulna deploy` take it as it is. Legend: B rows, T observations, H horizon, A action
dimensions, n actions ahead."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_IMAGES
from torch import Tensor

from ulna.datasets.features import STATE, Feature, Features, bare, is_image
from ulna.datasets.stats import ARRAYS, Stats
from ulna.datasets.units import Restated, resolutions
from ulna.policies.checkpoint import load_checkpoint, save_checkpoint
from ulna.policies.policy import Policy
from ulna.policies.request import TASK, Request
from ulna.policies.serving.batch import BatchPolicy
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.train.record import TrainingRecord
from ulna.robot.lerobot_words import Translated, in_lerobots, usual_units
from ulna.robot.session import Session
from ulna.robot.statement import Statement, calibration_files

from .configuration_ulna import UlnaConfig, recipe_of


class UlnaPolicy(PreTrainedPolicy):
    """model: Ulna's own. In LeRobot's batches images are `(B, [T,] C, H, W)` float in 0..1, and joints in
    what `config.units` says."""

    config_class: Any = UlnaConfig  # LeRobot declares both as None
    name: Any = "ulna"
    config: UlnaConfig

    def __init__(
        self,
        config: UlnaConfig,
        dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
        dataset_meta: Any = None,
        model: Policy | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config)
        if model is None:
            if dataset_stats is None or dataset_meta is None:
                raise ValueError(
                    "an ulna policy is made for a dataset, or loaded from a folder: give --policy.path, or "
                    "train it"
                )
            features = features_of(dataset_meta.features, config)
            recipe = recipe_of(config, features)
            config.follow(recipe)
            model = Policy(recipe, features, stats_of(dataset_stats, features))
        self.model = model
        self.record = TrainingRecord(
            control_hz=None if dataset_meta is None else float(dataset_meta.fps),
            robot="" if dataset_meta is None else str(dataset_meta.robot_type or ""),
            data="" if dataset_meta is None else str(dataset_meta.repo_id),
        )
        self._decider: Any = None
        self._sessions: list[Session] = []
        self._episodes = 0

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: UlnaConfig | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> UlnaPolicy:
        """Of a folder, or of a repository of the hub. CheckpointError in one sentence for what is no
        checkpoint of Ulna's."""
        from lerobot.configs import PreTrainedConfig

        from ulna.policies.checkpoint import read_train

        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(str(pretrained_name_or_path), revision=revision))
        if config is None:
            loaded = PreTrainedConfig.from_pretrained(folder)
            assert isinstance(loaded, UlnaConfig)
            config = loaded
        model = load_checkpoint(folder, str(config.device or "cpu"))
        model.requires_grad_(True)
        config.follow(model.recipe)
        policy = cls(config, model=model)
        policy.record = read_train(folder)
        return policy.eval()

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """`model.safetensors` is Ulna's, and so are the files that its hash is of. state_dict: of all ranks,
        under the names that the weights have in this module."""
        self.config._save_pretrained(save_directory)
        model = self.model
        if state_dict is not None:
            model = Policy(model.recipe, model.features, model.stats)
            model.load_state_dict({k.removeprefix("model."): v for k, v in state_dict.items()})
        save_checkpoint(save_directory, model, self.record)

    def get_optim_params(self) -> Any:
        return self.parameters()

    def train(self, mode: bool = True) -> UlnaPolicy:
        if mode:
            self._decider = None  # the weights will not be those that it knows
        super().train(mode)
        return self

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any] | None]:
        """The recipe's loss on windows as `config`'s delta indices ask for them."""
        known: dict[str, Any] = {}
        for key in self.model.observation_keys:
            value = batch[key]
            known[key] = _pixels(value) if is_image(key) else value
            if known[key].ndim == len(self.model.features[key].shape) + 1:
                known[key] = known[key][:, None]
        known[ACTION] = batch[ACTION]
        padded = batch.get(f"{ACTION}_is_pad")
        known["mask"] = (
            torch.ones(batch[ACTION].shape[:2], dtype=torch.bool, device=batch[ACTION].device)
            if padded is None
            else ~padded
        )
        if TASK in self.model.condition_keys:
            known[TASK] = _words(batch, len(batch[ACTION]))
        loss = self.model.loss(known)
        return loss, {"loss": float(loss.detach())}

    def reset(self) -> None:
        """An episode begins."""
        self._sessions = []
        self._episodes += 1

    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """`(B, A)`: the actions of this tick, by the recipe's decoder; the policy is asked where a row needs
        it, and all rows that do at once."""
        rows, words = self._rows(batch)
        decider = self._policy()
        if len(self._sessions) != len(rows):
            self._sessions = [Session(decider.metadata) for _ in rows]
            for i, session in enumerate(self._sessions):
                session.reset(words[i], self.config.seed + 1000 * self._episodes + i)
        asked: dict[int, Request] = {}
        for i, (session, values) in enumerate(zip(self._sessions, rows, strict=True)):
            session.observe(values)
            if (request := session.ask()) is not None:
                asked[i] = request
        for kind in {r.kind for r in asked.values()}:
            alike = [i for i, r in asked.items() if r.kind == kind]
            with torch.inference_mode(False):
                answers = decider.decide([asked[i] for i in alike])
            for j, i in enumerate(alike):
                memory = None if answers.memory is None else answers.memory[j]
                execute = None if answers.execute is None else int(answers.execute[j])
                self._sessions[i].answer(answers.chunks[j], memory, execute)
        actions = np.stack([session.next() for session in self._sessions]).astype(np.float32)
        for session, action in zip(self._sessions, actions, strict=True):
            session.sent(action)
        return torch.from_numpy(actions).to(self.model.device)

    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """`(B, n, A)`: a chunk for each row from this observation alone, the first action for now."""
        rows, words = self._rows(batch)
        decider = self._policy()
        requests = []
        for i, values in enumerate(rows):
            session = Session(decider.metadata)
            session.reset(words[i], self.config.seed + i)
            session.observe(values)
            request = session.ask()
            assert request is not None
            requests.append(request)
        with torch.inference_mode(False):
            chunks = decider.decide(requests).chunks
        return torch.from_numpy(np.ascontiguousarray(chunks)).to(self.model.device)

    def _policy(self) -> Any:
        """What decides, in LeRobot's words."""
        if self._decider is None:
            with torch.inference_mode(False), tempfile.TemporaryDirectory() as folder:
                save_checkpoint(folder, self.model, self.record)
                steps = self.config.sampling_steps or None
                decider: Any = BatchPolicy(LocalPolicy(folder, str(self.model.device), steps))
            words = words_of(self.model.features, self.config, self.record.robot)
            self._decider = Translated(decider, words) if words.elements else decider
        return self._decider

    def _rows(self, batch: Mapping[str, Any]) -> tuple[list[dict[str, np.ndarray]], list[str]]:
        """The observations of each row by key, and what it is told."""
        arrays = {}
        for key in self.model.observation_keys:
            if key not in batch:
                shown = ", ".join(k for k in batch if k.startswith("observation."))
                raise ValueError(f"the policy needs {key}, and is shown {shown or 'nothing'}")
            value = _pixels(batch[key]) if is_image(key) else batch[key]
            arrays[key] = value.detach().cpu().numpy()
        count = len(next(iter(arrays.values())))
        return [{k: v[i] for k, v in arrays.items()} for i in range(count)], _words(batch, count)


def words_of(features: Features, config: UlnaConfig, robot: str) -> Restated:
    """From a checkpoint's joints to what LeRobot's side calls and measures them in; nothing changes where
    they are not in radians."""
    joints = {k: features[k] for k in (STATE, ACTION) if k in features}
    units = {u for f in joints.values() for u in f.units}
    if "rad" not in units or units & {"deg", "%"} or not all(f.units for f in joints.values()):
        return Restated()
    files = calibration_files(config.calibration)
    return in_lerobots(joints, usual_units(joints, config.units), files, config.arm, robot)


def features_of(dataset: Mapping[str, Any], config: UlnaConfig) -> Features:
    """The features of a policy for a LeRobot dataset, as its `meta/info.json` describes them. Units that it
    does not state are `config.units`, of an SO-101 or Koch."""
    features: Features = {}
    for key, said in dataset.items():
        if key != ACTION and key not in (config.input_features or {}):
            continue
        shape = tuple(said["shape"])
        if said["dtype"] in ("image", "video"):
            features[key] = Feature(_hwc(shape), "uint8")
            if not key.startswith(f"{OBS_IMAGES}."):
                raise ValueError(f"pictures are called {OBS_IMAGES}.NAME, and the dataset has {key}")
            continue
        names = said.get("names") or ()
        names = tuple(n for v in names.values() for n in v) if isinstance(names, Mapping) else tuple(names)
        units = tuple((said.get("info") or {}).get("units") or ())
        fits = len(names) == shape[0]
        features[key] = Feature(shape, "float32", bare(names) if fits else (), units)
    unstated = {k: f for k, f in features.items() if k in (STATE, ACTION) and f.names and not f.units}
    if ACTION in unstated and usual_units(unstated, config.units) == config.units:
        stated = Statement(config.units, arm=config.arm).applied(unstated, "", convert=False)
        features |= stated.features(unstated)
    return features


def stats_of(said: Mapping[str, Mapping[str, Any]], features: Features) -> dict[str, Stats]:
    """Ulna's statistics of the vectors, from LeRobot's. ValueError where it has no quantiles."""
    stats = {}
    for key, f in features.items():
        if is_image(key):
            continue
        if missing := [n for n in ARRAYS if n not in said.get(key, {})]:
            raise ValueError(
                f"the dataset's statistics of {key} lack {missing[0]}: add them with "
                "`python -m lerobot.scripts.augment_dataset_quantile_stats`"
            )
        arrays = {n: np.asarray(said[key][n], np.float64).reshape(-1) for n in ARRAYS}
        size = np.maximum(np.abs(arrays["min"]), np.abs(arrays["max"]))
        count = int(np.asarray(said[key].get("count", 1)).reshape(-1)[0])
        stats[key] = Stats(**arrays, count=count, resolution=resolutions(f, size))
    return stats


def _hwc(shape: tuple[int, ...]) -> tuple[int, int, int]:
    height, width, channels = (*shape[1:], shape[0]) if shape[0] == 3 else shape
    return height, width, channels


def _pixels(image: Tensor) -> Tensor:
    """`(…, C, H, W)` float in 0..1, or uint8, as `(…, H, W, C)` uint8."""
    if image.dtype != torch.uint8:
        image = (image * 255).round().clamp(0, 255).to(torch.uint8)
    return image.movedim(-3, -1).contiguous()


def _words(batch: Mapping[str, Any], count: int) -> list[str]:
    words = batch.get(TASK) or [""] * count
    return [words] * count if isinstance(words, str) else [str(w) for w in words]
