"""The parts by their names: in files, on the command line, and from installed packages. How a recipe becomes
`recipe.json` and comes back, what may take the place of what, and how fields are overridden."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

from .adapters.language import Language
from .adapters.vision import SigLIP
from .adapters.vision_language import VisionLanguage
from .backbones.action_expert import ActionExpert
from .backbones.action_tokens import ActionTokens
from .backbones.chain_of_action import ChainOfAction
from .backbones.codes import Codes
from .backbones.dit import DiT
from .backbones.encoder_decoder import EncoderDecoder
from .backbones.energy import Energy
from .backbones.factorised import Factorised
from .backbones.fast_tokens import FAST
from .backbones.harmodt import HarmoDT
from .backbones.horizons import Horizons
from .backbones.hyperppo import HyperPPO
from .backbones.hyperzero import HyperZero
from .backbones.insulated import Insulated
from .backbones.latent import Latent
from .backbones.lipschitz import LipschitzMLP
from .backbones.mixture import Mixture
from .backbones.mlp import ResidualMLP
from .backbones.ndp import NeuralDynamics
from .backbones.parallel_decoding import ParallelDecoding
from .backbones.pieces import Pieces
from .backbones.referenced import Referenced
from .backbones.small_mlp import SmallMLP
from .backbones.sparse_transformer import SparseTransformer
from .backbones.token_times import TokenTimes
from .backbones.transformer import Transformer
from .backbones.unet1d import UNet1D
from .codec import Absolute, Delta, Padded, Relative
from .components import PrincipalComponents
from .conditions.backward_plan import BackwardPlan
from .conditions.change import Change
from .conditions.demonstrations import Demonstrations
from .conditions.dichotomy import Dichotomy
from .conditions.goal import Goal
from .conditions.instruction import Instruction
from .conditions.label import Label
from .conditions.lid import LID
from .conditions.prompt import Prompt
from .conditions.returns import Return
from .conditions.sentence import Sentence
from .conditions.slow import Kept, Slow
from .conditions.store import Store
from .conditions.task import Task
from .conditions.uvd import UVD
from .conditions.words import Words
from .contexts.ada import AdA
from .contexts.aura_mem import AuraMem
from .contexts.cached_prefix import CachedPrefix
from .contexts.decision_mamba import DecisionMamba
from .contexts.decision_s4 import DecisionS4
from .contexts.focus import Focus
from .contexts.grounded import Grounded
from .contexts.icrt import ICRT
from .contexts.read_tokens import ReadTokens
from .contexts.recurrent import Recurrent
from .contexts.retrieval import Retrieval
from .contexts.sega import SEGA
from .contexts.stack import Stack
from .contexts.turns import Turns
from .encoders.apart import Apart
from .encoders.feature_maps import FeatureMaps
from .encoders.gp3 import GP3
from .encoders.objects import Objects
from .encoders.resnet import ResNet
from .encoders.scr import SCR
from .encoders.slots import Slots
from .encoders.timm import Timm
from .encoders.vector import MLP, Encoder, ResNet18, SmallCNN
from .hooks.ask import Ask, Compose
from .hooks.best_of_n import BestOfN
from .hooks.consensus import Consensus
from .hooks.guidance import CFG
from .hooks.hidden import Hidden
from .hooks.hook import Hook
from .hooks.inpaint import Inpaint
from .hooks.low_temperature import LowTemperature
from .hooks.lowest_energy import LowestEnergy
from .hooks.past_verification import PastVerification
from .hooks.prefix import Prefix
from .hooks.rtc import RTC
from .hooks.rti import RTI
from .hooks.supported import Supported
from .inverse_dynamics import InverseDynamics
from .objectives.cvae import CVAE
from .objectives.diffusion import Diffusion
from .objectives.ebt import EBT
from .objectives.edm import EDM
from .objectives.flow import Flow
from .objectives.flow_map import FlowMap
from .objectives.imc import IMC
from .objectives.knowledge_insulation import KnowledgeInsulation
from .objectives.mip import MIP, TSD, StraightFlow
from .objectives.next_token import NextToken
from .objectives.prefixed import Prefixed
from .objectives.regression import Regression
from .objectives.vq_bet import VQBeT
from .plugins import PluginError, everything, load, lookup, offers
from .recipe import ParamGroup, Recipe, Training
from .solvers.ddim import DDIM
from .solvers.dpm import DPM
from .solvers.energy_descent import EnergyDescent
from .solvers.heun import Heun
from .upgrade import upgraded

GROUP = "ulna.parts"
PARTS: dict[str, type] = {
    c.__name__: c
    for c in (
        *(Recipe, Training, ParamGroup, Encoder, MLP, ResNet18, SmallCNN),
        *(Stack, Recurrent),
        *(UNet1D, Transformer, ResidualMLP, Energy, Mixture),
        *(Flow, Diffusion, Regression, EBT, IMC, EDM),
        *(MIP, StraightFlow, TSD, FlowMap),
        *(DDIM, Heun, DPM, EnergyDescent),
        *(Absolute, Relative, Delta),
        *(Inpaint, LowestEnergy, PastVerification, CFG, BestOfN, Consensus),
        *(Words, Goal, Label, Prompt, Sentence, Grounded),
        *(NeuralDynamics, Horizons),
        *(RTC, RTI, Prefix, Prefixed, TokenTimes),
        *(FeatureMaps, EncoderDecoder, Latent, CVAE),
        *(Codes, VQBeT, ChainOfAction),
        *(ResNet, Timm, SCR, Slots, GP3),
        *(LipschitzMLP, Supported),
        *(VisionLanguage, SigLIP, Language, Instruction, CachedPrefix, ActionExpert, Padded),
        *(ActionTokens, NextToken, ParallelDecoding, ReadTokens, DiT, Turns),
        *(FAST, Insulated, KnowledgeInsulation, LID, AdA),
        *(SEGA, AuraMem, DecisionS4, DecisionMamba),
        *(Return, InverseDynamics, Ask, Compose, LowTemperature, Change),
        *(Task, SparseTransformer, Apart, Factorised, Objects, Focus, Dichotomy, BackwardPlan, UVD, HarmoDT),
        *(Demonstrations, ICRT, Store, Retrieval),
        *(Slow, Kept, Referenced),
        *(SmallMLP, HyperZero, HyperPPO, Hidden),
        *(Pieces, PrincipalComponents),
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
    or derived from it. Of a union or a tuple of parts, whether it fits one of them."""
    if arguments := typing.get_args(kind):
        return any(fits(part, k) for k in arguments)
    if not getattr(kind, "_is_protocol", False):
        return isinstance(kind, type) and issubclass(part, kind)
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
    settings = {k: v for k, v in upgraded(value).items() if k not in ("part", "package")}
    if unknown := sorted(set(settings) - {f.name for f in fields(part)}):
        raise ValueError(f"the recipe's {part.__name__} has unknown fields: {', '.join(unknown)}")
    hints = typing.get_type_hints(part)
    for name, plain in settings.items():
        _require_plain(plain, hints[name], f"the recipe's {part.__name__}.{name}")
    try:
        return part(**{k: recipe_from_json(v) for k, v in settings.items()})
    except TypeError as error:
        raise ValueError(f"the recipe's {part.__name__} is incomplete: {error}") from None


