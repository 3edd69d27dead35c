"""LeRobot's words for a robot's joints, and ours: its joints are `shoulder_pan.pos`, of an SO-101 or Koch in
degrees (or in percent) of the calibrated range, grippers in percent of theirs; ours are `shoulder_pan` in
radians. `robot.statement` says what the one is in the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.features import ACTION, POSITION, STATE, Features, bare
from ..datasets.units import Restated
from ..policies.request import Request, ServedPolicy
from ..policies.serving.metadata import Metadata
from .statement import ARMS, GRIPPER, SI, WORDS, Statement, arms_in

POSITIONS = ("rad", "m", "1")  # what a joint's or a gripper's position is in

if TYPE_CHECKING:
    from ..policies.serving.batch import Answers
    from .config import Rig


def in_lerobots(
    features: Features,
    units: str = "degrees",
    calibrations: Mapping[str, Path] | None = None,
    arm: str = "",
    robot: str = "",
) -> Restated:
    """From `features`, in radians, to LeRobot's names and units. units, calibrations, arm: as of `Statement`;
    robot: what the robot is called. ValueError or DeviceError in one sentence: features that are not in
    radians, or percent without the calibration that they are of."""
    unnamed: Features = {}
    for key in (STATE, ACTION):
        if (f := features.get(key)) is None or not f.shape:
            continue
        if not (f.names and f.units and all(f.units)) or set(f.units) & set(SI):
            said = ", ".join(u or "an unknown unit" for u in dict.fromkeys(f.units)) or "no stated unit"
            raise ValueError(
                f"{key} is in {said}: only named joints in radians are put into LeRobot's words; see "
                "`ulna data units`"
            )
        names = [
            n.replace(".", "_") + (POSITION if unit in POSITIONS else "")
            for n, unit in zip(f.names, f.units, strict=True)
        ]
        units_left = tuple("" if unit == "rad" else unit for unit in f.units)
        unnamed[key] = replace(f, names=tuple(names), units=units_left)
    statement = Statement(units, calibrations=calibrations or {}, arm=arm)
    stated = statement.applied(unnamed, robot, convert=False)
    spoken = {
        key: replace(f, units=tuple(e.unit for e in stated.elements[key])) for key, f in unnamed.items()
    }
    back = statement.applied(unnamed, robot).inverse(spoken)
    return replace(back, notes={"words": f"LeRobot's, {units}"})


def usual_units(features: Features, units: str = "degrees") -> str:
    """`units` where LeRobot's own drivers have them, for an SO-101 or Koch; other arms are in radians."""
    names = bare(features[ACTION].names)
    return units if arms_in(names, "") else "radians"


def servo_arms(config: Mapping[str, Any]) -> tuple[dict[str, Path], str]:
    """Of a robot's file: the calibrations of its bus-servo arms, by arm (its only one is ""), and of which
    kind they are; "" for none."""
    tables = {n: t for n, t in config.get("arms", {}).items() if t.get("driver") in ARMS}
    files = {n: Path(str(t.get("calibration", ""))) for n, t in tables.items()}
    kind = next((str(t["driver"]) for t in tables.values()), "")
    if len(config.get("arms", {})) == 1 and files:
        files = {"": next(iter(files.values()))}
    return files, kind


def in_ours(features: Features, rig: Rig) -> Restated:
    """From `features` that are in LeRobot's words, an SO-101's or Koch's joints in degrees or percent and its
    gripper in percent, to those of the robot, by its own calibration; what is in others does not change.
    ValueError or DeviceError in one sentence."""
    moving = [features[k] for k in (STATE, ACTION) if k in features]
    units = {u for f in moving for u in f.units}
    grippers = {u for f in moving for n, u in zip(f.names, f.units, strict=False) if GRIPPER in n}
    servos = ACTION in features and arms_in(bare(features[ACTION].names), "")
    default = next((word for word, unit in WORDS.items() if unit in units & {"deg", "%"}), "")
    if not servos or grippers != {"%"} or not default:
        return Restated()
    calibrations, kind = servo_arms(rig.config)
    return Statement(default, calibrations=calibrations, arm=kind).applied(features, rig.robot.name)


def for_robot[P: ServedPolicy](policy: P, rig: Rig) -> P | Translated:
    """`policy` in the words of the robot: itself, or translated. Errors as `in_ours`."""
    restated = in_ours(policy.metadata.features, rig)
    return Translated(policy, restated) if restated.elements else policy


class Translated:
    """A `ServedPolicy`, or one that decides for many, in other words than its own. ours: from its features to
    what is asked and answered here."""

    def __init__(self, policy: Any, ours: Restated) -> None:
        self.policy, self._ours = policy, ours.trusting()
        self._theirs = ours.inverse(policy.metadata.features)

    @property
    def metadata(self) -> Metadata:
        metadata: Metadata = self.policy.metadata
        features = self._ours.features(metadata.features)
        told = {
            key: replace(f, names=features[k].names, units=features[k].units)
            if (k := _feature(key)) in features
            else f
            for key, f in metadata.conditions.items()
        }
        return replace(metadata, features=features, conditions=told)

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        reply = self.policy.infer(self._asked(Request.from_wire(request)).to_wire())
        return {**reply, "actions": self._ours.values(ACTION, reply["actions"])}

    def decide(self, requests: Sequence[Request]) -> Answers:
        answers: Answers = self.policy.decide([self._asked(r) for r in requests])
        return replace(answers, chunks=self._ours.values(ACTION, answers.chunks))

    def close(self) -> None:
        self.policy.close()

    def _asked(self, request: Request) -> Request:
        observation = {k: self._theirs.values(_feature(k), v) for k, v in request.observation.items()}
        past, previous = (
            None if rows is None else self._theirs.values(ACTION, rows)
            for rows in (request.past, request.previous)
        )
        return replace(request, observation=observation, past=past, previous=previous)


def _feature(key: str) -> str:
    """What the rows under `key` are of: `goal.observation.state` is a state."""
    return next((k for k in (STATE, ACTION) if key.endswith(k)), key)
