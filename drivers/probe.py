"""Which servos hang on a serial port: asked at the usual speeds and in both protocols, with questions alone; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .dynamixel import DynamixelBus
from .dynamixel_registers import MODELS as DYNAMIXEL_MODELS
from .feetech import FeetechBus
from .feetech_protocol import MODELS as FEETECH_MODELS

# factory settings first, then what the usual set-up tools write
FEETECH_BAUDS = (1_000_000, 500_000, 115_200)
DYNAMIXEL_BAUDS = (1_000_000, 57_600, 115_200, 2_000_000, 3_000_000, 4_000_000)
FEW_IDS = range(31)  # arms count from 1; all 253 would take ten seconds


@dataclass(frozen=True)
class Found:
    """protocol: `feetech` or `dynamixel`. model: number as the servo tells it; name: what is printed on such a servo."""

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
    return list(_feetech(port, ids, feetech)) + list(_dynamixel(port, ids, dynamixel))


def _feetech(port: str, ids: Sequence[int], bauds: Iterable[int]) -> Iterator[Found]:
    for baud in bauds:
        bus = FeetechBus(port, baud)
        bus.open()
        try:
            for servo, model in bus.scan(ids).items():
                yield Found("feetech", baud, servo, model, FEETECH_MODELS.get(model, f"model {model}"))
        finally:
            bus.close()


def _dynamixel(port: str, ids: Sequence[int], bauds: Iterable[int]) -> Iterator[Found]:
    for baud in bauds:
        bus = DynamixelBus(port, baud)
        bus.open()
        try:
            for servo, model in bus.scan(ids).items():
                yield Found("dynamixel", baud, servo, model, DYNAMIXEL_MODELS.get(model, f"model {model}"))
        finally:
            bus.close()
