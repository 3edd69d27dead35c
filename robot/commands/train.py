"""Train a policy on a dataset. Any field of the recipe is an option, such as --horizon 32 --backbone.widths
128 256; `ulna train RECIPE --help` lists them.

A file, --config, has options and fields by the same names, and perhaps tables [[phase]], each a run that
begins from the checkpoint of the one before. Every checkpoint holds the file that repeats it, config.toml."""

from __future__ import annotations

import dataclasses
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from ...datasets.reading.weights import PROGRESS, Weighting
from .bar import progress
from .errors import UsageError, unknown
from .parsing import Output, episode_list, pairs, parse_options, require_device, unset, words
from .recipe_fields import fields_help, with_changes
from .run_file import PHASES_FILE, Layer, options_of, read_run, words_of

WEIGHTINGS = get_args(Weighting)
EXAMPLE = "ulna train flow --data runs/x/data --out runs/x/flow --steps 2500"


@dataclass
class Args:
    recipe: Annotated[tyro.conf.Positional[str], unset("of --config", "RECIPE")] = ""
    """Which policy; `ulna recipes` lists them."""
    data: Annotated[list[str], unset("of --config", "FOLDER")] = field(default_factory=list)
    """Folder of the dataset; several are mixed."""
    out: Annotated[str, unset("of --config", "FOLDER")] = ""
    """Folder of the checkpoint."""
    episodes: Annotated[str, unset("all")] = ""
    """Train on these only, like 0-9,12."""
    observe: Annotated[str, unset("all", "NAMES")] = ""
    """Use these observations only, with commas."""
    mix: Annotated[str, unset("by their number of ticks", "SHARES")] = ""
    """Share of each dataset in a batch, with commas: 0.7,0.3."""
    rename: Annotated[str, unset("none", "OLD=NEW")] = ""
    """Call features of a dataset otherwise, with commas: observation.images.top=observation.images.front."""
    weights: Annotated[str, tyro.conf.arg(metavar=f"{'|'.join(WEIGHTINGS)}|progress:FOLDER")] = "uniform"
    """How episodes count: all alike; by the label `weight`; successes only; by their return, itself or beyond
    what their first state promises; of those in which a person corrected a policy, half the draws the
    person's ticks (iwr; without what made the person take over: sirius), or only those and demonstrations
    (hg-dagger); or each tick by the progress that it led to, by the critic in a folder that `ulna progress`
    made."""
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
    actions: Literal["sent", "requested"] = "sent"
    """Which actions to learn: those that were sent to the arms; or those that were asked for, before the
    safety filter slowed them, for a policy that passes the same filter and should not be slowed twice."""
    told: Literal["task", "steps"] = "task"
    """What a policy is told that is told in words what to do: the task of the episode, in any of its
    wordings; or the first of its steps that is not done (`ulna data relabel --phrases` and `--steps`)."""
    tolerance: Annotated[float | None, unset("two periods and the device's delay", "SECONDS")] = None
    """How old that row may be, s; ticks without one are left out."""
    augment: Annotated[str, unset("none")] = ""
    """Change images while training, with commas: crop,color,blur."""
    workers: int = 0
    """Processes that read and decode; 0: a thread."""
    cache: Literal["auto", "ram", "disk", "none"] = "auto"
    """Keep decoded images: in memory where they fit (auto) or in any case, on disk, or not."""
    cache_gb: Annotated[float | None, unset("a quarter of the free memory, 8 at most", "GIB")] = None
    """How much memory --cache auto may take, GiB."""
    seed: int = 0
    """Of the weights, the order of the data and the noise."""
    device: Annotated[str, unset("cuda where there is one, else cpu", "cpu|cuda|cuda:N")] = ""
    """Where to train."""
    track: Annotated[str, unset("tensorboard", "NAMES")] = "tensorboard"
    """Where the curves go, with commas: tensorboard (into --out), wandb, trackio; or none."""
    config: Annotated[str, unset("none", "FILE.toml")] = ""
    """A file of options and fields; those of the command line win."""
    resume: bool = False
    """Go on with the unfinished training in --out, which needs no other option; or with a finished one, for
    more --steps."""
    overwrite: bool = False
    """Replace what --out holds."""
    json: bool = False
    """Print one JSON object."""
    layers: Annotated[list[Any], tyro.conf.Suppress] = field(default_factory=list)
    phases: Annotated[list[Any], tyro.conf.Suppress] = field(default_factory=list)


HIDDEN = ("layers", "phases")
FLAGS = tuple(f.name for f in dataclasses.fields(Args) if f.type == "bool")
OPTIONS = tuple(f.name for f in dataclasses.fields(Args) if f.name not in HIDDEN)


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """(the options of `Args`, all other `--name value` as fields of the recipe)."""
    own = {f"--{n.replace('_', '-')}" for n in OPTIONS} | {"--help", "-h"}
    flags = {f"--{n}" for n in FLAGS} | {"--help", "-h"}
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
    return rest, {"layers": [Layer("", options_of(rest, FLAGS, ("data",)), overrides)]}


