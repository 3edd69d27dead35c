"""What a policy is trained on: one dataset or several, which episodes, how they count, what is held out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...datasets.episode import StoreError
from ...datasets.features import ACTION, STATE, Features, image_keys, is_frames, rename, state_keys, units_of
from ...datasets.normalise import STILL, Mode, still
from ...datasets.opened import open_dataset
from ...datasets.reading.align import Alignment
from ...datasets.reading.cache import Cache, auto_bytes
from ...datasets.reading.loader import WindowSource
from ...datasets.reading.mixture import Mixture, common_features, name_in, spec_in, window_weights
from ...datasets.reading.spec import Actions, Answer
from ...datasets.reading.weights import (
    ALPHA,
    BY_TICK,
    PROGRESS,
    correction_weights,
    episode_weights,
    weighted_indices,
)
from ...datasets.reading.windows import Windows, WindowSpec, batch_indices
from ...datasets.split import split_by_episode
from ...datasets.stats import Stats, vector_stats
from ...datasets.steps import Told, answers, told
from ...datasets.store import EpisodeStore
from ...datasets.units import require_alike, resolutions, unstated_keys
from ..conditions.backward_plan import BackwardPlan
from ..conditions.change import Change
from ..conditions.condition import features_for
from ..conditions.words import Words
from ..recipe import Recipe
from .error import TrainingError

UNSEEN = ("workers", "cache", "cache_bytes", "cache_dir")  # options that change no batch


@dataclass(frozen=True)
class DataOptions:
    episodes: tuple[int, ...] | None = None
    """Numbers to use, where there is only one dataset; None: all."""
    mix: tuple[float, ...] = ()
    """Share of each dataset in a batch; empty: by their ticks."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Key in a dataset → key to call it."""
    weights: str = "uniform"
    """How episodes count: a `Weighting` of `datasets.reading.weights`, or `progress:` and the folder of a
    progress critic: each window by the progress that it led to (`policies.progress.gained`)."""
    alpha: float = ALPHA
    """Temperature of the weighting by return."""
    validate: float = 0.0
    """Share of the episodes to hold out."""
    interrupted: bool = False
    """Use episodes that were cut off, too."""
    align: Alignment = "seen"
    """Which row of a stream belongs to a control tick, see `WindowSpec`."""
    actions: Actions = "sent"
    """Which actions are learned, see `WindowSpec`."""
    told: Told = "task"
    """What the policy is told to do, see `WindowSpec`."""
    tolerance_s: float | None = None
    """How old that row may be, see `WindowSpec`."""
    workers: int = 0
    """Processes that read and decode; 0: a thread."""
    cache: Cache = "auto"
    """Where decoded frames are kept, see `datasets.reading.cache`."""
    cache_bytes: int | None = None
    """How much memory `auto` may take; None: a quarter of what is free, see `datasets.reading.cache`."""
    cache_dir: str | None = None
    """Folder of the cache on disk."""


@dataclass(frozen=True)
class TrainingWindows:
    """What the open datasets are for one policy."""

    features: Features
    train: WindowSource
    """To train on, those of the datasets end to end."""
    validation: WindowSource | None
    """Of the episodes that are held out; None where none are."""
    cumulative: np.ndarray | None
    """Cumulative weights of the windows; None where all count alike."""
    identity: dict[str, Any]
    """What a resumed run must share."""
    notes: list[str]
    """Sentences that whoever trains should read."""

    def indices(self, batch_size: int, seed: int, step: int) -> np.ndarray:
        """The windows `(batch_size,)` of batch `step`."""
        if self.cumulative is None:
            return batch_indices(len(self.train), batch_size, seed, step)
        return weighted_indices(self.cumulative, batch_size, seed, step)

    def stats(self) -> dict[str, Stats]:
        """Of the vectors, over all episodes that are trained on, however they count."""
        keys = [k for k in self.features if k in state_keys(self.features) or k == ACTION]
        stats = {}
        for key in keys:
            rows = self.train.values(key)
            of_key = vector_stats(rows.reshape(len(rows), -1).astype(np.float64))
            size = np.maximum(np.abs(of_key.min), np.abs(of_key.max))
            stats[key] = replace(of_key, resolution=resolutions(self.features[key], size))
        return stats


