"""The USB numbers by which a SpaceMouse is known."""

from __future__ import annotations

VENDOR = 0x256F
LOGITECH = 0x046D  # sold them once, beside many things that are no SpaceMouse
LOGITECH_PRODUCTS = frozenset(
    (0xC603, 0xC605, 0xC606, 0xC621, 0xC623, 0xC625, 0xC626, 0xC627, 0xC628, 0xC629, 0xC62B)
)


def is_spacemouse(vendor: int, product: int) -> bool:
    """By its USB numbers: one of 3Dconnexion's devices, some of which have no cap, or an old one of
    Logitech's."""
    return vendor == VENDOR or (vendor == LOGITECH and product in LOGITECH_PRODUCTS)
