"""Train a policy on a dataset. Any field of the recipe is an option, such as --horizon 32 --backbone.widths
128 256; `ulna train RECIPE --help` lists them."""

from __future__ import annotations

import difflib
import sys
import textwrap
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any, Literal

import tyro

from .choices import recipes
from .errors import UsageError, unknown
from .parsing import Output, episode_list, pairs, progress, require_device, unset, words

EXAMPLE = "ulna train flow --data runs/x/data --out runs/x/flow --steps 2500"
CHOICES = {"recipe": recipes}


@dataclass
class Args:
    recipe: tyro.conf.Positional[str]
    """Which policy; `ulna recipes` lists them."""
    data: list[str]
    """Folder of the dataset; several are mixed."""
    out: str
    """Folder of the checkpoint."""
    episodes: Annotated[str, unset("all")] = ""
    """Train on these only, like 0-9,12."""
    observe: Annotated[str, unset("all", "NAMES")] = ""
    """Use these observations only, with commas."""
    mix: Annotated[str, unset("by their number of ticks", "SHARES")] = ""
    """Share of each dataset in a batch, with commas: 0.7,0.3."""
    rename: Annotated[str, unset("none", "OLD=NEW")] = ""
    """Call features of a dataset otherwise, with commas: observation.images.top=observation.images.front."""
    weights: Literal["uniform", "stored", "success", "return-rw", "return-aw"] = "uniform"
    """How episodes count: all alike; by the label `weight`; successes only; or by their return, itself or
    beyond what their first state promises."""
    alpha: float = 0.1
    """Temperature of the weighting by return: small, the best episodes only."""
    validate: float = 0.0
    """Share of the episodes to hold out; the loss on them is noted in train.json."""
    interrupted: bool = False
    """Train on episodes that were cut off, too."""
    align: Literal["seen", "nearest", "interpolate"] = "seen"
    """Which row of a device of another rate belongs to a control tick: the newest that had been received; the
    one captured nearest, or for vectors a straight line between two, which a policy will not have when it
    runs."""
    tolerance: Annotated[float | None, unset("two periods and the device's delay")] = None
    """How old that row may be, s; ticks without one are left out."""
    augment: Annotated[str, unset("none")] = ""
    """Change images while training, with commas: crop,color,blur."""
    workers: int = 0
    """Processes that read and decode; 0: a thread."""
    cache: Literal["auto", "ram", "disk", "none"] = "auto"
    """Keep decoded images: in memory where they fit (auto) or in any case, on disk, or not."""
    cache_gb: float = 0.25
    """How much memory --cache auto may take, GiB."""
    seed: int = 0
    """Of the weights, the order of the data and the noise."""
    device: Annotated[str, unset("cuda where there is one, else cpu", "cpu|cuda|cuda:N")] = ""
    """Where to train."""
    resume: bool = False
    """Go on with the unfinished training in --out."""
    overwrite: bool = False
    """Replace what --out holds."""
    json: bool = False
    """Print one JSON object."""
    overrides: Annotated[dict[str, str], tyro.conf.Suppress] = field(default_factory=dict)


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """(the options of `Args`, all other `--name value` as fields of the recipe)."""
    own = {f"--{n.replace('_', '-')}" for n in Args.__dataclass_fields__} | {"--help", "-h"}
    flags = {"--resume", "--overwrite", "--interrupted", "--json", "--help", "-h"}
    rest: list[str] = []
    fields: dict[str, str] = {}
    i = 0
    while i < len(argv):
        name, equals, value = argv[i].partition("=")
        i += 1
        if not name.startswith("--"):
            rest.append(argv[i - 1])
            continue
        values = [value] if equals else []
        if not equals and name not in flags:
            # a field may take several values: --backbone.widths 64 128
            while i < len(argv) and not argv[i].startswith("--"):
                values.append(argv[i])
                i += 1
                if name in own and name != "--data":
                    break
        if name in own:
            rest += [name, *values]
        elif values:
            fields[name[2:].replace("-", "_")] = " ".join(values)
        else:
            raise UsageError(f"{name} needs a value")
    return rest, fields