def still_elements(features: Features, stats: Mapping[str, Stats], recipe: Recipe) -> list[str]:
    """A sentence for each vector of which elements never move: the policy cannot learn what they do."""
    sentences = []
    for key in (k for k in features if k in stats):
        mode: Mode = recipe.normalise_state
        if key == ACTION:
            mode = getattr(recipe.codec, "normalise", mode)
        f, resolution = features[key], stats[key].resolution
        if mode == "none" or resolution is None or not (at_rest := still(stats[key], mode)).any():
            continue
        names = f.names or tuple(f"element {i}" for i in range(len(at_rest)))
        units = f.units if len(f.units) == len(at_rest) else ("",) * len(at_rest)
        words = [
            f"{names[i]} (moves less than {STILL * resolution[i]:.2g}{units[i] and ' ' + units[i]})"
            for i in np.flatnonzero(at_rest)
        ]
        more = f" and {len(words) - 6} more" if len(words) > 6 else ""
        sentences.append(
            f"of {key} {', '.join(words[:6])}{more} stood still in training, and is not scaled to its own "
            "noise"
        )
    return sentences


def unstated(features: Features) -> list[str]:
    """A sentence where what moves an arm does not say its names or units."""
    some = {k: features[k] for k in (STATE, ACTION) if k in features}
    silent = [k for k, f in some.items() if not (f.names and units_of(f))]
    sentence = (
        f"the data do not state the names or units of {' and '.join(silent)}: no robot takes this policy "
        "before they are stated (ulna data units), and several datasets are taken to share theirs"
    )
    return [sentence] if silent else []


