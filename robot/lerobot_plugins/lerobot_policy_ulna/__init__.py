"""`--policy.type=ulna`."""

from .configuration_ulna import UlnaConfig

__all__ = ["UlnaConfig"]
