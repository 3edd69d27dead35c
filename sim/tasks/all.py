"""Every task by its name."""

from __future__ import annotations

from .lift import Lift
from .push_t import PushT
from .reach import Reach
from .task import Task

TASKS: dict[str, type[Task]] = {"reach": Reach, "lift": Lift, "push_t": PushT}
