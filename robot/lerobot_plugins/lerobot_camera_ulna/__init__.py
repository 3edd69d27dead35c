"""A camera's `"type": "ulna"`."""

from .config_ulna import UlnaCameraConfig

__all__ = ["UlnaCameraConfig"]
