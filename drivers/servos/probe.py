"""Which servos hang on a serial port: asked at the usual speeds and in both protocols, with questions alone;
nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .bus import ServoBus, who_answers
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
class Found:
    """protocol: `feetech` or `dynamixel`. model: number as the servo tells it; name: what is printed on such
    a servo."""

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
) -> list[Found]:
    """Every servo that answers. `BusError`: the port is missing, busy or not permitted."""
    found = []
    for baud in feetech:
        found += _ask(FeetechBus(port, baud, SLACK_S), ids, "feetech", FEETECH_MODELS)
    for baud in dynamixel:
        found += _ask(DynamixelBus(port, baud, slack_s=SLACK_S), ids, "dynamixel", DYNAMIXEL_MODELS)
    return found


def _ask(bus: ServoBus, ids: Sequence[int], protocol: str, models: Mapping[int, str]) -> Iterator[Found]:
    bus.open()
    try:
        for servo, model in who_answers(bus, ids).items():
            yield Found(protocol, bus.baud, servo, model, models.get(model, f"model {model}"))
    finally:
        bus.close()
