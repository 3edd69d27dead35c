"""The folder of a policy that LeRobot trained, `pretrained_model`, named `lerobot:PATH`: where it is, what it
sees and commands in our names and units, and its content hash. Neither torch nor LeRobot is loaded.

config.json                  the type and its settings; the shapes of inputs and outputs, without names
model.safetensors            the weights
policy_preprocessor.json     the steps before and after the network, their statistics in files of safetensors
policy_postprocessor.json
train_config.json            the dataset, whose meta/info.json has names, and units where we exported it
ulna.json                    what `ulna data units lerobot:PATH` stated; ours
ulna.dataset.json            names, units and rate, of one that `ulna export --to lerobot` wrote; ours"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ...datasets.features import ACTION, IMAGES, STATE, Feature, Features, bare, is_image
from ...datasets.hub import MODEL, Hub, hub_name
from ...datasets.units import Element, Restated
from ..hashed import STAMP, CheckpointError, read_json, write_json

PREFIX = "lerobot:"
CONFIG, WEIGHTS, TRAINED = "config.json", "model.safetensors", "train_config.json"
STATED, DESCRIBED = "ulna.json", "ulna.dataset.json"
OURS = "ulna"  # the type of a checkpoint of ours in a folder for LeRobot
WITHIN = ("pretrained_model", "checkpoints/last/pretrained_model", "last/pretrained_model")
CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.toml", "*.md")  # all that is fetched: nothing to unpickle
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class LeRobotFolder:
    """What the files of a policy say. keys: LeRobot's name of each of our observations. elements: by vector,
    how LeRobot's numbers become ours, where they are not the same."""

    path: Path
    type: str
    config: Mapping[str, Any]
    features: Features
    keys: Mapping[str, str]
    elements: Mapping[str, tuple[Element, ...]] = field(default_factory=dict)
    control_hz: float | None = None
    robot: str = ""


def is_lerobot(source: str | Path) -> bool:
    """Whether a checkpoint is named as one of LeRobot's."""
    return str(source).startswith(PREFIX)


def checkpoint_folder(source: str | Path) -> Path:
    """The folder of a checkpoint that is named by its path, as `hub:OWNER/NAME[@REVISION]`, or as
    `lerobot:PATH` or `lerobot:USER/NAME` of the hub's cache. CheckpointError in one sentence where there is
    none of LeRobot's, HubError where the hub gives none."""
    if not is_lerobot(source):
        name = hub_name(source)
        return Path(source) if name is None else _pulled(*name)
    name = str(source).removeprefix(PREFIX)
    path = Path(name).expanduser()
    for folder in (path, *(path / inside for inside in WITHIN)):
        if (folder / CONFIG).is_file():
            return folder
    if path.is_dir():
        raise CheckpointError(
            f"{path} holds no policy of LeRobot: name the folder pretrained_model, which has {CONFIG}"
        )
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(f"there is no folder {path} with a policy of LeRobot")
    return _cached(name)


@cache  # the hub is asked once: a process goes on with the commit that it began with
def _pulled(repo: str, revision: str) -> Path:
    return Hub().pull(repo, MODEL, revision, CHECKPOINT_FILES).path