@dataclass(frozen=True)
class TrainingData:
    """Datasets that are open, and the episodes chosen of them. A recipe is made for `features`; `windows` are
    the episodes as its policy needs them."""

    paths: list[str]
    """The datasets' folders, as they were given."""
    stores: list[EpisodeStore]
    features: Features
    """The observations that are used, and the action."""
    keys: list[str] | None
    """The observations that were asked for; None: all that the datasets share."""
    options: DataOptions
    episodes: list[list[int]]
    """Numbers of the episodes to train on, for each store."""
    held_out: list[list[int]]
    """Numbers of the episodes to validate on, for each store."""
    notes: list[str]
    """Sentences that whoever trains should read."""

    def windows(self, spec: WindowSpec) -> TrainingWindows:
        """The windows of every episode. StoreError in one sentence where an episode cannot be cut so, or the
        weighting does not fit."""
        options, features = self.options, self.features
        targets = self._targets(spec.targets)
        if options.told != "task" and not spec.task:
            raise TrainingError(
                f"--told {options.told} is for policies that are told in words what to do, and this one is "
                "not: leave it out, or take a recipe with words"
            )
        room = most = auto_bytes() if options.cache_bytes is None else options.cache_bytes
        train: list[Windows] = []
        validation: list[Windows] = []
        for store, training, held_out in zip(self.stores, self.episodes, self.held_out, strict=True):
            of_store = spec_in(spec, options.rename, store.features)
            try:
                store_spec = replace(
                    of_store,
                    align=options.align,
                    tolerance_s=options.tolerance_s,
                    actions=options.actions,
                    told=options.told,
                )
            except ValueError as error:
                raise TrainingError(str(error)) from None
            read = Windows(store, store_spec, training, options.cache, room, options.cache_dir)
            room -= sum(n for key, n in read.image_bytes.items() if key not in read.decoded_anew)
            train.append(read)
            if held_out:
                validation.append(Windows(store, store_spec, held_out, "none"))
        if len(train) > 1:
            for key in unstated_keys(features):
                require_alike(
                    key,
                    {
                        str(s.path): w.values(name_in(key, options.rename, w.features))
                        for s, w in zip(self.stores, train, strict=True)
                        if key == ACTION or key in spec.keys
                    },
                )
        windows = _window_source(train, features | targets, options.rename)
        more = [windows.left_out_sentence(), _cache_sentence(train, most) if options.cache == "auto" else ""]
        weights_of_windows = window_weights(
            train, self._episode_weights(), options.mix or None, self._tick_weights(train)
        )
        identity = {
            "data": self.content(),
            "frames": len(windows),
            "options": batch_options(options),
            "observation": list(spec.keys),
            # labels are no part of an episode's content, and may have changed
            "weighting": _digest(weights_of_windows),
            "words": self._words(spec.answer) if spec.task else "",
        }
        return TrainingWindows(
            features,
            windows,
            _window_source(validation, features | targets, options.rename) if validation else None,
            None if weights_of_windows is None else np.cumsum(weights_of_windows),
            identity,
            [*self.notes, *unstated(features), *filter(None, more)],
        )

    def _targets(self, keys: Sequence[str]) -> Features:
        """What is learned beside the policy, and is no observation of it. TrainingError where a dataset has
        not got it, or in another shape."""
        found: Features = {}
        for key in keys:
            for store in self.stores:
                feature = store.features.get(name_in(key, self.options.rename, store.features))
                if feature is None:
                    raise TrainingError(
                        f"the encoder learns from {key}, which {store.path} has not: name the cameras that "
                        "have it (--encoder.of), or learn without it (--encoder.depth-weight 0, "
                        "--encoder.pose-weight 0)"
                    )
                if feature.shape != found.setdefault(key, feature).shape:
                    raise TrainingError(
                        f"the encoder learns from {key}, which is {found[key].shape} in "
                        f"{self.stores[0].path} and {feature.shape} in {store.path}"
                    )
        return found

    @property
    def tasks(self) -> list[str]:
        """All that a policy is told in the episodes that are used."""
        each = zip(self.stores, self.episodes, self.held_out, strict=True)
        episodes = [e for store, some, more in each for e in store.choose([*some, *more])]
        return sorted({words for e in episodes for words in told(e, self.options.told)})

    def answers(self, of: Told) -> list[str]:
        """All that a language model learns to write in the episodes to train on, see `WindowSpec.answer`;
        empty where none of them has the label."""
        each = zip(self.stores, self.episodes, strict=True)
        episodes = [e for store, numbers in each for e in store.choose(numbers)]
        return sorted({str(text) for e in episodes for text in np.unique(answers(e, of)) if text})

    def _words(self, answer: Answer) -> str:
        """A digest of the labels of the episodes to train on that say what the policy is told, and what it
        learns to write; "" without."""
        each = zip(self.stores, self.episodes, strict=True)
        of = {"phrases" if self.options.told == "task" else "steps"}
        of |= {"none": set(), "steps": {"steps"}, "task": {"phrases"}}[answer]
        episodes = [e for store, numbers in each for e in store.choose(numbers)]
        labels = [e.attrs.get(name) or [] for name in sorted(of) for e in episodes]
        return hashlib.sha256(json.dumps(labels).encode()).hexdigest() if any(labels) else ""

    def _episode_weights(self) -> list[Any]:
        """For each store the weights of its episodes to train on, on one scale for all; None where all count
        alike."""
        episodes = [
            s.episodes[i] for s, numbers in zip(self.stores, self.episodes, strict=True) for i in numbers
        ]
        weights = episode_weights(episodes, self.options.weights, self.options.alpha)
        ends = np.cumsum([len(numbers) for numbers in self.episodes])[:-1]
        return [None] * len(self.stores) if weights is None else np.split(weights, ends)

    def _tick_weights(self, train: Sequence[Windows]) -> list[np.ndarray] | None:
        """For each store the weights of its windows `(len,)`; None where they are those of their
        episodes."""
        if self.options.weights in BY_TICK:
            return correction_weights(train, self.options.weights)
        if not self.options.weights.startswith(PROGRESS):
            return None
        from ..progress import gained, load_progress, progress_at

        folder = self.options.weights.removeprefix(PROGRESS)
        critic = load_progress(folder)
        weights = [
            progress_at(critic, store, part, gained) for store, part in zip(self.stores, train, strict=True)
        ]
        if not sum(w.sum() for w in weights) > 0:
            raise StoreError(f"by {folder} no episode makes any progress: use another weighting")
        return weights

    def content(self) -> str:
        """A digest of the episodes to train on."""
        content = hashlib.sha256()
        for store, numbers in zip(self.stores, self.episodes, strict=True):
            for i in numbers:
                content.update(store.episodes[i].content.encode())
        return content.hexdigest()

    @property
    def counts(self) -> list[int]:
        """How many episodes of each dataset are trained on."""
        return [len(numbers) for numbers in self.episodes]

    def first(self, counts: Sequence[int]) -> TrainingData:
        """The same with the first `counts` episodes of each dataset only."""
        episodes = [numbers[:n] for numbers, n in zip(self.episodes, counts, strict=True)]
        return replace(self, episodes=episodes)

    def has_grown(self, counts: Sequence[int], content: str) -> bool:
        """Whether these are episodes of which `counts` had the digest `content`, and more."""
        more = len(counts) == len(self.counts) and sum(self.counts) > sum(counts)
        return more and self.first(counts).content() == content


