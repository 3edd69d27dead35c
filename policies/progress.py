"""A progress critic: which steps of its task an episode has done, so far as is seen. A checkpoint of its own
kind.

model.safetensors   the weights
progress.json       its parts and sizes, the plans of the tasks, and how it was measured on held-out episodes
features.json       what it sees
stats.json          statistics behind the normalisers
hash.json           SHA-256 of the first four

As R²VLM: (answer_t, p_t) = f(task, clip_t, answer_{t-1}). An answer is the list of the task's steps with a
mark at each, done or pending, and p = done / all, a share of steps, not of time. Nothing but the answer is
carried from clip to clip, so it can be read, and a mark is taken back where what was done is undone.

Faithful: the recurrence over a structured answer, clips of a few frames, the share of steps. Not: the answer
is not written by a language model, its marks are asked for one by one (is this step done?), of a perceptron
over what the policies' own parts make of the clip and of the words; that may be a vision-language model
(`VisionLanguage`, `Instruction`, `ReadTokens`), which then reads the whole last answer, or small networks.
The list of steps comes from the data or from who asks; the critic revises marks, not words. Their last stage,
reinforcement over many rounds, is learning from its own answers here (`policies.learn.steps`).

Legend: B batch, T frames of a clip, K tokens of a frame, D width, N steps of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..datasets.features import Features, features_from_json, features_to_json, image_keys, require_same
from ..datasets.reading.windows import Windows, WindowSpec
from ..datasets.stats import Stats
from ..datasets.store import EpisodeStore
from .codec import NormaliseMode, input_normaliser
from .conditions.condition import ConditionPart
from .conditions.words import Words
from .contexts.context import Conditions, ContextPart
from .contexts.stack import Stack
from .encoders.vector import MLP, Encoder, EncoderPart
from .hashed import WEIGHTS, CheckpointError, read_json, require_finite, save_hashed, verify_hashed
from .learn.critic import ValueMLP
from .parts import recipe_from_json, recipe_to_json
from .request import TASK

HASHED = (WEIGHTS, "progress.json", "features.json", "stats.json")
MARKS = 3  # numbers that say what the last answer was, for each step


@dataclass(frozen=True)
class ProgressSpec:
    encoder: EncoderPart = Encoder(MLP(128, 2))
    """What sees the frames."""
    words: ConditionPart = Words()
    """What reads the words."""
    context: ContextPart = Stack()
    """What joins both."""
    tells: Literal["step", "answer"] = "step"
    """What is read for each mark: the words of its step; or the task, the last answer and the question."""
    frames: int = 4
    """Of a clip."""
    clip_s: float = 1.0
    """How long a clip is, s; its frames are evenly apart."""
    recurrent: bool = True
    """It is told its last answer; else each clip is judged by itself."""
    width: int = 128
    """Of the perceptron's hidden layers."""
    depth: int = 2
    """Its residual blocks."""
    normalise_state: NormaliseMode = "minmax"
    """How vectors that are observed are scaled."""

    def __post_init__(self) -> None:
        if self.frames < 1 or not self.clip_s > 0 or self.tells not in ("step", "answer"):
            raise ValueError("a clip has at least 1 frame and some time, and tells is step or answer")

    def stride(self, control_hz: float) -> int:
        """Control ticks from one frame to the next."""
        return max(1, round(self.clip_s / self.frames * control_hz))


@dataclass(frozen=True)
class Answer:
    """The steps of a task, and which of them are done."""

    steps: tuple[str, ...]
    done: tuple[bool, ...]

    @staticmethod
    def pending(steps: Sequence[str]) -> Answer:
        return Answer(tuple(steps), (False,) * len(steps))

    @property
    def p(self) -> float:
        return sum(self.done) / len(self.done)

    @property
    def next(self) -> str:
        """The first step that is pending; "" where none is."""
        return next((s for s, done in zip(self.steps, self.done, strict=True) if not done), "")

    def __str__(self) -> str:
        marked = zip(self.steps, self.done, strict=True)
        return "\n".join(f"{i}. {s}: {'done' if d else 'pending'}" for i, (s, d) in enumerate(marked, 1))


