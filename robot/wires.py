"""Other projects' wires beside our own, as `ulna serve` is asked for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..datasets.features import ACTION, STATE
from ..datasets.units import Element
from .statement import WORDS, Statement, calibration_files

if TYPE_CHECKING:
    from ..policies.serving.metadata import Metadata
    from ..policies.serving.wire import Wire


def lerobot_wire(
    metadata: Metadata, host: str, port: int, units: str = "", calibration: str = "", arm: str = ""
) -> Wire:
    """LeRobot's async inference. units: what the client's robot measures joints in, as in `Statement`, where
    the policy is in radians; calibration: LeRobot's file of that robot, which percent need. ValueError or
    DeviceError in one sentence where the units do not fit."""
    from ..policies.serving.lerobot_wire import LeRobotWire

    if calibration and not units:
        raise ValueError("--lerobot-calibration says what --lerobot-units are of: degrees or percent")
    elements = _elements(metadata, Statement(units, calibrations=calibration_files(calibration), arm=arm))
    return LeRobotWire(metadata, host, port, elements)


def _elements(metadata: Metadata, said: Statement) -> Mapping[str, tuple[Element, ...]]:
    """How the client's numbers become the policy's; none where nothing is said."""
    if not said.units:
        return {}
    moving = {k: f for k, f in metadata.features.items() if k in (STATE, ACTION)}
    for key, feature in moving.items():
        if set(feature.units) & {"deg", "%"}:
            raise ValueError(
                f"the policy's {key} is in {', '.join(dict.fromkeys(feature.units))} as LeRobot's robots "
                "are: leave --lerobot-units out"
            )
        if not all(feature.units) or len(feature.units) != feature.shape[0]:
            raise ValueError(
                f"the policy does not say what its {key} is in: state it with `ulna data units CHECKPOINT "
                f"--units {'|'.join(WORDS)}`"
            )
    unstated = {k: replace(f, units=()) for k, f in moving.items()}
    elements = said.applied(unstated, "").elements
    for key, feature in moving.items():
        for element, unit in zip(elements[key], feature.units, strict=True):
            if element.unit != unit:
                raise ValueError(
                    f"the client's {element.name} becomes {element.unit or 'a number without a unit'}, and "
                    f"the policy's is in {unit}: say what it is in with --lerobot-units "
                    f"{said.units},{element.name}=UNIT"
                )
    return elements


def groot_wire(metadata: Metadata, host: str, port: int, modality: str = "") -> Wire:
    """GR00T's ZMQ. modality: a `modality.json`; empty: groups by the names of the joints."""
    from ..policies.serving.groot_modality import Modality
    from ..policies.serving.groot_wire import GR00TWire

    return GR00TWire(metadata, host, port, Modality.of(metadata, modality or None))