def prepare(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    rest, overrides = split_overrides(argv)
    return rest, {"overrides": overrides}


def more_help(argv: list[str]) -> str:
    """The fields of the recipe that is named, where one is: each with its value, its choices and its help."""
    from ...datasets.features import ACTION, STATE, Feature
    from ...policies.parts import settings
    from ...policies.recipes.all import recipe_function, recipe_names

    positional = [a for a in argv if not a.startswith("-")]
    make = recipe_function(positional[0]) if positional else None
    if make is None:
        return f"recipes: {', '.join(recipe_names())}\n`ulna train RECIPE --help` lists the fields of one"
    recipe = make({STATE: Feature((6,), "float32"), ACTION: Feature((6,), "float32")})
    lines = [f"fields of {recipe.name}, where a name that is clear without its part may go without it:"]
    for setting in settings(recipe):
        value = setting.value
        if is_dataclass(value):
            text = type(value).__name__
        else:
            text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        choices = f"  {{{','.join(setting.choices)}}}" if len(setting.choices) > 1 else ""
        lines.append(f"  --{setting.name.replace('_', '-')} {text}{choices}")
        lines += textwrap.wrap(setting.help, 98, initial_indent=" " * 6, subsequent_indent=" " * 6)
    lines.append("a part as a whole is replaced by its name, such as --encoder.image ResNet18")
    return "\n".join(lines)


def with_changes(recipe: Any, changes: dict[str, str]) -> Any:
    """`recipe` with the fields replaced that a command line names. Whole parts first, outer before inner:
    which fields there are, and which short names are clear, is only known once the parts are chosen."""
    from ...policies.parts import override

    rest = {}
    for name in sorted(changes, key=lambda n: n.count(".")):
        if is_dataclass(_at(recipe, name)):
            recipe = override(recipe, {name: changes[name]})
        else:
            rest[name] = changes[name]
    return override(recipe, full_names(recipe, rest))


def _at(recipe: Any, name: str) -> Any:
    for field_name in name.split("."):
        recipe = getattr(recipe, field_name, None)
    return recipe


def full_names(recipe: Any, changes: dict[str, str]) -> dict[str, str]:
    """Short names made long where only one field ends so: `steps` is `training.steps`."""
    from ...policies.parts import leaves

    fields = leaves(recipe)
    result = {}
    for name, value in changes.items():
        if name in fields:
            result[name] = value
            continue
        ends = [n for n in fields if n.endswith(f".{name}")]
        # the training's own field wins over a part's of the same name
        ends = [n for n in ends if n.startswith("training.")] or ends
        if len(ends) == 1:
            result[ends[0]] = value
            continue
        suggestions = [
            f"--{n.replace('_', '-')}"
            for n in (ends or difflib.get_close_matches(name, _names(fields), 3, 0.5))
        ]
        hint = (
            f"did you mean {' or '.join(suggestions)}?"
            if suggestions
            else "`ulna recipes --json` shows its fields"
        )
        raise UsageError(f"the recipe {recipe.name} has no field --{name.replace('_', '-')}: {hint}")
    return result


def _names(fields: dict[str, Any]) -> list[str]:
    return sorted({*fields, *(n.rsplit(".", 1)[-1] for n in fields)})


def run(args: Args, out: Output) -> int:
    from ...datasets.store import EpisodeStore
    from ...policies.recipes.all import recipe_function, recipe_names
    from ...policies.train.data import DataOptions, features_of
    from ...policies.train.loop import Progress, policy_features, train

    make_recipe = recipe_function(args.recipe)
    if make_recipe is None:
        raise unknown("recipe", args.recipe, recipe_names())
    if args.device:
        require_device(args.device)
    keys = words(args.observe) or None
    options = DataOptions(
        episodes=tuple(episode_list(args.episodes)) if args.episodes else None,
        mix=tuple(_number("--mix", w) for w in words(args.mix)),
        rename=pairs("--rename", args.rename, "old=new"),
        weights=args.weights,
        alpha=args.alpha,
        validate=args.validate,
        interrupted=args.interrupted,
        align=args.align,
        tolerance_s=args.tolerance,
        workers=args.workers,
        cache=args.cache,
        cache_bytes=round(args.cache_gb * (1 << 30)),
    )
    if not 0 <= args.validate < 1 or args.workers < 0 or not args.alpha > 0:
        raise UsageError("--validate lies in 0..1, --workers is at least 0, --alpha above 0")
    if args.tolerance is not None and not 0 <= args.tolerance < float("inf"):
        raise UsageError("--tolerance is a time in seconds, at least 0")
    features = features_of([EpisodeStore.open(d) for d in args.data], options.rename, keys)
    recipe = with_changes(make_recipe(policy_features(features, keys)), args.overrides)
    with progress("training") as bar:
        bar_task = bar.add_task("", total=recipe.training.steps, note="")

        def report(p: Progress) -> None:
            bar.update(
                bar_task, completed=p.step, note=f"loss {p.loss:.4f}, {p.examples_per_s:.0f} examples/s"
            )

        result = train(
            recipe,
            args.data,
            args.out,
            options=options,
            augment=words(args.augment),
            keys=keys,
            seed=args.seed,
            device=args.device or None,
            resume=args.resume,
            overwrite=args.overwrite,
            report=report,
            say=lambda sentence: print(sentence, file=sys.stderr),
        )
    answer = {
        "checkpoint": str(result.checkpoint),
        "content_hash": result.content_hash,
        "recipe": recipe.name,
        "steps": result.steps,
        "final_loss": sum(result.losses[-50:]) / len(result.losses[-50:]),
        "seconds": result.seconds,
        "parameters": result.parameters,
        "device": result.device,
    }
    text = (
        f"{result.checkpoint}: {recipe.name}, {result.parameters / 1e6:.2f} M parameters, "
        f"{result.steps} steps in {result.seconds:.0f} s on {result.device}, "
        f"loss {answer['final_loss']:.4f}, {result.content_hash[:8]}"
    )
    out.answer(answer, text)
    return 0


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option} are numbers with commas, not {text!r}") from None