class ProgressCritic(nn.Module):
    """features: the observations that it sees. plans: the steps of each task that it knows, by its words."""

    def __init__(
        self,
        spec: ProgressSpec,
        features: Features,
        stats: Mapping[str, Stats],
        plans: Mapping[str, Sequence[str]],
    ) -> None:
        super().__init__()
        self.spec, self.features, self.stats = spec, dict(features), dict(stats)
        self.plans = {task: tuple(steps) for task, steps in plans.items()}
        self.vectors = tuple(k for k in features if k not in image_keys(features))
        self.normalisers = nn.ModuleList(
            input_normaliser(stats[k], spec.normalise_state) for k in self.vectors
        )
        self.encoder = spec.encoder.build(self.features)
        width: int = self.encoder.width  # type: ignore[assignment]
        self.words = spec.words.build(self.features, self.encoder, width)
        per_frame = getattr(self.encoder, "tokens_per_frame", 1)
        n_tokens = int(self.words.n_tokens)
        self.context_net = spec.context.build(width, per_frame, spec.frames, 1, n_tokens)
        self.context_net.use(self.encoder)
        seen = self.context_net.pooled_width + self.context_net.token_width + spec.frames * width
        self.net = ValueMLP(seen + MARKS, spec.width, spec.depth)
        self.measured: dict[str, Any] = {}
        self.content_hash = ""  # set by loading and saving

    def plan(self, task: str) -> tuple[str, ...]:
        """The steps of a task. ValueError for one that it does not know."""
        if task not in self.plans:
            known = "; ".join(list(self.plans)[:4]) + ("; ..." if len(self.plans) > 4 else "")
            raise ValueError(f"the progress critic knows no plan of {task!r}: it knows {known}")
        return self.plans[task]

    def see(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Clips `{key: (B, T, *shape)}` in their own units as `(B, T, K, D)`."""
        normal = dict(observation)
        for key, normaliser in zip(self.vectors, self.normalisers, strict=True):
            normal[key] = normaliser(observation[key])
        z = self.encoder(normal)
        return z[:, :, None] if z.ndim == 3 else z

    def logits(
        self, z_BTKD: Tensor, tasks: Sequence[str], plans: Sequence[Sequence[str]], done_BN: np.ndarray
    ) -> Tensor:
        """`(B, N)`: of each step's being done, after the clips that `see` saw and the answers `done_BN` bool
        before them. Whatever stands beyond the end of a shorter plan means nothing."""
        return self.mark(self.read(z_BTKD, tasks, plans, done_BN), plans, done_BN)

    def read(
        self, z_BTKD: Tensor, tasks: Sequence[str], plans: Sequence[Sequence[str]], done_BN: np.ndarray
    ) -> Tensor:
        """What is made of clip and words `(R, ...)`, for all steps of the plans, end to end. The last answers
        matter only where they are read (`ProgressSpec.tells`)."""
        done_BN = self._told(done_BN)
        different: dict[str, int] = {}  # few, and each is read once
        which = [
            different.setdefault(self.asked(task, plan, done, i), len(different))
            for task, plan, done in zip(tasks, plans, done_BN, strict=True)
            for i in range(len(plan))
        ]
        # by index_select: the gradients of an index in brackets are added up several times as slowly
        reads, row = torch.tensor(which, device=z_BTKD.device), _rows(plans).to(z_BTKD.device)
        tokens, mask = (x.index_select(0, reads) for x in self.words({TASK: list(different)}))
        told, seen = _mean(tokens, mask), z_BTKD.index_select(0, row)
        context = self.context_net(seen, Conditions(tokens, mask, told))
        every = torch.ones(context.tokens.shape[:2], dtype=torch.bool, device=z_BTKD.device)
        read = _mean(context.tokens, every if context.mask is None else context.mask)
        # a step is done where the words and a frame agree, which a sum of both learns far more slowly
        both = (seen.mean(2) * told[:, None]).flatten(1)
        return torch.cat([context.pooled, read, both], dim=-1)

    def mark(self, read_RW: Tensor, plans: Sequence[Sequence[str]], done_BN: np.ndarray) -> Tensor:
        """The logits `(B, N)`, of what was read and the last answers."""
        done_BN = self._told(done_BN)
        marks = torch.from_numpy(np.concatenate([_marks(p, d) for p, d in zip(plans, done_BN, strict=True)]))
        out = self.net(torch.cat([read_RW, marks.to(read_RW)], dim=-1))
        column = torch.tensor([i for plan in plans for i in range(len(plan))], device=out.device)
        return out.new_zeros(done_BN.shape).index_put((_rows(plans).to(out.device), column), out)

    def _told(self, done_BN: np.ndarray) -> np.ndarray:
        return done_BN if self.spec.recurrent else np.zeros_like(done_BN)

    def asked(self, task: str, plan: Sequence[str], done: np.ndarray, i: int) -> str:
        """What it reads to mark step i, after the answer `done` `(N,)` bool."""
        if self.spec.tells == "step":
            return plan[i]
        answer = Answer(tuple(plan), tuple(map(bool, done[: len(plan)])))
        return f"Task: {task}\nSo far:\n{answer}\nIs step {i + 1} done now, {plan[i]}?"

    @torch.no_grad()
    def decide(
        self,
        observation: Mapping[str, np.ndarray],
        tasks: Sequence[str],
        plans: Sequence[Sequence[str]],
        done_BN: np.ndarray,
    ) -> np.ndarray:
        """The marks `(B, N)` bool after clips `{key: (B, T, *shape)}`."""
        device = next(self.parameters()).device
        seen = self.see({k: torch.from_numpy(observation[k]).to(device) for k in self.features})
        within = np.arange(done_BN.shape[1]) < np.array([[len(p)] for p in plans])
        return (self.logits(seen, tasks, plans, done_BN) > 0).cpu().numpy() & within

    def revise(self, clip: Mapping[str, np.ndarray], task: str, answer: Answer) -> Answer:
        """The answer after a clip `{key: (T, *shape)}`."""
        one = {k: np.asarray(clip[k], f.dtype)[None] for k, f in self.features.items()}
        (done,) = self.decide(one, [task], [answer.steps], np.array([answer.done]))
        return Answer(answer.steps, tuple(map(bool, done)))

    def require_robot(self, features: Features) -> None:
        """FeatureMismatch, both sides shown, where a robot lacks what it sees; pictures may have any
        size."""
        of_images = {k: features.get(k, f) for k, f in self.features.items() if k not in self.vectors}
        wanted = {**{k: self.features[k] for k in self.vectors}, **of_images}
        require_same(features, wanted, "the robot", "the progress critic")


def _marks(plan: Sequence[str], done: np.ndarray) -> np.ndarray:
    """Of the last answer, what matters to each step `(n, MARKS)`: its mark, whether it is not its turn yet,
    and how much is done. Nothing tells the order of different steps, which may be another than the plan's."""
    done = done[: len(plan)]
    waits = (_before(tuple(plan)) & ~done).any(1)
    return np.stack([2.0 * done - 1, 2.0 * waits - 1, np.full(len(plan), 2 * done.mean() - 1)], 1)


@lru_cache(maxsize=1024)
def _before(plan: tuple[str, ...]) -> np.ndarray:
    """`(n, n)` bool: whether step j must be done before step i can be: i has the words of a step before it,
    which j is, or comes after (the second visit waits for the first, and for what lies between)."""
    n = len(plan)
    return np.array([[j < i and plan[i] in plan[: j + 1] for j in range(n)] for i in range(n)])


def _rows(plans: Sequence[Sequence[str]]) -> Tensor:
    """`(R,)`: whose plan each step is of, all plans end to end."""
    return torch.arange(len(plans)).repeat_interleave(torch.tensor([len(p) for p in plans]))


def _mean(tokens_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    share = mask_BS.to(tokens_BSD.dtype) / mask_BS.sum(1, keepdim=True).clamp(min=1)
    return (tokens_BSD * share[..., None]).sum(1)


def clip_ticks(clip: int, length: int, frames: int, stride: int) -> np.ndarray:
    """The control ticks `(T,)` of the frames of a clip, of an episode of `length` ticks, which its last one
    fills up."""
    return np.minimum((clip * frames + np.arange(frames)) * stride, length - 1)


def progress_of(
    critic: ProgressCritic,
    store: EpisodeStore,
    episodes: Sequence[int],
    told: Sequence[tuple[str, Sequence[str]]] | None = None,
    batch: int = 64,
) -> list[np.ndarray]:
    """p at every control tick of each of `episodes`, `(length,)` float64: that of the last clip that was over
    by then, 0 before the first. told: task and plan of each; by default the episode's task, as the critic
    knows it. FeatureMismatch or ValueError: the critic sees, or knows, something else."""
    critic.require_robot(store.features)
    windows = Windows(store, WindowSpec(1, 1, 0, tuple(critic.features)), episodes, cache="none")
    stride, frames = critic.spec.stride(store.control_hz), critic.spec.frames
    length = np.array([e.length for e in windows.episodes])
    begin = np.cumsum(length) - length
    told = told or [(e.task, critic.plan(e.task)) for e in windows.episodes]
    progress = [np.zeros(n) for n in length]
    done = np.zeros((len(length), max((len(plan) for _, plan in told), default=0)), bool)
    for clip in range(-(-int(length.max(initial=0)) // (stride * frames))):
        live = np.flatnonzero(length > clip * frames * stride)
        for some in (live[i : i + batch] for i in range(0, len(live), batch)):
            ticks = np.stack([clip_ticks(clip, int(length[e]), frames, stride) for e in some])
            seen = windows.observations(begin[some, None] + ticks)
            tasks, plans = zip(*(told[e] for e in some), strict=True)
            done[some] = critic.decide(seen, tasks, plans, done[some])
            for e, last in zip(some, ticks[:, -1], strict=True):
                progress[e][last:] = done[e].sum() / len(told[e][1])
    return progress


def progress_at(
    critic: ProgressCritic,
    store: EpisodeStore,
    windows: Windows,
    of: Callable[[np.ndarray], np.ndarray] = lambda progress: progress,
) -> np.ndarray:
    """`progress_of` the episodes of `windows` of a store, at the tick of each, `(len,)`. of: what of an
    episode's progress `(T,)` is wanted."""
    each = [of(p) for p in progress_of(critic, store, [e.index for e in windows.episodes])]
    length = np.array([len(p) for p in each], np.int64)
    return np.concatenate([*each, np.zeros(0)])[(np.cumsum(length) - length)[windows.episode] + windows.tick]


def gained(progress: np.ndarray) -> np.ndarray:
    """Of each tick of an episode, how much progress `(T,)` it led to: the next gain beyond the most that
    there was so far, as far as that is the episode's; 0 where none came."""
    best = np.maximum.accumulate(progress)
    at = np.flatnonzero(np.diff(best) > 0) + 1  # ticks at which there was more than ever
    after = np.searchsorted(at, np.arange(len(best)), side="right")
    steps = np.append(best[at] - best[at - 1], 0.0)
    return steps[after]


def save_progress(folder: str | Path, critic: ProgressCritic, about: Mapping[str, Any]) -> str:
    """Write the checkpoint and return its content hash; an older one is replaced. about: JSON, what else is
    to be noted."""
    spec = {f.name: recipe_to_json(getattr(critic.spec, f.name)) for f in fields(critic.spec)}
    documents = {
        "progress.json": {
            "kind": "progress",
            "spec": spec,
            "plans": {task: list(steps) for task, steps in critic.plans.items()},
            "measured": critic.measured,
            **about,
        },
        "features.json": features_to_json(critic.features),
        "stats.json": {k: s.to_json() for k, s in critic.stats.items()},
    }
    critic.content_hash = save_hashed(Path(folder), critic.state_dict(), documents, HASHED)
    return critic.content_hash


def load_progress(folder: str | Path, device: str = "cpu") -> ProgressCritic:
    """The critic, in evaluation mode. CheckpointError in one sentence: the folder holds none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no folder {folder} of a progress critic: learn one by `ulna progress`"
        )
    content_hash = verify_hashed(folder, "progress critic", HASHED)
    try:
        document = read_json(folder / "progress.json")
        spec = ProgressSpec(**{k: recipe_from_json(v) for k, v in document["spec"].items()})
        features = features_from_json(read_json(folder / "features.json"))
        stats = {k: Stats.from_json(v) for k, v in read_json(folder / "stats.json").items()}
        critic = ProgressCritic(spec, features, stats, document["plans"])
        critic.load_state_dict(load_file(folder / WEIGHTS))
        critic.measured = dict(document["measured"])
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder} holds a progress critic that this version cannot load: {why}"
        ) from error
    require_finite(folder, critic.state_dict())
    critic.content_hash = content_hash
    return critic.eval().requires_grad_(False).to(device)
