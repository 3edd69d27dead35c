"""What a policy is asked for, beside what it sees: an instruction, a goal, a label, a prompt. Each has a file
of its own beside this one.

Legend: B batch, K tokens of the condition, D width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from ...datasets.features import Feature, Features
from ...datasets.uvd import Decompose
from ..contexts.context import Reference
from ..request import TASK
from ..serving.protocol import BadRequest

TEXT = "str"  # dtype of what is said in words
RETURN = "return"  # key of the return that is asked for, `(1,)`
PREFIXES = ("goal.", "start.", "prompt.", "next.", "subgoal.", "earlier.", "future.")


class ConditionNet(nn.Module):
    """What a condition part builds: called with the observations of B rows, and with tasks, goals, labels and
    prompts, it gives tokens `(B, K, D)` and their mask `(B, K)` bool; a row with no token counts as not told.
    Vectors come normalised, those of goals, labels and prompts, too; images as they are; tasks as a list of
    text. BadRequest, a ValueError, says in one sentence what it cannot be told."""

    n_tokens: int
    """K."""
    learns_from_future: bool = False
    """In training it is called with the rest of a batch of windows besides, vectors of observations
    normalised."""

    memory_width: int = 0
    """Last dimension M of what it carries from one decision of an episode to the next; 0: nothing."""

    def forward(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor]:  # pragma: no cover
        raise NotImplementedError

    def carry(
        self, observation: Mapping[str, Any], memory: Tensor | None, ticks: int, seed: Any, drop: bool
    ) -> tuple[dict[str, Any], Tensor | None]:
        """Of a condition with a memory: (what it is to be called with besides, the memory `(B, M)` for the
        next decision, which is `ticks` control ticks later).

        observation: all that is given, in its own units, with the rest of a batch of windows in training.
        memory: None at an episode's first decision. seed: of the decision's draws, one or B; None: torch's
        own are drawn. drop: it is not told."""
        raise NotImplementedError

    def reference(self, observation: Mapping[str, Any]) -> Reference | None:
        """What another policy would do; None: it knows of none. observation: as it is called with."""
        return None

    def use(self, policy: Any) -> None:
        """Called once, with the policy that the part's `kept` describes, where it has one."""

    def task(self, observation: Mapping[str, Any]) -> Tensor | None:
        """`(B,)` int, which of the tasks that it numbers each row is of, 0: none of them; None: it numbers
        none. observation: as it is called with."""
        return None

    def losses(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the condition adds to the training's loss, scalars by name, weighted. observation: as it is
        called with, and the rest of a batch of windows, vectors of observations normalised."""
        return {}


class ConditionPart(Protocol):
    """A frozen dataclass: how one condition is read from data and from requests. With the attribute
    `optional`, True, a request may leave its keys out: the network then finds NaN in the place of vectors,
    and a task without words. With the attribute `kept`, a `slow.Kept`, it asks that policy."""

    @property
    def drop(self) -> float:
        """Share of the training rows that are not told, 0 to 1, so that the policy can also be asked without
        (classifier-free guidance)."""
        ...

    def needs(self) -> dict[str, Any]:
        """Fields of `datasets.reading.windows.WindowSpec` that training needs for it."""
        ...

    def keys(self, features: Features) -> tuple[str, ...]:
        """Keys that a request must have for it, such as `task` or `goal.observation.state`."""
        ...

    def hides(self, features: Features) -> tuple[str, ...]:
        """Observations that only the condition sees, not the encoder, such as a label."""
        ...

    def build(self, features: Features, encoder: nn.Module, width: int) -> ConditionNet:
        """A network whose tokens are `width` wide. features: of the policy. encoder: the policy's, from
        normalised observations `{key: (B, T, *shape)}` to `(B, T, K, width)`; a condition may use it and must
        not own it."""
        ...


class OfTask:
    """What conditions have in common that are told the words of the task and nothing else."""

    def needs(self) -> dict[str, Any]:
        return {"task": True}

    def keys(self, features: Features) -> tuple[str, ...]:
        return (TASK,)

    def hides(self, features: Features) -> tuple[str, ...]:
        return ()


def feature_of(key: str) -> str:
    """The feature that a condition's key is about: `goal.observation.state` is about observation.state."""
    for prefix in PREFIXES:
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


def features_for(part: ConditionPart, conditions: Sequence[ConditionPart], features: Features) -> Features:
    """Those that `part` may be told of: all but what the other conditions hide."""
    hidden = {k for other in conditions if other is not part for k in other.hides(features)}
    return {k: f for k, f in features.items() if k not in hidden}


def condition_features(
    conditions: Sequence[ConditionPart], features: Features, optional: bool = False
) -> Features:
    """What a request must hold for the conditions, beside the observations, by key: `task` is text, goals
    have the shape of their feature, and prompts are of up to P demonstrations of up to L ticks each, `(P, L,
    *shape)`. Labels are among the observations. optional: instead what it may hold."""
    result: Features = {}
    for part in conditions:
        if getattr(part, "optional", False) != optional:
            continue
        for key in part.keys(features_for(part, conditions, features)):
            if key == TASK:
                result[key] = Feature((), TEXT)
            elif key == RETURN:
                result[key] = Feature((1,), "float32")
            elif key.startswith(("goal.", "start.")):
                result[key] = features[feature_of(key)]
            elif key.startswith("prompt."):
                needs = part.needs()
                size = (int(needs["prompts"]), int(needs["prompt_length"]))
                of = features.get(feature_of(key), Feature((), "bool"))  # else it is the mask
                result[key] = Feature((*size, *of.shape), of.dtype, of.names, of.units)
    return result


def subgoals_of(conditions: Sequence[ConditionPart]) -> Decompose | None:
    """How the subgoals are found that policies with these conditions are told; None: they are told none."""
    return next((c.needs()["decompose"] for c in conditions if "decompose" in c.needs()), None)


def require_dropped(conditions: Sequence[ConditionPart]) -> None:
    """BadRequest unless policies with these conditions know how to act without them."""
    if not conditions:
        raise BadRequest("the policy is not asked for anything: it has no condition to leave out")
    if always := [c for c in conditions if not c.drop]:
        name = type(always[0]).__name__
        raise BadRequest(
            f"the policy was always told its {name}, so nobody knows what it does without: train it with "
            f"--conditions.{name}.drop 0.1"
        )