def _cached(repo: str) -> Path:
    """A snapshot in the hub's cache on this computer; nothing is fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        folder = None
    if folder is None or not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"there is no folder {repo}, and the hub's cache on this computer has no policy of that name: "
            f"fetch it with `ulna pull {repo}`"
        )
    return folder


def read_folder(folder: Path) -> LeRobotFolder:
    """CheckpointError in one sentence where the files are none that LeRobot writes."""
    config = read_json(folder / CONFIG)
    kind = config.get("type")
    if not isinstance(kind, str):
        raise CheckpointError(f"{folder / CONFIG} names no type: it is no policy of LeRobot")
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds an adapter, not a policy: merge it into its base with peft, and save that"
        )
    trained, info = _trained_on(folder)
    features, keys = _features(folder, config, info)
    elements: dict[str, tuple[Element, ...]] = {}
    if (folder / STATED).is_file():
        elements = _elements(folder / STATED)
        features = _stated(folder, features, elements)
    fps = info.get("fps")
    return LeRobotFolder(
        folder,
        kind,
        config,
        features,
        keys,
        {k: es for k, es in elements.items() if any(e.converts for e in es)},
        float(fps) if isinstance(fps, int | float) and fps > 0 else None,
        str(info.get("robot_type") or trained.get("robot_type") or ""),
    )


def is_ours(folder: Path) -> bool:
    """Whether a folder for LeRobot holds a checkpoint of ours, which our plug-in loads there."""
    return read_json(folder / CONFIG).get("type") == OURS


def named_hash(source: str | Path) -> str:
    """The content hash that a checkpoint says it has; of one of LeRobot's, of its files. CheckpointError in
    one sentence."""
    folder = checkpoint_folder(source)
    if is_lerobot(source) and not is_ours(folder):
        return content_hash(folder)
    try:
        return str(read_json(folder / STAMP)["sha256"])
    except (CheckpointError, KeyError):
        raise CheckpointError(f"{folder} is not an Ulna checkpoint") from None


def content_hash(folder: Path) -> str:
    """SHA-256 of the folder's JSON and safetensors, by name; what evaluation adds lies deeper."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors") and not path.name.startswith("."):
            with path.open("rb") as file:
                digest.update(f"{path.name} ".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def state_units(folder: Path, restated: Callable[[Features, str], Restated]) -> Features:
    """State what the policy's numbers are called and measured in, where its dataset is not there to say it;
    the features then. Degrees and percent are converted at every decision, so that the policy is one of
    radians."""
    found = read_folder(folder)
    if (folder / STATED).is_file():
        raise CheckpointError(f"{folder} was stated already: take it back with --undo first")
    after = restated(found.features, found.robot)
    elements = {k: [asdict(e) for e in es] for k, es in after.elements.items()}
    write_json(folder / f".{STATED}", {"elements": elements, "notes": dict(after.notes)})
    os.replace(folder / f".{STATED}", folder / STATED)
    return read_folder(folder).features


def undo_stated(folder: Path) -> Features:
    """Take back what `state_units` did."""
    if not (folder / STATED).is_file():
        raise CheckpointError(f"nothing was stated of {folder}")
    (folder / STATED).unlink()
    return read_folder(folder).features


def _trained_on(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(train_config.json, the meta/info.json of the dataset that it names, or what our export says in its
    place); empty where one is not there."""
    if (folder / DESCRIBED).is_file():
        return {}, read_json(folder / DESCRIBED)
    try:
        trained = read_json(folder / TRAINED)
    except CheckpointError:
        return {}, {}
    dataset = trained.get("dataset")
    if not isinstance(dataset, dict):
        return trained, {}
    home = os.environ.get("HF_LEROBOT_HOME") or Path(
        os.environ.get("HF_HOME", "~/.cache/huggingface"), "lerobot"
    )
    root = dataset.get("root") or Path(home, str(dataset.get("repo_id")))
    try:
        return trained, read_json(Path(root).expanduser() / "meta" / "info.json")
    except (CheckpointError, TypeError, OSError):
        return trained, {}


def _features(
    folder: Path, config: Mapping[str, Any], info: Mapping[str, Any]
) -> tuple[Features, dict[str, str]]:
    """(ours, LeRobot's name of each observation)."""
    try:
        inputs = {k: (f["type"], tuple(map(int, f["shape"]))) for k, f in config["input_features"].items()}
        action = tuple(map(int, config["output_features"][ACTION]["shape"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{folder / CONFIG} does not say what the policy sees and commands") from None
    features: Features = {}
    keys: dict[str, str] = {}
    for theirs, (kind, shape) in inputs.items():
        if kind not in ("STATE", "ENV", "VISUAL") or not shape:
            raise CheckpointError(f"the policy in {folder} sees {theirs}, {kind}, which no robot of ours has")
        image = kind == "VISUAL"
        key = theirs
        if image and not is_image(theirs):
            key = IMAGES + theirs.rpartition(".")[2]
        if image and (len(shape) != 3 or shape[0] != 3):
            raise CheckpointError(
                f"the policy in {folder} sees {theirs} as {shape}: pictures are of 3 colours"
            )
        if key in features or (image and "/" in key):
            raise CheckpointError(f"the policy in {folder} sees {theirs}, which cannot be called {key} here")
        keys[key] = theirs
        features[key] = Feature((*shape[1:], shape[0]), "uint8") if image else _vector(theirs, shape, info)
    if len(action) != 1:
        raise CheckpointError(f"the policy in {folder} commands {action}, and an action is a vector")
    features[ACTION] = _vector(ACTION, action, info)
    return features, keys


def _vector(name: str, shape: tuple[int, ...], info: Mapping[str, Any]) -> Feature:
    described = info.get("features", {}).get(name)
    if not isinstance(described, dict) or len(shape) != 1:
        return Feature(shape, "float32")
    names = bare(tuple(_flat(described.get("names"))))
    units = (described.get("info") or {}).get("units") or ()
    return Feature(
        shape,
        "float32",
        names if len(names) == shape[0] else (),
        tuple(map(str, units)) if len(units) == shape[0] else (),
    )


def _flat(names: Any) -> list[str]:
    """LeRobot has had names as a list, a dict of lists and a dict of positions."""
    if isinstance(names, dict):
        if names and all(isinstance(v, int) for v in names.values()):
            return sorted(names, key=lambda n: names[n])
        return [n for v in names.values() for n in _flat(v)]
    if isinstance(names, list):
        return [n for v in names for n in _flat(v)]
    return [] if names is None else [str(names)]


def _elements(path: Path) -> dict[str, tuple[Element, ...]]:
    try:
        return {
            k: tuple(
                Element(str(e["name"]), str(e["unit"]), float(e["scale"]), float(e["offset"])) for e in es
            )
            for k, es in read_json(path)["elements"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not as `ulna data units` wrote it") from None


def _stated(folder: Path, features: Features, elements: Mapping[str, tuple[Element, ...]]) -> Features:
    for key, of in elements.items():
        if key not in (STATE, ACTION) or key not in features or len(of) != features[key].shape[0]:
            raise CheckpointError(f"{folder / STATED} is of another policy: its {key} does not fit")
    return Restated(elements).features(features)
