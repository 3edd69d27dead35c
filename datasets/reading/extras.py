"""What a window holds besides its observations and actions: task, next window, goal, earlier window, future,
prompts. See spec.py for their meaning.

Legend: R = B * K rows, the K links of each of B chains one after another; n = next_after; else as in
spec.py. Ticks are counted over all episodes end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..episode import Episode, StoreError, require_finite
from ..features import ACTION, REWARD, is_frames
from ..steps import answers, under_way, wordings
from ..uvd import embedded, next_subgoals
from .spec import WindowSpec

TARGET = "target."
# of keys that hold a feature
PREFIXES = ("next.", "goal.", "start.", "subgoal.", "earlier.", "future.", "prompt.", TARGET)
PLAIN = (  # keys that hold none
    "task",
    "answer",
    "reward",
    "alive",
    "next.ticks",
    "goal.ticks",
    "earlier.ticks",
    "earlier.mask",
    "future.mask",
    "prompt.mask",
    "fresh",
    "return",
)
Batch = dict[str, np.ndarray]
Read = Callable[[str, np.ndarray], np.ndarray]  # a key at ticks `(...)`, as `(..., *shape)`


@dataclass(frozen=True)
class Rows:
    """Where the rows of a batch stand, each field `(R,)` int64."""

    tick: np.ndarray
    """The tick; beyond the episode's end for a link of a chain that lies there."""
    first: np.ndarray
    """The first tick of its episode."""
    last: np.ndarray
    """The last tick of its episode."""
    episode: np.ndarray
    """The episode's place among those of the windows."""

    @property
    def current(self) -> np.ndarray:
        return np.minimum(self.tick, self.last)


def window_ticks(ticks: np.ndarray, first: np.ndarray, n_obs_steps: int) -> np.ndarray:
    """The ticks `(R, T)` of the observations up to each of `ticks` `(R,)`; none before `first` `(R,)`."""
    return np.maximum(ticks[:, None] + np.arange(1 - n_obs_steps, 1), first[:, None])


