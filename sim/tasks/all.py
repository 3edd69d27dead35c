"""Every task by its name. Installed packages add theirs in the entry point group `ulna.tasks`."""

from __future__ import annotations

from ...drivers.config import require_known
from ...drivers.plugins import PluginError, lookup, offers
from .handover import Handover
from .insert import Insert
from .lift import Lift
from .push_t import PushT
from .reach import Reach
from .sort import Sort
from .stack import Stack
from .task import Task
from .wipe import Wipe

GROUP = "ulna.tasks"
TASKS: dict[str, type[Task]] = {
    "reach": Reach,
    "lift": Lift,
    "push_t": PushT,
    "stack": Stack,
    "insert": Insert,
    "sort": Sort,
    "wipe": Wipe,
    "handover": Handover,
}


def task_names() -> list[str]:
    """Ours and those of installed packages, of which nothing is imported."""
    return [*TASKS, *offers(GROUP, TASKS)[0]]


def task_type(name: str) -> type[Task]:
    """The task `name`, which may be `package.module:Name`. DeviceError with the nearest names when there is
    none; PluginError when a package offers it and it cannot be used."""
    task = lookup(GROUP, TASKS, name)
    if task is None:
        require_known("task", name, task_names())
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise PluginError(f"{name} is no task: it must be a subclass of ulna.sim.tasks.task.Task")
    return task
