"""A recipe: which parts make a policy, and how it is trained. Data, not code; saved as `recipe.json`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

from .backbones.backbone import Backbone
from .backbones.transformer import Transformer
from .backbones.unet1d import UNet1D
from .contexts.context import ContextPart
from .contexts.stack import Stack
from .encoders.vector import MLP, Encoder, ResNet18, SmallCNN
from .objectives.diffusion import Diffusion
from .objectives.flow import Flow
from .objectives.objective import Objective
from .objectives.regression import Regression
from .plugins import PluginError, everything, load, lookup, offers

NormaliseMode = Literal["minmax", "meanstd", "quantile", "none"]


@dataclass(frozen=True)
class ParamGroup:
    """Weights that are trained otherwise than the rest. As text: `encoder.*:0.1`, or `encoder.*:0.1:0` with a
    weight decay of its own."""

    pattern: str
    """Of their names, with * and ?; the first group that matches a weight counts."""
    learning_rate: float = 1.0
    """Times the training's."""
    weight_decay: float | None = None
    """Instead of the training's; None: the same."""

    @staticmethod
    def of(value: Any) -> ParamGroup:
        """A group as it is, or from its text or its fields. ValueError says how it is written."""
        if isinstance(value, ParamGroup):
            return value
        if isinstance(value, str):
            pattern, *rest = value.split(":")
            names = ("learning_rate", "weight_decay", "more")
            value = {"pattern": pattern, **dict(zip(names, rest, strict=False))}
        try:
            decay = value.get("weight_decay")
            rate, decay = float(value.get("learning_rate", 1.0)), None if decay is None else float(decay)
            if unknown := set(value) - {"part", "pattern", "learning_rate", "weight_decay"}:
                raise ValueError(f"there is no {unknown.pop()}")
            return ParamGroup(str(value["pattern"]), rate, decay)
        except (AttributeError, KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"a parameter group is a pattern, a factor of the learning rate and perhaps a weight decay, "
                f"like 'encoder.*:0.1:0', not {value!r}"
            ) from error

    def __str__(self) -> str:
        decay = "" if self.weight_decay is None else f":{self.weight_decay}"
        return f"{self.pattern}:{self.learning_rate}{decay}"