class Extras:
    """has_rewards: whether the episodes have the stream `next.reward`. Raises StoreError where a reward is
    not finite or not one number a tick."""

    def __init__(self, spec: WindowSpec, episodes: Sequence[Episode], has_rewards: bool) -> None:
        self.spec = spec
        self._lengths = np.array([e.length for e in episodes], np.int64)
        self._begins = np.cumsum(self._lengths) - self._lengths
        self._tasks = np.array([e.task for e in episodes], np.str_)
        self._next_subgoal: np.ndarray | None = None  # of every tick, once it is asked for
        self._steps: np.ndarray | None = None
        if spec.task and spec.told == "steps":
            self._steps = np.concatenate([np.zeros(0, "U1"), *map(under_way, episodes)])
        elif spec.task:
            named = [wordings(e) for e in episodes]
            self._n_wordings = np.array([len(n) for n in named], np.int64)
            self._first_wording = np.cumsum(self._n_wordings) - self._n_wordings
            self._wordings = np.array([w for n in named for w in n], np.str_)
        self._answers: np.ndarray | None = None
        if spec.answer != "none":
            self._answers = np.concatenate([np.zeros(0, "U1"), *(answers(e, spec.answer) for e in episodes)])
        self._succeeded = np.array([e.attrs.get("success") is True for e in episodes], bool)
        if spec.next_after or spec.discounted_return is not None:
            rewards = [stored_reward(e) if has_rewards else success_reward(e) for e in episodes]
            self._reward = np.concatenate(rewards) if rewards else np.zeros(0, np.float32)
            if (discount := spec.discounted_return) is not None:
                returns = [discounted(r, discount) for r in rewards]
                self._return = np.concatenate(returns) if returns else self._reward
        if spec.prompts:
            filled = self._lengths > 0
            self._by_task = {t: np.flatnonzero((self._tasks == t) & filled) for t in np.unique(self._tasks)}

    def batch(
        self, read: Read, keys: Sequence[str], goal_keys: Sequence[str], rows: Rows, rng: np.random.Generator
    ) -> Batch:
        """What the spec asks for, a row of each for all R. Draws depend on rows and rng, not on the keys."""
        s, out = self.spec, {}
        if s.next_after:
            out |= self._next(read, keys, rows)
        if s.goal != "none":
            ticks = (
                self._subgoals(read, goal_keys, rows) if s.goal == "subgoal" else self._goal_ticks(rows, rng)
            )
            out |= {f"goal.{k}": read(k, ticks) for k in goal_keys}
            out["goal.ticks"] = ticks - rows.current
            if s.start:
                out |= {f"start.{k}": read(k, rows.first) for k in goal_keys}
        if s.subgoals:
            ahead = [rows.last - rows.current]
            for _ in range(s.subgoals - 1):
                ahead.append(ahead[-1] // 2)
            ticks = rows.current[:, None] + np.stack(ahead, axis=1)
            out |= {f"subgoal.{k}": read(k, ticks) for k in keys}
        if s.discounted_return is not None:
            out["return"] = self._return[rows.current][:, None]
        if s.future:
            ahead = rows.tick[:, None] + np.array(s.future, np.int64)
            ticks = np.minimum(ahead, rows.last[:, None])
            out |= {f"future.{k}": read(k, ticks) for k in keys}
            out["future.mask"] = ahead <= rows.last[:, None]
        if s.prompts:
            out |= self._prompts(read, keys, rows, rng)
        if s.earlier:
            out |= self._earlier(read, keys, rows, rng)
        if s.chain > 1:
            out["fresh"] = np.arange(len(rows.tick)) % s.chain == 0
        if s.task:  # last: what the other draws are does not depend on it
            out["task"] = self._words(rows, rng)
        if self._answers is not None:
            out["answer"] = self._answers[rows.current]
        return out

    def _words(self, rows: Rows, rng: np.random.Generator) -> np.ndarray:
        if self._steps is not None:
            return self._steps[rows.current]
        n = self._n_wordings[rows.episode]
        if not (n > 1).any():
            return self._tasks[rows.episode]
        k = self.spec.chain
        drawn = np.repeat(rng.random(len(n) // k), k)  # a chain is told one
        return self._wordings[self._first_wording[rows.episode] + (drawn * n).astype(np.int64)]

    def _next(self, read: Read, keys: Sequence[str], rows: Rows) -> Batch:
        n = self.spec.next_after
        target = np.minimum(rows.tick + n, rows.last)
        observed_ticks = window_ticks(target, rows.first, self.spec.n_obs_steps)
        reward_ticks = rows.tick[:, None] + np.arange(n)
        rewards = self._reward[np.minimum(reward_ticks, rows.last[:, None])]
        terminated = self._succeeded[rows.episode] & (rows.tick + n > rows.last)
        return {
            **{f"next.{k}": read(k, observed_ticks) for k in keys},
            "next.ticks": target - rows.current,
            "reward": np.where(reward_ticks <= rows.last[:, None], rewards, np.float32(0)),
            "alive": 1 - terminated.astype(np.float32),
        }

    def _earlier(self, read: Read, keys: Sequence[str], rows: Rows, rng: np.random.Generator) -> Batch:
        s, passed = self.spec, rows.current - rows.first
        most = np.minimum(s.earlier, passed)
        ago = rng.integers(np.minimum(s.earlier_from, most), most, endpoint=True)
        ticks = window_ticks(rows.current - ago, rows.first, s.n_obs_steps)
        return {
            **{f"earlier.{k}": read(k, ticks) for k in keys},
            "earlier.ticks": ago,
            "earlier.mask": passed >= s.earlier_from,
        }

    def _subgoals(self, read: Read, goal_keys: Sequence[str], rows: Rows) -> np.ndarray:
        if self._next_subgoal is None:
            vectors = [k for k in goal_keys if not is_frames(k)]
            if not vectors:
                raise StoreError("subgoals are found in vectors, and the goal has none: name some")
            each = []
            for first, length in zip(self._begins, self._lengths, strict=True):
                seen = {k: read(k, np.arange(first, first + length)) for k in vectors}
                each.append(first + next_subgoals(embedded(seen, 1), self.spec.decompose))
            self._next_subgoal = np.concatenate(each)
        return self._next_subgoal[rows.current]

    def _goal_ticks(self, rows: Rows, rng: np.random.Generator) -> np.ndarray:
        if self.spec.goal == "last":
            return rows.last
        k = self.spec.chain
        last, end_of_chain = rows.last[k - 1 :: k], rows.current[k - 1 :: k]
        ahead = rng.integers(1, np.maximum(last - end_of_chain, 1), endpoint=True)
        return np.repeat(np.minimum(end_of_chain + ahead, last), k)

    def _prompts(self, read: Read, keys: Sequence[str], rows: Rows, rng: np.random.Generator) -> Batch:
        k = self.spec.chain
        episodes = np.stack([self._others(e, rng) for e in rows.episode[::k]])  # (B, P)
        return {key: np.repeat(value, k, axis=0) for key, value in self.shown(read, keys, episodes).items()}

    def shown(self, read: Read, keys: Sequence[str], episodes: np.ndarray) -> Batch:
        """Of `episodes` `(...)`, by their places among those of the windows, what a prompt holds: `(..., L,
        *shape)` by key."""
        length = self.spec.prompt_length
        lengths = self._lengths[episodes][..., None]
        step = np.where(lengths > length, (lengths - 1) / max(length - 1, 1), 1)
        within = np.minimum(np.rint(step * np.arange(length)).astype(np.int64), lengths - 1)
        ticks = self._begins[episodes][..., None] + within  # (..., L)
        prompts = {f"prompt.{key}": read(key, ticks) for key in dict.fromkeys((*keys, ACTION))}
        prompts["prompt.mask"] = np.arange(length) < lengths
        return prompts

    def _others(self, episode: int, rng: np.random.Generator) -> np.ndarray:
        """Episodes `(P,)` of the same task."""
        alike = self._by_task[self._tasks[episode]]
        others = alike[alike != episode] if len(alike) > 1 else alike
        return np.resize(rng.permutation(others), self.spec.prompts)


def stored_reward(e: Episode) -> np.ndarray:
    """The stream `next.reward` `(N,)` float32, one number for each of N ticks."""
    values = e.read(REWARD)
    if values.size != e.length or len(values) != e.length:
        raise StoreError(
            f"episode {e.index}: {REWARD} has the shape {values.shape}, but a reward is one number for each "
            f"of {e.length} ticks"
        )
    require_finite(f"episode {e.index}", REWARD, values)
    return values.reshape(-1).astype(np.float32)


def success_reward(e: Episode) -> np.ndarray:
    """`(N,)` float32: 1 at the last of N ticks of an episode labelled a success, 0 elsewhere."""
    reward = np.zeros(e.length, np.float32)
    if e.attrs.get("success") is True:
        reward[-1:] = 1
    return reward


def discounted(reward: np.ndarray, discount: float) -> np.ndarray:
    """Of each tick the rewards from it on, each discounted by the ticks until then: `(N,)` float32."""
    returns = np.zeros(len(reward) + 1)
    for t in range(len(reward) - 1, -1, -1):
        returns[t] = reward[t] + discount * returns[t + 1]
    return returns[:-1].astype(np.float32)