def open_data(
    data: str | Path | Sequence[str | Path],
    keys: Sequence[str] | None = None,
    options: DataOptions | None = None,
) -> TrainingData:
    """Open one dataset, or several to mix, and choose the episodes to train on.

    keys: the observations to use, all that the datasets share by default. StoreError, FeatureMismatch or
    TrainingError in one sentence (or a list of differences) where the datasets do not fit."""
    options = options or DataOptions()
    paths = [data] if isinstance(data, str | Path) else list(data)
    stores = [open_dataset(d) for d in paths]
    if options.episodes is not None and len(stores) > 1:
        raise StoreError(
            "episodes can be chosen of one dataset, not of several: part them with `ulna data split`"
        )
    common = features_of(stores, options.rename, keys)
    features = policy_features(common, keys)
    everything = {k for s in stores for k in rename(s.features, options.rename, str(s.path))}
    notes: list[str] = []
    if (missing := sorted(everything - set(common))) and len(stores) > 1 and keys is None:
        notes.append(f"not all datasets have {', '.join(missing)}: left out (--observe names what to use)")
    episodes: list[list[int]] = []
    validation: list[list[int]] = []
    for store in stores:
        training, held_out = _episodes_to_use(store, options, notes), []
        if options.validate:
            usable = [store.episodes[i] for i in training]
            parts = split_by_episode(usable, [1 - options.validate, options.validate], seed=0)
            training, held_out = ([usable[j].index for j in part] for part in parts)
        episodes.append(training)
        validation.append(held_out)
    if not any(episodes):
        raise StoreError(
            "there is no episode to train on: those that were cut off are used with --interrupted"
        )
    names = [str(p) for p in paths]
    chosen = None if keys is None else list(keys)
    return TrainingData(names, stores, features, chosen, options, episodes, validation, notes)


def window_spec(recipe: Recipe, features: Features) -> WindowSpec:
    """The window of the data that the policy of `recipe` is trained on: with all that its conditions, its
    encoder and its codec need, for `caps_temporal` the window after it, and for a context with a memory as
    many in a row as its `chain` says, as far apart as decisions are, from where its `begin` says.
    TrainingError where two conditions do not go together."""
    told = {k for c in recipe.conditions for k in c.keys(features_for(c, recipe.conditions, features))}
    unseen = {k for c in recipe.conditions for k in c.hides(features)} - told
    keys = tuple(k for k in features if k != ACTION and k not in unseen)
    targets: tuple[str, ...] = getattr(recipe.encoder, "targets", lambda features: ())(features)
    of_codec = getattr(recipe.codec, "needs", lambda horizon: {})(recipe.horizon)
    needs = _union([*(c.needs() for c in recipe.conditions), of_codec])
    if (goal_keys := needs.get("goal_keys")) is not None:
        needs["goal_keys"] = goal_keys or tuple(k for k in keys if f"goal.{k}" in told)
    if recipe.training.words:
        needs["answer"] = recipe.training.words_of
    if recipe.training.caps_temporal and needs.setdefault("next_after", 1) != 1:
        raise TrainingError(
            f"caps_temporal looks one tick ahead, and a condition {needs['next_after']}: train with one of "
            "them"
        )
    if (chain := int(getattr(recipe.context, "chain", 1))) > 1:
        begin = getattr(recipe.context, "begin", "anywhere")
        needs |= {"chain": chain, "chain_stride": recipe.ticks_per_decision, "chain_begin": begin}
    return WindowSpec(recipe.n_obs_steps, recipe.horizon, recipe.n_past_actions, keys, targets, **needs)


def require_readable(recipe: Recipe, tasks: Iterable[str]) -> None:
    """ValueError in one sentence for an instruction that the policy of `recipe` could not be told."""
    for part in recipe.conditions:
        if isinstance(part, Words | Change | BackwardPlan):
            for task in tasks:
                part.split(task)