def _require_plain(value: Any, hint: Any, name: str) -> None:
    """Raise ValueError where a field for a plain value, such as a number, holds another kind of value, or a
    number that is not finite."""
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        for v in value:
            _require_plain(v, typing.get_args(hint)[0], name)
        return
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if not set(kinds) <= {bool, int, float, str, type(None)}:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, which is not finite")
    if not (isinstance(value, kinds) or (number and (float in kinds or int in kinds))) or (
        isinstance(value, bool) and bool not in kinds
    ):
        names = " or ".join("none" if k is type(None) else k.__name__ for k in kinds)
        raise ValueError(f"{name} is {value!r:.60}, not {names}")


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
        return tuple(parts_for(self.kind)) if takes_parts(self.kind) else ()


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
        elif takes_parts(hints[f.name]):
            for part in value or ():
                rows += settings(part, f"{prefix}{f.name}.{type(part).__name__}.")
    return rows


def leaves(recipe: Any) -> dict[str, tuple[Any, Any]]:
    """Every plain field by its dotted name: `{"training.steps": (annotation, value), ...}`."""
    return {s.name: (s.kind, s.value) for s in settings(recipe) if not takes_parts(s.kind)}


def takes_parts(kind: Any) -> bool:
    """Whether a field of type `kind` holds a part, or None in its place, or several in a tuple."""
    if arguments := typing.get_args(kind):
        return any(takes_parts(k) for k in arguments)
    if kind is ParamGroup:  # is written as text
        return False
    return is_dataclass(kind) or getattr(kind, "_is_protocol", False) or kind is Hook


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