@dataclass(frozen=True)
class Training:
    """AdamW, warm-up then cosine to zero, EMA with decay 1 - (1 + n)^-power (as diffusers' EMAModel)."""

    steps: int = 5000
    """Updates of the weights."""
    batch_size: int = 256
    """Windows in a batch, of all processes together."""
    learning_rate: float = 1e-4
    """Highest, at the end of the warm-up."""
    betas: tuple[float, float] = (0.95, 0.999)
    """AdamW's decay of its two moments."""
    weight_decay: float = 1e-6
    """AdamW's, of all weights."""
    warmup: int = 500
    """Steps over which the learning rate rises from zero."""
    grad_clip: float = 1.0
    """Largest norm of all gradients together."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    ema_power: float = 0.75
    """p of the decay 1 - (1 + n)^-p, at step n, of the moving average of the weights that is saved."""
    ema_max: float = 0.9999
    """Highest decay of that average."""
    checkpoint_every: int = 500
    """Steps between the states that --resume can go on from."""
    compile: bool = False
    """Compile the network by torch.compile; worth it for long trainings on a GPU."""
    start: str = ""
    """Folder of a checkpoint to begin from, its weights and its statistics; empty: from random weights."""
    freeze: tuple[str, ...] = ()
    """Patterns, such as encoder.*, of the names of weights that stay as they are."""
    groups: tuple[ParamGroup, ...] = ()
    """Weights with a learning rate of their own, as PATTERN:FACTOR or PATTERN:FACTOR:WEIGHT_DECAY."""
    ema_skip: tuple[str, ...] = ()
    """Patterns of the names of weights that are saved as trained, not as their moving average."""


@dataclass(frozen=True)
class Recipe:
    """A published method as a choice of parts. Times are in control ticks."""

    name: str
    """Under which `ulna recipes` lists it."""
    paper: str
    """Authors, year, title, arXiv number."""
    objective: Objective
    """What the network learns, and how a chunk is drawn from it."""
    backbone: Backbone
    """The network that gives the chunk."""
    encoder: Encoder = Encoder()
    """What makes one vector of each observation."""
    context: ContextPart = Stack()
    """What the backbone is told of those vectors."""
    sampling_steps: int = 10
    """Evaluations of the network for one chunk."""
    n_obs_steps: int = 2
    """Observations that the policy sees; the newest is now."""
    horizon: int = 16
    """Actions in the predicted chunk, the n_past_actions that lie before now among them."""
    n_past_actions: int = 0
    """Leading actions of the chunk that lie before now."""
    n_action_steps: int = 8
    """Actions executed of each chunk, by the slice decoder."""
    decoder: Literal["slice", "ensemble"] = "slice"
    """Execute the first n_action_steps of a chunk and ask again, or ask at every tick and average all chunks
    that reach it (ensemble)."""
    ensemble_decay: float = 0.01
    """Weights exp(-decay i) of that average, the oldest chunk heaviest."""
    normalise_state: NormaliseMode = "minmax"
    """Scale vectors that are observed to [-1, 1] by their range (minmax) or by their 1 % and 99 % quantiles,
    to mean 0 and deviation 1 (meanstd), or not."""
    normalise_action: NormaliseMode = "minmax"
    """The same of actions."""
    action_space: Literal["absolute", "relative", "delta"] = "absolute"
    """The chunk as targets; as differences to the state now, joint by joint (openpi's delta actions, UMI's
    relative trajectory); or as differences to the last command, which the policy then also sees (delta: a
    command leads the state by what the arm lags and sags, and only the sender knows it)."""
    inpaint_past: bool = False
    """When the policy runs, hold the past actions of a chunk to what was really sent (the hook `Inpaint`), so
    that a new chunk goes on from the old one."""
    mask_padding: bool = False
    """Leave actions beyond the ends of an episode out of the loss; else its first and last ones stand for
    them, and count."""
    training: Training = Training()
    """How it is trained."""

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


GROUP = "ulna.parts"
PARTS: dict[str, type] = {
    c.__name__: c
    for c in (
        *(Recipe, Training, ParamGroup, Encoder, MLP, ResNet18, SmallCNN, Stack),
        *(UNet1D, Transformer, Flow, Diffusion, Regression),
    )
}


def part_type(name: str) -> type:
    """The part `name`: ours, one that an installed package offers in the entry point group `ulna.parts`, or
    `package.module:Name`. ValueError in one sentence when there is none, or it is no part."""
    part = lookup(GROUP, PARTS, name)
    if part is None:
        raise ValueError(f"there is no part {name!r}")
    if not _is_part(part):
        raise PluginError(
            f"{name} is no part: a part is a frozen dataclass without fields called part or package"
        )
    return part


def parts_for(kind: Any) -> dict[str, type]:
    """Every part, ours and those of installed packages that can be used, that may fill a field of type
    `kind`, by name."""
    return {n: part for n, part in everything(GROUP, PARTS)[0].items() if _is_part(part) and fits(part, kind)}


def fits(part: type, kind: Any) -> bool:
    """Whether `part` may fill a field of type `kind`: for a protocol, such as `Backbone`, whether it has the
    protocol's methods, with parameters of the same names, and its properties; else whether it is that class
    or one of those classes."""
    if not getattr(kind, "_is_protocol", False):
        return part in (typing.get_args(kind) or (kind,))
    for name, member in vars(kind).items():
        if name.startswith("_") and name != "__call__":
            continue
        own = next((vars(c)[name] for c in part.__mro__ if name in vars(c)), None)
        if not inspect.isfunction(member):
            if own is None and name not in {f.name for f in fields(part)}:
                return False
        elif not inspect.isfunction(own) or not _takes(own, inspect.signature(member)):
            return False
    return True


def _takes(function: Callable[..., Any], signature: inspect.Signature) -> bool:
    """Whether `function` begins with the parameters that `signature` must be given, and requires no more."""
    required = [p.name for p in signature.parameters.values() if p.default is p.empty]
    own = list(inspect.signature(function).parameters.values())
    more = [
        p
        for p in own[len(required) :]
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return [p.name for p in own[: len(required)]] == required and not more


def _is_part(value: Any) -> bool:
    return (
        isinstance(value, type)
        and is_dataclass(value)
        and value.__dataclass_params__.frozen  # type: ignore[attr-defined]
        and not {"part", "package"} & {f.name for f in fields(value)}
    )


def _reference(part: type) -> dict[str, str]:
    """What a file calls `part`: ours by its name, another by its entry point's name and its package, or by
    `package.module:Name`."""
    if PARTS.get(part.__name__) is part:
        return {"part": part.__name__}
    for name, entry in offers(GROUP, PARTS)[0].items():
        same_package = entry.module.split(".")[0] == part.__module__.split(".")[0]
        if same_package and entry.dist is not None and load(entry) is part:
            return {"part": name, "package": entry.dist.name}
    return {"part": f"{part.__module__}:{part.__qualname__}"}


def recipe_to_json(value: Any) -> Any:
    """Dataclasses become `{"part": name, field: ...}`, with `"package"` where an installed package offers the
    part; tuples become lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return _reference(type(value)) | {
            f.name: recipe_to_json(getattr(value, f.name)) for f in fields(value)
        }
    if isinstance(value, tuple):
        return [recipe_to_json(v) for v in value]
    return value


