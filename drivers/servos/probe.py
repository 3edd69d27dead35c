"""Which servos answer on a serial port, at the usual speeds and in both protocols. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .bus import ServoBus, models_of
from .dynamixel import DynamixelBus
from .dynamixel_registers import MODELS as DYNAMIXEL_MODELS
from .feetech import FeetechBus
from .feetech_protocol import MODELS as FEETECH_MODELS

# factory settings first, then what the usual set-up tools write
FEETECH_BAUDS = (1_000_000, 500_000, 115_200)
DYNAMIXEL_BAUDS = (1_000_000, 57_600, 115_200, 2_000_000, 3_000_000, 4_000_000)
FEW_IDS = range(31)  # arms count from 1; all 253 would take half a minute
SLACK_S = 0.02  # an FTDI adapter holds bytes back for 16 ms until its latency timer is set


@dataclass(frozen=True)
class ServoFinding:
    """A servo that answers. protocol: `feetech` or `dynamixel`. baud: the speed at which it answers. model:
    the number in its register. name: what is printed on such a servo."""

    protocol: str
    baud: int
    id: int
    model: int
    name: str


def probe(
    port: str,
    ids: Sequence[int] = FEW_IDS,
    feetech: Iterable[int] = FEETECH_BAUDS,
    dynamixel: Iterable[int] = DYNAMIXEL_BAUDS,
) -> list[ServoFinding]:
    """Every servo that answers. `BusError`: the port is missing, busy or not permitted."""
    findings = []
    for baud in feetech:
        findings += _ask(FeetechBus(port, baud, SLACK_S), ids, "feetech", FEETECH_MODELS)
    for baud in dynamixel:
        findings += _ask(DynamixelBus(port, baud, slack_s=SLACK_S), ids, "dynamixel", DYNAMIXEL_MODELS)
    return findings


def _ask(
    bus: ServoBus, ids: Sequence[int], protocol: str, models: Mapping[int, str]
) -> Iterator[ServoFinding]:
    bus.open()
    try:
        for servo, model in models_of(bus, ids).items():
            yield ServoFinding(protocol, bus.baud, servo, model, models.get(model, f"model {model}"))
    finally:
        bus.close()
