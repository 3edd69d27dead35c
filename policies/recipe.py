"""A recipe: which parts make a policy, and how it is trained. Data, not code; saved as `recipe.json`."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from .backbones.transformer import Transformer
from .backbones.unet1d import UNet1D
from .contexts.stack import Stack
from .encoders.vector import MLP, Encoder, ResNet18, SmallCNN
from .objectives.diffusion import Diffusion
from .objectives.flow import Flow
from .objectives.regression import Regression

NormaliseMode = Literal["minmax", "meanstd", "quantile", "none"]


@dataclass(frozen=True)
class Training:
    """AdamW, warm-up then cosine to zero, EMA with decay 1 - (1 + n)^-power (as diffusers' EMAModel)."""

    steps: int = 5000
    batch_size: int = 256
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    warmup: int = 500
    grad_clip: float = 1.0
    accumulate: int = 1
    ema_power: float = 0.75
    ema_max: float = 0.9999
    checkpoint_every: int = 500
    compile: bool = False


@dataclass(frozen=True)
class Recipe:
    """A published method as a choice of parts. Times are in control ticks.

    n_obs_steps: observations seen, the newest is now. horizon: actions predicted, the first `n_past_actions`
    of them before now. n_action_steps: actions executed of each chunk (slice decoder). action_space:
    `relative` predicts the chunk as differences to the state now, joint by joint (openpi's delta actions,
    UMI's relative trajectory); `delta` as differences to the last command, which the policy then also sees (a
    command leads the state by what the arm lags and sags, and only the sender knows it). inpaint_past: at
    test time the past actions of a chunk are held to what was really sent (the hook `Inpaint`), so that a new
    chunk goes on from the old one."""

    name: str
    paper: str
    objective: Flow | Diffusion | Regression
    backbone: UNet1D | Transformer
    encoder: Encoder = Encoder()
    context: Stack = Stack()
    sampling_steps: int = 10
    n_obs_steps: int = 2
    horizon: int = 16
    n_past_actions: int = 0
    n_action_steps: int = 8
    decoder: Literal["slice", "ensemble"] = "slice"
    ensemble_decay: float = 0.01
    normalise_state: NormaliseMode = "minmax"
    normalise_action: NormaliseMode = "minmax"
    action_space: Literal["absolute", "relative", "delta"] = "absolute"
    inpaint_past: bool = False
    mask_padding: bool = False
    training: Training = Training()

    def __post_init__(self) -> None:
        ahead = self.horizon - self.n_past_actions
        if self.action_space == "delta" and self.n_past_actions < 1:
            raise ValueError("action_space delta needs the last command: set n_past_actions to at least 1")
        if self.n_obs_steps < 1 or self.n_past_actions < 0:
            raise ValueError("n_obs_steps must be at least 1 and n_past_actions not negative")
        if not 1 <= self.n_action_steps <= ahead:
            raise ValueError(
                f"n_action_steps is {self.n_action_steps}, but a chunk of horizon {self.horizon} with "
                f"{self.n_past_actions} past actions has {ahead} actions ahead: choose 1..{ahead}"
            )


PARTS: dict[str, type] = {
    c.__name__: c
    for c in (
        *(Recipe, Training, Encoder, MLP, ResNet18, SmallCNN, Stack),
        *(UNet1D, Transformer, Flow, Diffusion, Regression),
    )
}


def recipe_to_json(value: Any) -> Any:
    """Dataclasses become `{"part": class name, field: ...}`, tuples become lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"part": type(value).__name__} | {
            f.name: recipe_to_json(getattr(value, f.name)) for f in fields(value)
        }
    if isinstance(value, tuple):
        return [recipe_to_json(v) for v in value]
    return value


def recipe_from_json(value: Any) -> Any:
    """The inverse. ValueError names an unknown part or field: a checkpoint of another version, or a foreign
    file."""
    if isinstance(value, list):
        return tuple(recipe_from_json(v) for v in value)
    if not isinstance(value, dict):
        return value
    part = PARTS.get(str(value.get("part")))
    if part is None:
        raise ValueError(
            f"the recipe names a part {value.get('part')!r} that this version of Ulna does not have"
        )
    known = {f.name for f in fields(part)}
    given = {k: v for k, v in value.items() if k != "part"}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"the recipe's {part.__name__} has unknown fields: {', '.join(unknown)}")
    try:
        return part(**{k: recipe_from_json(v) for k, v in given.items()})
    except TypeError as error:
        raise ValueError(f"the recipe's {part.__name__} is incomplete: {error}") from None


def leaves(recipe: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Every settable field by its dotted name: `{"training.steps": (annotation, value), ...}`."""
    hints = typing.get_type_hints(type(recipe))
    found: dict[str, tuple[Any, Any]] = {}
    for f in fields(recipe):
        value = getattr(recipe, f.name)
        if is_dataclass(value):
            found |= leaves(value, f"{prefix}{f.name}.")
        elif f.name not in ("name", "paper"):
            found[prefix + f.name] = (hints[f.name], value)
    return found


def override(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """`recipe` with dotted fields replaced, e.g. `{"training.steps": 100, "backbone.widths": (64, 128)}`.

    A part as a whole is replaced by its class name: `{"backbone": "Transformer"}` (with that part's
    defaults). ValueError for a field that does not exist or a value of the wrong type."""
    return _updated(recipe, changes, "")


def _updated(part: Any, changes: dict[str, Any], prefix: str) -> Any:
    """All changes of a part at once, since its fields may only fit each other when all are set."""
    hints = typing.get_type_hints(type(part))
    new: dict[str, Any] = {}
    for head in dict.fromkeys(n.split(".")[0] for n in changes):
        name = prefix + head
        if head not in hints:
            raise ValueError(f"{type(part).__name__} has no field {head!r} (in {name})")
        value = getattr(part, head)
        inner = {n.split(".", 1)[1]: v for n, v in changes.items() if n.startswith(f"{head}.")}
        if head in changes:
            value = _swapped(value, changes[head], hints[head], name)
        if inner:
            if not is_dataclass(value):
                raise ValueError(f"{name} is not a part, it is {value!r}")
            value = _updated(value, inner, f"{name}.")
        new[head] = value
    return dataclasses.replace(part, **new)


def _swapped(old: Any, value: Any, hint: Any, name: str) -> Any:
    """`value` for a field that holds `old`: another part by its name, or a plain value."""
    if not is_dataclass(old):
        return _coerce(value, hint, name)
    by_name = {
        t.__name__: t for t in typing.get_args(hint) or (hint,) if isinstance(t, type) and is_dataclass(t)
    }
    if value not in by_name:
        raise ValueError(f"{name} is one of {', '.join(by_name)}, not {value!r}")
    return by_name[value]()


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """`value`, perhaps text from a command line, as `hint`; ValueError says what was expected."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f"{name} is one of {', '.join(map(str, typing.get_args(hint)))}, not {value!r}")
        return value
    if origin is tuple:
        inner = typing.get_args(hint)
        items = value.replace(",", " ").split() if isinstance(value, str) else list(value)
        if inner[-1] is not Ellipsis and len(items) != len(inner):
            raise ValueError(f"{name} takes {len(inner)} values, not {len(items)}")
        return tuple(_coerce(v, inner[0], name) for v in items)
    if isinstance(hint, types.UnionType) or hint is Any:
        return value
    try:
        if hint is bool:
            words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            return value if isinstance(value, bool) else words[str(value).lower()]
        if hint is int and not isinstance(value, int):
            if float(value) != int(float(value)):
                raise ValueError
            return int(float(value))
        return hint(value)
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"{name} is a {hint.__name__}, not {value!r}") from None