def _union(needs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fields of a WindowSpec that serve all: lists are joined, and an empty one means everything."""
    union: dict[str, Any] = {}
    for fields in needs:
        for name, value in fields.items():
            before = union.setdefault(name, value)
            if isinstance(value, tuple):
                union[name] = tuple(dict.fromkeys((*before, *value))) if before and value else ()
            elif before != value:
                raise TrainingError(
                    f"one condition needs windows with the {name} {before}, another with {value}: give them "
                    "the same, or train with one of them"
                )
    return union


def tensors(batch: Mapping[str, np.ndarray], device: Any) -> dict[str, Any]:
    """A batch of windows as the policy takes it: text as a list, that of a chain's first link, since an
    episode has one task."""
    cuda = torch.device(device).type == "cuda"

    def there(value: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(value)
        # from memory that does not move the copy goes on beside what is computed
        return tensor.pin_memory().to(device, non_blocking=True) if cuda else tensor.to(device)

    return {
        k: (v if v.ndim == 1 else v[:, 0]).tolist() if v.dtype.kind == "U" else there(v)
        for k, v in batch.items()
    }


def policy_features(features: Features, keys: Sequence[str] | None = None) -> Features:
    """The features a policy uses: the action and all observations, or those in `keys`."""
    observations = [*state_keys(features), *image_keys(features)]
    if keys is not None:
        if unknown := sorted(set(keys) - set(observations)):
            raise TrainingError(f"the data has no observation {unknown[0]}; it has {', '.join(observations)}")
        observations = [k for k in observations if k in keys]
    if ACTION not in features or not observations:
        raise TrainingError(f"training needs {ACTION} and an observation; the data has {', '.join(features)}")
    if len(shape := features[ACTION].shape) != 1:
        raise TrainingError(
            f"each row of {ACTION} has the shape {shape}, and a policy is trained on one action a row: "
            "import the data anew with --first-of-chunk"
        )
    if odd := [k for k in observations if not is_frames(k) and len(features[k].shape) != 1]:
        others = ",".join(k for k in observations if k not in odd)
        raise TrainingError(
            f"{odd[0]} has rows of {features[odd[0]].shape}, and a policy sees vectors and images: leave it "
            f"out with --observe {others or 'NAMES'}"
        )
    return {k: features[k] for k in (*observations, ACTION)}


def batch_options(options: DataOptions) -> dict[str, Any]:
    """Those of the options that decide what a batch holds, as JSON gives them back."""
    values = {k: v for k, v in asdict(options).items() if k not in UNSEEN}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def features_of(
    stores: Sequence[EpisodeStore], renames: Mapping[str, str], keys: Sequence[str] | None = None
) -> Features:
    """The features that several datasets have in common, renamed; of a single one all of them."""
    if unknown := [k for k in renames if not any(k in s.features for s in stores)]:
        raise StoreError(
            f"no dataset has a feature {unknown[0]} to rename; there is {', '.join(stores[0].features)}"
        )
    if len(stores) == 1 and not renames:
        return dict(stores[0].features)
    return common_features(stores, renames, keys)


def _digest(weights: np.ndarray | None) -> str:
    """Of the weights in single precision: in double, another machine's differ in the last bits. Empty for
    None."""
    return "" if weights is None else hashlib.sha256(weights.astype(np.float32).tobytes()).hexdigest()


def _window_source(parts: list[Windows], features: Features, renames: Mapping[str, str]) -> WindowSource:
    return parts[0] if len(parts) == 1 and not renames else Mixture(parts, features, renames)


def _cache_sentence(train: Sequence[Windows], most: int) -> str:
    """Which cameras did not fit into `most` bytes of memory, and what would hold them; "" where all did."""
    anew = dict.fromkeys(key for windows in train for key in windows.decoded_anew)
    if not anew:
        return ""
    needed = sum(n for windows in train for n in windows.image_bytes.values()) / (1 << 30)
    return (
        f"the images of {', '.join(anew)} are decoded anew whenever they are read: all of them take "
        f"{needed:.2g} GiB, and the cache in memory has {most / (1 << 30):.2g} GiB; --cache-gb "
        f"{math.ceil(100 * needed) / 100:g} holds them there, --cache disk on the disk"
    )


def _episodes_to_use(store: EpisodeStore, options: DataOptions, notes: list[str]) -> list[int]:
    """Those that the options name, else all that were not cut off; a note says how many are left out."""
    if options.episodes is not None:
        return [e.index for e in store.choose(options.episodes)]
    cut = [e.index for e in store.episodes if e.interrupted]
    if cut and not options.interrupted:
        notes.append(
            f"{len(cut)} of {len(store)} episodes of {store.path} were cut off and are left out "
            "(--interrupted uses them)"
        )
        return [e.index for e in store.episodes if not e.interrupted]
    return list(range(len(store)))