def override[Part](recipe: Part, changes: dict[str, Any]) -> Part:
    """`recipe` with dotted fields replaced, e.g. `{"training.steps": 100, "backbone.widths": (64, 128)}`.

    A part as a whole is replaced by its name: `{"backbone": "Transformer"}` (with that part's defaults), be
    it ours, an installed package's or a `package.module:Name`; several parts by their names with commas:
    `{"steering": "Inpaint"}`, whose fields are then `steering.Inpaint.<field>`. ValueError for a field that
    does not exist or a value of the wrong type."""
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
            value = _replacement(changes[head], hints[head], name)
        if inner:
            value = _changed_within(value, inner, name)
        new[head] = value
    return dataclasses.replace(part, **new)


def _changed_within(value: Any, changes: dict[str, Any], name: str) -> Any:
    """`value`, a part or a tuple of parts, with fields of theirs replaced; in a tuple the first word of a
    field is the name of the part that it is of."""
    if is_dataclass(value):
        return _with_changes(value, changes, f"{name}.")
    if not isinstance(value, tuple) or not all(map(is_dataclass, value)):
        raise ValueError(f"{name} is not a part, it is {value!r}")
    names = [type(part).__name__ for part in value]
    for head in dict.fromkeys(n.split(".")[0] for n in changes):
        if head not in names:
            raise ValueError(f"{name} has no {head}: it holds {', '.join(names) or 'nothing'}")
    return tuple(
        _with_changes(part, of_part, f"{name}.{n}.")
        if (of_part := {k.split(".", 1)[1]: v for k, v in changes.items() if k.startswith(f"{n}.")})
        else part
        for n, part in zip(names, value, strict=True)
    )


def _replacement(value: Any, hint: Any, name: str) -> Any:
    """`value` for a field of type `hint`: a part by its name, several parts by theirs, or a plain value."""
    if not takes_parts(hint):
        return _coerce(value, hint, name)
    may_be_none = isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)
    if may_be_none and (value is None or str(value).lower() in ("none", "")):
        return None
    if typing.get_origin(hint) is tuple:
        words = value.replace(",", " ").split() if isinstance(value, str) else value
        kind = typing.get_args(hint)[0]
        return tuple(_part(word, kind, name) for word in words if str(word).lower() != "none")
    return _part(value, hint, name)


def _part(value: Any, hint: Any, name: str) -> Any:
    """The part `value`, or of the name `value` with its defaults."""
    if is_dataclass(value) and not isinstance(value, type):
        part, make = type(value), lambda: value
    else:
        if not isinstance(value, str) or not lookup(GROUP, PARTS, value):
            raise ValueError(f"{name} is one of {', '.join(parts_for(hint))}, not {value!r}")
        part = make = part_type(value)
    if not fits(part, hint):
        raise ValueError(
            f"{name} is one of {', '.join(parts_for(hint))}; {part.__name__!r} is a part of another kind"
        )
    try:
        return make()
    except TypeError as error:
        raise ValueError(f"{name}: {value} has no default for every field: {error}") from None


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """`value`, perhaps text from a command line, as `hint`; ValueError says what was expected."""
    if hint is ParamGroup:
        return ParamGroup.of(value)
    origin = typing.get_origin(hint)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f"{name} is one of {', '.join(map(str, typing.get_args(hint)))}, not {value!r}")
        return value
    if origin is tuple:
        inner = typing.get_args(hint)
        if not isinstance(value, str | list | tuple):
            raise ValueError(f"{name} is a list, such as [{value!r}], not {value!r}")
        items = value.replace(",", " ").split() if isinstance(value, str) else list(value)
        if inner[-1] is not Ellipsis and len(items) != len(inner):
            raise ValueError(f"{name} takes {len(inner)} values, not {len(items)}")
        return tuple(_coerce(v, inner[0], name) for v in items)
    if isinstance(hint, types.UnionType):
        kinds = typing.get_args(hint)
        if type(None) in kinds and (value is None or str(value).lower() in ("none", "")):
            return None
        return _coerce(value, next(k for k in kinds if k is not type(None)), name)
    if hint is Any:
        return value
    try:
        if hint is bool:
            words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            return value if isinstance(value, bool) else words[str(value).lower()]
        if hint is int and not isinstance(value, int):
            if float(value) != int(float(value)):
                raise ValueError
            return int(float(value))
        result = hint(value)
    except (KeyError, ValueError, TypeError, OverflowError):
        raise ValueError(f"{name} is a {hint.__name__}, not {value!r}") from None
    if isinstance(result, float) and not math.isfinite(result):
        raise ValueError(f"{name} is {value!r}: it must be finite")
    return result
