"""GR00T's words for what a policy sees and does: `video.front`, `state.single_arm`, `action.gripper`, by a
`modality.json` as GR00T's datasets have it, or by the names of the joints.

Legend: D elements of a group."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...datasets.features import ACTION, IMAGES, STATE, Feature, Features, bare, image_keys
from .metadata import Metadata

MAX_BYTES = 1 << 20
HAND = "gripper"
LANGUAGE = "annotation.human.task_description"


@dataclass(frozen=True)
class Modality:
    """state, action: the elements of `observation.state` and `action` in each group, in order. video: the
    policy's image by its name there. language: the key of the instruction."""

    state: Mapping[str, tuple[int, ...]]
    action: Mapping[str, tuple[int, ...]]
    video: Mapping[str, str]
    language: str = LANGUAGE

    @staticmethod
    def of(metadata: Metadata, path: str | Path | None = None) -> Modality:
        """By the file `path`, else by the names. ValueError in one sentence where these leave something of
        the policy out."""
        features = metadata.features
        strange = [k for k in features if k not in (STATE, ACTION, *image_keys(features))]
        strange += sorted(set(metadata.conditions) - {"task"})
        if strange:
            raise ValueError(
                f"the policy wants {strange[0]}, for which GR00T's wire has no word: its clients send video, "
                "state and language"
            )
        modality = _named(features) if path is None else _from_file(Path(path), features)
        for key, groups in ((STATE, modality.state), (ACTION, modality.action)):
            if key not in features:
                continue
            covered = sorted(i for indices in groups.values() for i in indices)
            if covered != list(range(features[key].shape[0])):
                raise ValueError(
                    f"{path}: its groups of {key} are not each of the policy's {features[key].shape[0]} "
                    "elements once"
                )
        if missing := sorted(set(image_keys(features)) - set(modality.video.values())):
            raise ValueError(f"{path}: no video is {missing[0]}, which the policy sees")
        return modality


def _named(features: Features) -> Modality:
    groups = {key: _groups(features[key]) if key in features else {} for key in (STATE, ACTION)}
    video = {k.removeprefix(IMAGES): k for k in image_keys(features)}
    return Modality(groups[STATE], groups[ACTION], video)


def _groups(feature: Feature) -> dict[str, tuple[int, ...]]:
    """`left_arm.0`, `left_arm.1` are `left_arm`; an arm's joints `single_arm` and its gripper `gripper`, or
    `left_arm` and `left_gripper` of several; without names all are `single_arm`."""
    names = bare(feature.names) or ("joint",) * feature.shape[0]
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        numbered = re.fullmatch(r"(.+)\.\d+", name)
        arm, _, joint = name.rpartition(".")
        if numbered:
            group = numbered[1]
        elif joint == HAND:
            group = f"{arm}_{HAND}" if arm else HAND
        else:
            group = f"{arm}_arm" if arm else "single_arm"
        groups.setdefault(group, []).append(i)
    return {group: tuple(indices) for group, indices in groups.items()}


def _from_file(path: Path, features: Features) -> Modality:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too long")
        said = json.loads(path.read_text("utf-8-sig"))
        groups = {
            key: {
                str(name): tuple(range(int(part["start"]), int(part["end"])))
                for name, part in said[group].items()
                if part.get("original_key", key) == key
            }
            for group, key in (("state", STATE), ("action", ACTION))
            if key in features
        }
        video = {
            str(name): str((part or {}).get("original_key") or IMAGES + name)
            for name, part in (said.get("video") or {}).items()
        }
        words = [n for n in said.get("annotation") or {} if "description" in n or "action" in n]
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}: GR00T's datasets have it in meta/modality.json") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as GR00T's modality.json: {error!r:.100}") from None
    kept = {name: key for name, key in video.items() if key in features}
    language = f"annotation.{words[0]}" if words else LANGUAGE
    return Modality(groups.get(STATE, {}), groups.get(ACTION, {}), kept, language)


def configs(modality: Modality, metadata: Metadata) -> dict[str, dict[str, Any]]:
    """What `get_modality_config` tells, by modality: the ticks relative to now and the names."""
    seen, ahead = list(range(1 - metadata.n_obs_steps, 1)), list(range(metadata.n_actions_ahead))
    told = {
        "video": (seen, modality.video),
        "state": (seen, modality.state),
        "action": (ahead, modality.action),
        "language": ([0], [modality.language]),
    }
    return {
        name: {"delta_indices": ticks, "modality_keys": list(keys)}
        for name, (ticks, keys) in told.items()
        if keys
    }