def with_file(args: Args) -> Args:
    """The command line with the options of a config file before its own, where it names one; see `run_file`.
    UsageError where a recipe, data or a folder is missing."""
    (given,) = args.layers
    path = _config_file(given.options)
    if path is not None:
        file, phases = read_run(path, OPTIONS)
        recipes = [layer.options["recipe"] for layer in (file, *phases) if "recipe" in layer.options]
        if args.resume and recipes and args.recipe and args.recipe not in recipes:
            raise UsageError(f"the recipe was {recipes[0]}, not {args.recipe}")
        layers = words_of([file, *phases[:1], given])
        args = _of_words(layers, {"layers": [file, given], "phases": phases})
    elif args.resume and not args.recipe:
        raise UsageError(f"{args.out} holds no unfinished training to resume")
    if not args.recipe:
        raise UsageError("name a recipe, such as `ulna train flow`; `ulna recipes` lists them")
    if missing := [n for n in ("data", "out") if not getattr(args, n)]:
        raise UsageError(f"`ulna train` needs --{missing[0]}, a folder")
    return args


def _of_words(line: list[str], changes: dict[str, Any]) -> Args:
    return parse_options(sys.modules[__name__], "train", line, changes)


def _config_file(options: Mapping[str, Any]) -> Path | None:
    """Which config file the command line names; to resume, the one in --out."""
    if "config" in options:
        return Path("".join(options["config"]))
    if "resume" not in options:
        return None
    if "out" not in options:
        raise UsageError("--resume needs --out: the folder of the unfinished training")
    from ...policies.train.config import CONFIG_FILE

    out = Path("".join(options["out"]))
    return next((out / f for f in (PHASES_FILE, CONFIG_FILE) if (out / f).is_file()), None)


def more_help(argv: list[str]) -> str:
    """The fields of the recipe that is named, where one is."""
    return fields_help(next((a for a in argv if not a.startswith("-")), ""))


def run(args: Args, out: Output) -> int:
    args, opened = with_file(args), {}
    if not args.phases:
        run = plan(args, opened)
        if not args.resume:
            _leave_phases(Path(args.out), args.overwrite)
        out.answer(*_answer(run, _train(run, "training")))
        return 0
    runs = [plan(a, opened) for a in phases(args)]  # all, before hours go into the first
    results = list(_train_phases(runs, Path(args.out)))
    answer, text = _answer(runs[-1], results[-1])
    out.answer({**answer, "phases": [r.args.out for r in runs]}, text)
    return 0


@dataclass(frozen=True)
class Run:
    args: Args
    recipe: Any
    data: Any

    def config(self) -> dict[str, Any]:
        """As it will be written into the checkpoint."""
        from ...policies.train.config import run_config

        a = self.args
        return run_config(
            self.recipe, self.data, words(a.augment), a.seed, a.device, trackers(a.track), a.recipe
        )


def plan(args: Args, opened: dict[str, Any]) -> Run:
    """The data that `args` name, open, and the recipe for them. opened: what is open already, to share."""
    from ...policies.recipes.all import recipe_function, recipe_names
    from ...policies.train.data import DataOptions, open_data
    from ...policies.train.start import started_keys, started_recipe

    make_recipe = recipe_function(args.recipe)
    if make_recipe is None:
        raise unknown("recipe", args.recipe, recipe_names())
    if args.device:
        require_device(args.device)
    options = DataOptions(
        episodes=tuple(episode_list(args.episodes)) if args.episodes else None,
        mix=tuple(_number("--mix", w) for w in words(args.mix)),
        rename=pairs("--rename", args.rename, "old=new"),
        weights=args.weights,
        alpha=args.alpha,
        validate=args.validate,
        interrupted=args.interrupted,
        align=args.align,
        actions=args.actions,
        told=args.told,
        tolerance_s=args.tolerance,
        workers=args.workers,
        cache=args.cache,
        cache_bytes=None if args.cache_gb is None else round(args.cache_gb * (1 << 30)),
    )
    if args.weights not in WEIGHTINGS and not args.weights.startswith(PROGRESS):
        raise unknown("weighting", args.weights, [*WEIGHTINGS, f"{PROGRESS}FOLDER"])
    if not 0 <= args.validate < 1 or args.workers < 0 or not args.alpha > 0:
        raise UsageError("--validate lies in 0..1, --workers is at least 0, --alpha above 0")
    if args.tolerance is not None and not 0 <= args.tolerance < float("inf"):
        raise UsageError("--tolerance is a time in seconds, at least 0")
    start = _start(args)
    observe = words(args.observe) or started_keys(start)
    key = repr((args.data, observe, options))
    if key not in opened:
        opened[key] = open_data(args.data, observe, options)
    recipe = started_recipe(make_recipe(opened[key].features), start)
    for layer in args.layers:
        recipe = with_changes(recipe, layer.fields, layer.source, OPTIONS)
    return Run(args, recipe, opened[key])


def _start(args: Args) -> str:
    """The checkpoint that training begins from; "" where there is none."""
    starts = [layer.fields.get(name) for layer in args.layers for name in ("training.start", "start")]
    return str(next(filter(None, reversed(starts)), ""))


