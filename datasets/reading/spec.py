"""What a window holds: observations and actions, and what single methods need besides.

Legend: B batch, T = n_obs_steps, H = horizon, F = len(future), P = prompts, L = prompt_length, K = chain,
A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..steps import Told
from ..uvd import Decompose
from .align import Alignment

Goal = Literal["none", "last", "future", "subgoal"]
Actions = Literal["sent", "requested"]
Begin = Literal["anywhere", "episode"]
Answer = Literal["none", "steps", "task"]


@dataclass(frozen=True)
class WindowSpec:
    """Observations t-n_obs_steps+1 … t of `keys`; actions t-n_past_actions … t-n_past_actions+horizon-1.
    `targets`, and all that comes after `tolerance_s`, is off by default and then leaves no trace in a batch.

    Raises ValueError where a number is out of its range."""

    n_obs_steps: int
    """Observations of a window, the current one included."""
    horizon: int
    """Actions of a window, past ones included."""
    n_past_actions: int = 0
    """Actions before the current tick."""
    keys: tuple[str, ...] = ()
    """The observations."""
    targets: tuple[str, ...] = ()
    """What training learns from beside them and no policy sees: `target.<key>` `(B, T, *shape)` at the ticks
    of the observations. Depth is float32 in metres then, 0 where it has no reading. Ticks for which one of
    them has no row are left out, too."""
    align: Alignment = "seen"
    """Which row of a stream of another rate belongs to a tick: the newest that was received by then ("seen",
    what a policy will have), the one captured nearest, or for vectors a straight line between two."""
    tolerance_s: float | None = None
    """How old that row may be; None: two periods of the slower of stream and loop, plus the delay of the
    stream from capture to receipt."""
    actions: Actions = "sent"
    """Those that were sent to the arms, or those that were asked for, before a safety filter slowed them. A
    policy that passes the same filter learns what whoever asked did only from the latter: it is slowed once,
    as they were, not twice."""
    task: bool = False
    """`task` `(B,)` unicode: what the policy is told to do, see `told`."""
    told: Told = "task"
    """The episode's task, one of its wordings, drawn uniformly ("task"); or the first of its steps that is
    not done at t ("steps", see `datasets.steps`), where each window is told its own."""
    answer: Answer = "none"
    """`answer` `(B,)` unicode: what a language model learns to write of the window: the first of the
    episode's steps that is not done at t ("steps"), or its task in the words that it was recorded with
    ("task"). Empty where the episode has no such label, `steps` or `phrases`: there is then nothing to write
    that is not told."""
    next_after: int = 0
    """Ticks n to the next window, 0: none. For temporal differences over chunks and for models of the world:
    `next.<key>` `(B, T, *shape)` at tick t+n or the episode's last, `next.ticks` `(B,)` int64 how far ahead
    that is, `reward` `(B, n)` float32 of the ticks t … t+n-1, 0 beyond the end, and `alive` `(B,)` float32.

    alive is 0 where one of those n ticks was the last of an episode that succeeded: it terminated, and no
    value follows its reward. One that was cut off or ran out of time goes on beyond its record: alive stays 1
    and `next` is its last window, next.ticks < n ticks ahead (0 at the last itself). Its return is the sum of
    the first next.ticks rewards and the value of `next`, discounted by next.ticks. The reward is the stream
    `next.reward` of the store, else 1 at the last tick of an episode labelled a success and 0 elsewhere."""
    goal: Goal = "none"
    """`goal.<key>` `(B, *shape)`, the observation at the episode's last tick, or for hindsight relabelling
    (Andrychowicz et al., arXiv:1707.01495) at one drawn uniformly from those after t ("future"; of the last
    tick, itself), or at the next subgoal, see `decompose` ("subgoal"), and `goal.ticks` `(B,)` int64, how far
    ahead that is. The links of a chain have one goal in common where it is drawn: from the ticks after the
    last of them."""
    goal_keys: tuple[str, ...] = ()
    """What `goal` holds; `keys` when empty. Ticks for which one of them has no row are left out, too."""
    decompose: Decompose = Decompose()
    """How subgoals are found in what the goal holds, its vectors as they are, joined."""
    start: bool = False
    """With a goal: `start.<key>` `(B, *shape)` of what the goal holds, at the episode's first tick."""
    subgoals: int = 0
    """`subgoal.<key>` `(B, n, *shape)`: what is observed at the episode's last tick, then each time half as
    far ahead, rounded down; 0: none."""
    discounted_return: float | None = None
    """Discount γ of a tick, above 0 and up to 1: `return` `(B, 1)` float32, the rewards r of this tick and of
    those to come in its episode, Σ γ^i r_i, where i is 0 now; None: no returns. Rewards are as those of
    next_after."""
    earlier: int = 0
    """`earlier.<key>` `(B, T, *shape)`: the observations as the window of some ticks before t had them, and
    `earlier.ticks` `(B,)` int64, how many: drawn uniformly from earlier_from to this, and never more than the
    episode has before t; 0: none. `earlier.mask` `(B,)` bool is False where it has fewer than earlier_from
    before t."""
    earlier_from: int = 0
    """The fewest of these ticks, up to earlier."""
    future: tuple[int, ...] = ()
    """Ticks ahead: `future.<key>` `(B, F, *shape)`, the observations at these, and `future.mask` `(B, F)`
    bool, False beyond the episode's end, where its last one repeats."""
    prompts: int = 0
    """Demonstrations in context (ICRT, arXiv:2408.15980): `prompt.<key>` `(B, P, L, *shape)`,
    `prompt.action` `(B, P, L, A)`, `prompt.mask` `(B, P, L)` bool. Each is a whole episode of the same task
    and dataset, drawn at random: the window's own only where there is no other, none twice before each was
    drawn once."""
    prompt_length: int = 0
    """Ticks of a prompt: a longer episode is thinned evenly, first and last tick included; a shorter one is
    padded with its last tick, where the mask is False."""
    chain: int = 1
    """Windows in a row for memory that is carried on. With more than one every key of a batch has a second
    axis `(B, K, ...)`: the windows at ticks t, t+chain_stride, … (see `chain_begin`). Links beyond the
    episode's end repeat its last window with a `mask` all False; so is that of a link at a tick that is left
    out. `fresh` `(B, K)` bool is True where the memory must be empty: at the first link, wherever in the
    episode the chain begins.
    `index` `(B, K)` is the window of each link, or the last one before it that is not left out."""
    chain_stride: int = 1
    """Ticks from one link of a chain to the next."""
    chain_begin: Begin = "anywhere"
    """Where a chain begins: at the window's tick t, or at the first ticks of its episode (episode), as a
    memory does when it acts: the chain of tick t then begins at the one of the first chain_stride ticks from
    which its strides lead to t."""

    def __post_init__(self) -> None:
        at_least = {"next_after": 0, "prompts": 0, "prompt_length": 0, "subgoals": 0, "earlier_from": 0}
        at_least |= {"chain": 1, "chain_stride": 1, "earlier": self.earlier_from}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is at least {least}, not {getattr(self, name)}")
        if self.actions not in ("sent", "requested"):
            raise ValueError(f"actions are sent or requested, not {self.actions!r}")
        if self.actions == "requested" and (self.n_past_actions or self.prompts):
            raise ValueError(
                "a policy that sees actions of the past is told those that were sent, and learns from them: "
                "leave out --actions requested, or take a recipe that sees none"
            )
        if self.told not in ("task", "steps"):
            raise ValueError(f"a policy is told its task or steps, not {self.told!r}")
        if self.told == "steps" and self.chain > 1:
            raise ValueError(
                "a memory is learned on windows in a row, which are told one instruction: leave out --told "
                "steps, or take a recipe without a memory"
            )
        if self.answer not in ("none", "steps", "task"):
            raise ValueError(f"what is written is steps or the task, not {self.answer!r}")
        if self.answer == self.told == "steps":
            raise ValueError(
                "a policy that is told the step under way learns nothing by writing it: leave out --told "
                "steps, or have it write the task, --training.words-of task"
            )
        if self.answer != "none" and self.chain > 1:
            raise ValueError(
                "a memory is learned on windows in a row, and each would have words of its own: leave out "
                "training.words, or take a recipe without a memory"
            )
        if self.prompts and not self.prompt_length:
            raise ValueError("prompts need a prompt_length of at least 1 tick, not 0")
        if early := [ticks for ticks in self.future if ticks < 0]:
            raise ValueError(f"future lies ahead: give it in ticks of at least 0, not {early[0]}")
        if self.chain_begin not in ("anywhere", "episode"):
            raise ValueError(f"a chain begins anywhere or with its episode, not {self.chain_begin!r}")
        if self.goal not in ("none", "last", "future", "subgoal"):
            raise ValueError(f"goal is none, last, future or subgoal, not {self.goal!r}")
        if self.discounted_return is not None and not 0 < self.discounted_return <= 1:
            raise ValueError(f"a return's discount lies above 0 and up to 1, not {self.discounted_return}")