def recipe_from_json(value: Any) -> Any:
    """The inverse. ValueError names an unknown part or field: a checkpoint of another version or of a package
    that is not installed, or a foreign file."""
    if isinstance(value, list):
        return tuple(recipe_from_json(v) for v in value)
    if not isinstance(value, dict):
        return value
    part = _part_from_json(value)
    settings = {k: v for k, v in value.items() if k not in ("part", "package")}
    if unknown := sorted(set(settings) - {f.name for f in fields(part)}):
        raise ValueError(f"the recipe's {part.__name__} has unknown fields: {', '.join(unknown)}")
    try:
        return part(**{k: recipe_from_json(v) for k, v in settings.items()})
    except TypeError as error:
        raise ValueError(f"the recipe's {part.__name__} is incomplete: {error}") from None


def _part_from_json(value: dict[str, Any]) -> type:
    name, package = str(value.get("part")), value.get("package")
    if package is None:
        if name not in PARTS and ":" not in name:
            raise ValueError(
                f"the recipe names a part {value.get('part')!r} that this version of Ulna does not have"
            )
    elif name in PARTS or name not in offers(GROUP, PARTS)[0]:
        raise ValueError(
            f"the recipe names the part {name} of the package {package}, which is not installed here or does "
            f"not offer it: install {package} as it was when the policy was trained"
        )
    try:
        return part_type(name)
    except PluginError as error:
        raise ValueError(f"the recipe names a part that cannot be used here: {error}") from error


@dataclass(frozen=True)
class Setting:
    """One field of a recipe or of one of its parts."""

    name: str
    """Dotted, such as `training.steps`."""
    kind: Any
    """Its annotation: a type, a `Literal`, or a protocol that parts keep."""
    value: Any
    """What the recipe has there: a part, or a plain value."""
    owner: type
    """The part whose field it is."""

    @property
    def help(self) -> str:
        """The docstring under the field, in one line; "" where it has none."""
        return field_help(self.owner).get(self.name.rpartition(".")[2], "")

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it can have, where they are few; of a part, those that may take its place."""
        if typing.get_origin(self.kind) is Literal:
            return tuple(map(str, typing.get_args(self.kind)))
        if self.kind is bool:
            return ("true", "false")
        return tuple(parts_for(self.kind)) if is_dataclass(self.value) else ()


def settings(recipe: Any, prefix: str = "") -> list[Setting]:
    """Every field of `recipe` and of its parts, but its name and paper; a part comes before its fields."""
    hints = typing.get_type_hints(type(recipe))
    rows: list[Setting] = []
    for f in fields(recipe):
        if f.name in ("name", "paper"):
            continue
        value = getattr(recipe, f.name)
        rows.append(Setting(prefix + f.name, hints[f.name], value, type(recipe)))
        if is_dataclass(value):
            rows += settings(value, f"{prefix}{f.name}.")
    return rows


def leaves(recipe: Any) -> dict[str, tuple[Any, Any]]:
    """Every plain field by its dotted name: `{"training.steps": (annotation, value), ...}`."""
    return {s.name: (s.kind, s.value) for s in settings(recipe) if not is_dataclass(s.value)}


@lru_cache(maxsize=64)
def field_help(part: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass, each in one line, by field."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    texts: dict[str, str] = {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for node, after in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
            text = after.value.value if isinstance(after.value, ast.Constant) else None
            if isinstance(text, str) and isinstance(node.target, ast.Name):
                texts[node.target.id] = " ".join(text.split())
    return texts


def override(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """`recipe` with dotted fields replaced, e.g. `{"training.steps": 100, "backbone.widths": (64, 128)}`.

    A part as a whole is replaced by its name: `{"backbone": "Transformer"}` (with that part's defaults), be
    it ours, an installed package's or a `package.module:Name`. ValueError for a field that does not exist or
    a value of the wrong type."""
    return _with_changes(recipe, changes, "")


def _with_changes(part: Any, changes: dict[str, Any], prefix: str) -> Any:
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
            value = _replacement(value, changes[head], hints[head], name)
        if inner:
            if not is_dataclass(value):
                raise ValueError(f"{name} is not a part, it is {value!r}")
            value = _with_changes(value, inner, f"{name}.")
        new[head] = value
    return dataclasses.replace(part, **new)


def _replacement(old: Any, value: Any, hint: Any, name: str) -> Any:
    """`value` for a field that holds `old`: another part by its name, or a plain value."""
    if not is_dataclass(old):
        return _coerce(value, hint, name)
    if not lookup(GROUP, PARTS, value):
        raise ValueError(f"{name} is one of {', '.join(parts_for(hint))}, not {value!r}")
    part = part_type(value)
    if not fits(part, hint):
        raise ValueError(
            f"{name} is one of {', '.join(parts_for(hint))}; {value!r} is a part of another kind"
        )
    try:
        return part()
    except TypeError as error:
        raise ValueError(f"{name}: {value} has no default for every field: {error}") from None


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
    if hint is ParamGroup:
        return ParamGroup.of(value)
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