def phases(args: Args) -> list[Args]:
    """Each phase as a run of its own: it begins from the checkpoint of the one before, unless it says
    otherwise, and the last one is what the folder --out holds."""
    file, given = args.layers
    runs = []
    for i, phase in enumerate(args.phases):
        layers = [file, phase, given]
        if i and not {"start", "training.start"} & set(phase.fields):
            layers.append(Layer("", {}, {"training.start": str(phase_folder(args.out, i))}))
        folder = args.out if i == len(args.phases) - 1 else str(phase_folder(args.out, i + 1))
        changes = {"out": folder, "layers": layers}
        runs.append(_of_words(words_of(layers), changes))
    return runs


def phase_folder(out: str, number: int) -> Path:
    return Path(out) / f"phase-{number}"


def _train_phases(runs: Sequence[Run], out: Path) -> Iterator[Any]:
    """One after the other; to resume, those that are complete are left as they are."""
    from ...policies.train.state import is_unfinished

    first = runs[0].args
    if not first.resume:
        _begin_phases(runs, out, first.overwrite)
    for i, run in enumerate(runs, 1):
        folder, name = Path(run.args.out), f"phase {i} of {len(runs)}"
        unfinished = is_unfinished(folder)
        if first.resume and (folder / "hash.json").exists() and not unfinished:
            yield _complete(run, name)
        else:
            args = replace(run.args, resume=first.resume and unfinished)
            yield _train(replace(run, args=args), name)


def _begin_phases(runs: Sequence[Run], out: Path, overwrite: bool) -> None:
    """Write the file that a resume reads, after looking that no phase discards another training."""
    from ...policies.train.config import to_toml, write_atomically
    from ...policies.train.state import require_unused

    for run in runs:
        if overwrite:  # else a resume would take an older checkpoint for a phase of this run
            (Path(run.args.out) / "hash.json").unlink(missing_ok=True)
        else:
            require_unused(Path(run.args.out))
    configs = [run.config() for run in runs]
    for i, config in enumerate(configs[1:], 1):
        if config["training"]["start"] == str(phase_folder(str(out), i)):
            del config["training"]["start"]  # it follows from the order
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / PHASES_FILE, to_toml({"phase": configs}))


def _complete(run: Run, name: str) -> Any:
    """The result of a phase that was trained before. TrainingError where it was told otherwise."""
    from ...policies.checkpoint import read_train, verify_checkpoint
    from ...policies.train.config import CONFIG_FILE, changed, seen
    from ...policies.train.error import TrainingError
    from ...policies.train.loop import TrainResult

    folder = Path(run.args.out)
    was = seen(tomllib.loads((folder / CONFIG_FILE).read_text()))
    if changes := changed(was, seen(run.config())):
        raise TrainingError(f"{'; '.join(changes)}: {name} is complete, in {folder}")
    r = read_train(folder)
    return TrainResult(
        folder, verify_checkpoint(folder), r.steps, r.losses, r.seconds, r.parameters, r.device
    )


def _leave_phases(out: Path, overwrite: bool) -> None:
    """Where `out` holds a run of phases, a single run replaces it, or is refused."""
    from ...policies.train.error import TrainingError

    if (out / PHASES_FILE).exists() and not overwrite:
        raise TrainingError(
            f"{out} holds a training of several phases: go on with --resume, or discard it with --overwrite"
        )
    (out / PHASES_FILE).unlink(missing_ok=True)


def _train(run: Run, name: str) -> Any:
    from ...policies.train.loop import Progress, train

    args = run.args
    with progress(name, run.recipe.training.steps) as bar:

        def report(p: Progress) -> None:
            bar.update(p.step, note=f"loss {p.loss:.4f}, {p.examples_per_s:.0f} examples/s")

        return train(
            run.recipe,
            run.data,
            args.out,
            augment=words(args.augment),
            seed=args.seed,
            device=args.device or None,
            track=trackers(args.track),
            called=args.recipe,
            resume=args.resume,
            overwrite=args.overwrite,
            report=report,
            say=lambda sentence: print(sentence, file=sys.stderr),
        )


def _answer(run: Run, result: Any) -> tuple[dict[str, Any], str]:
    answer = {
        "checkpoint": str(result.checkpoint),
        "content_hash": result.content_hash,
        "recipe": run.recipe.name,
        "steps": result.steps,
        "final_loss": sum(result.losses[-50:]) / len(result.losses[-50:]),
        "seconds": result.seconds,
        "parameters": result.parameters,
        "device": result.device,
    }
    text = (
        f"{result.checkpoint}: {run.recipe.name}, {result.parameters / 1e6:.2f} M parameters, "
        f"{result.steps} steps in {result.seconds:.0f} s on {result.device}, "
        f"loss {answer['final_loss']:.4f}, {result.content_hash[:8]}"
    )
    return answer, text


def trackers(text: str) -> list[str]:
    return [w for w in words(text) if w != "none"]


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option} are numbers with commas, not {text!r}") from None
