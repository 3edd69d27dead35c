"""The servos of an arm get their ids, one after the other; then all are looked at together."""

from __future__ import annotations

import numpy as np

from ...drivers.arm import DeviceError
from ...drivers.servos.group import ServoGroup
from ...drivers.servos.identity import FACTORY_ID, Answer, assign, check_supply, look
from ..undisturbed import undisturbed
from .guide import Guide

SAME_SUPPLY_V = 2.0
THOROUGH_AFTER = 3  # looks in vain at the usual speeds, before all speeds and ids are tried


def set_ids(guide: Guide, group: ServoGroup) -> bool:
    """Give each servo its id and speed. Returns False when all had them already. DeviceError: a servo does
    not take them, or was waited for in vain."""
    if group.bus.baud not in group.family.bauds:
        speeds = ", ".join(map(str, group.family.bauds))
        raise DeviceError(f"the robot's file asks for {group.bus.baud} baud; its servos know {speeds}")
    if _is_complete(group):
        guide.say("All servos answer with their ids: nothing to set.")
        return False
    n = len(group.ids)
    guide.say(
        f"Each of the {n} servos gets its own id. Switch the power on. When a servo is asked for, connect it "
        "to the adapter by itself, with no other servo behind it: it is seen at once."
    )
    done: dict[int, str] = {}
    for j in reversed(range(n)):  # from the gripper: so the factory's id 1 is free until the last has it
        _set_one(guide, group, j, done)
        done[group.ids[j]] = group.joints.names[j]
    return True


def _set_one(guide: Guide, group: ServoGroup, j: int, done: dict[int, str]) -> None:
    name, servo, family = group.joints.names[j], group.servos[j], group.family
    expected = family.models.get(servo.model, str(servo.model))
    looks, refused = 0, None
    guide.say(f"Connect the servo of {name} ({expected}), it alone.")

    def alone() -> Answer | None:
        nonlocal looks, refused
        looks += 1
        thorough = looks % (THOROUGH_AFTER + 1) == 0
        bauds = list(family.bauds) if thorough else _usual(group)
        found = look(group.bus, family, bauds, thorough)
        if found.alone is not None and not thorough:
            found = look(group.bus, family, family.bauds)  # does another hide at some other speed?
        if found.clash or len(found.answers) > 1:
            ids = ", ".join(str(a.id) for a in found.answers)
            same = (
                "several servos answer at once as one"
                if found.clash
                else f"{len(found.answers)} servos answer"
            )
            guide.say(f"  {same} (id {ids or 'unclear'}): leave that of {name} alone on the cable.")
            return None
        if (answer := found.alone) is None:
            if thorough:
                guide.say(
                    f"  No {family.protocol} servo answers at any speed: is the power on, and the cable in? "
                    "(An SO-101 has Feetech servos, a Koch Dynamixel ones.)"
                )
            refused = None  # another may come with the same id
            return None
        if answer.model != servo.model:
            model = family.models.get(answer.model, f"servo of model {answer.model}")
            guide.say(f"  This is a {model}; {name} has a {expected}: connect that one.")
            return None
        if answer.id in done and answer.baud == group.bus.baud:
            guide.say(f"  This is still the servo of {done[answer.id]} (id {answer.id}): take it off.")
            return None
        return answer if answer != refused else None

    while True:
        answer = guide.wait(alone, f"the servo of {name}")
        if (answer.id, answer.baud) == (servo.id, group.bus.baud):
            guide.say(f"  It has the id {servo.id} already.")
            return
        if answer.id in (FACTORY_ID, servo.id) or guide.confirm(
            f"  It answers as {answer.id}: it was set before. Is it that of {name}, to become {servo.id}?"
        ):
            break
        guide.say(f"  Then connect the servo of {name}.")
        refused = answer
    with undisturbed():
        assign(group.bus, family, answer, servo.id, group.bus.baud)
    now = f"id {servo.id} at {group.bus.baud}"
    guide.say(f"  {expected}, id {answer.id} at {answer.baud} baud: now {now}. Take it off.")


def _usual(group: ServoGroup) -> list[int]:
    return list(dict.fromkeys((group.bus.baud, group.family.factory_baud)))


def _is_complete(group: ServoGroup) -> bool:
    """Whether the servos of the arm, and no others, answer with their ids."""
    found = look(group.bus, group.family, _usual(group))
    expected = {(servo.id, servo.model, group.bus.baud) for servo in group.servos}
    return not found.clash and {(a.id, a.model, a.baud) for a in found.answers} == expected


def check_chain(guide: Guide, group: ServoGroup) -> list[float]:
    """See that all servos answer in one chain, with a sound supply. Returns what each measures, V.
    DeviceError: a servo is of the wrong model, or gets a voltage that it does not take."""
    if not _is_complete(group):
        guide.say("Now connect all servos in one chain, as in the built arm.")

        def complete() -> bool | None:
            found = look(group.bus, group.family, [group.bus.baud])
            there = {answer.id for answer in found.answers}
            missing = [group.name(j) for j, servo in enumerate(group.ids) if servo not in there]
            if found.clash:
                guide.say("  Two servos answer with one id: run this again with one servo at a time.")
            elif 0 < len(missing) < len(group.ids):
                guide.say(f"  Not there yet: {', '.join(missing)}.")
            return True if not missing and not found.clash else None

        guide.wait(complete, "all servos in one chain")
    group.bus.close()
    group.bus.open()
    group.check_models()
    volts, remark = check_supply(group)
    guide.say(
        f"All {len(volts)} servos answer; they measure {_spans(volts)}{f': {remark}' if remark else ''}."
    )
    return volts.tolist()


def _spans(volts: np.ndarray) -> str:
    """`5.0 V and 11.9 to 12.1 V`: a Koch has two supplies."""
    supplies: list[list[float]] = []
    for v in sorted(volts.tolist()):
        if supplies and v - supplies[-1][0] < SAME_SUPPLY_V:
            supplies[-1].append(v)
        else:
            supplies.append([v])
    spans = (f"{s[0]:.1f}" if s[-1] - s[0] < 0.05 else f"{s[0]:.1f} to {s[-1]:.1f}" for s in supplies)
    return " and ".join(f"{span} V" for span in spans)
