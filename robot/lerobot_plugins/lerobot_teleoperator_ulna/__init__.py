"""`--teleop.type=ulna`."""

from .config_ulna import UlnaTeleoperatorConfig

__all__ = ["UlnaTeleoperatorConfig"]
