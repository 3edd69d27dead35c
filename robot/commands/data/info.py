"""Say what is in a dataset: episodes, measured rates, tasks, features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tyro

from ..parsing import Output

EXAMPLE = "ulna data info runs/x/data"


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset."""
    json: bool = False
    """Print one JSON object."""


def run(args: Args, out: Output) -> int:
    from ....datasets.info import describe
    from ....datasets.opened import open_dataset

    d = describe(open_dataset(args.data, recover=False))
    out.answer(d, text_of(d))
    return 0


def text_of(d: dict[str, Any]) -> str:
    """What `describe` found, for people."""
    size = f"{d['size_bytes'] / 1e6:.1f} MB, robot {d['robot'] or 'unknown'}"
    open_ended = d["episodes"] - d["successes"] - d["failures"]
    lines = [
        (
            f"{d['path']}: {d['episodes']} episodes, {d['frames']} frames, {d['seconds']:.1f} s at "
            f"{d['fps']:g} Hz, {size}"
        ),
        f"outcomes: {d['successes']} succeeded, {d['failures']} failed, {open_ended} not judged",
        f"agents: {', '.join(filter(None, d['agents'])) or 'unknown'}",
        "tasks:",
        *(f"  {t}" for t in d["tasks"]),
        "streams:",
    ]
    for key, feature in d["features"].items():
        rate = d["rates"].get(key)
        rate_text = f"{rate['hz']:g} Hz measured, jitter {rate['jitter_ms']:g} ms" if rate else "rate unknown"
        how = d["storage"].get(key)
        codec = f", {how['codec']}{' ' + str(how['quality']) if 'quality' in how else ''}" if how else ""
        lines.append(f"  {key}: {feature['dtype']} {tuple(feature['shape'])}, {rate_text}{codec}")
        if feature["names"]:
            lines.append(f"    {', '.join(feature['names'])}")
        lines += _of_units(key, feature, d["path"])
    if d["cut_off"]:
        lines.append(f"cut off and recovered: episodes {', '.join(map(str, d['cut_off']))}")
    if d["damaged"]:
        lines.append(f"damaged: episodes {', '.join(map(str, d['damaged']))} (ulna data check {d['path']})")
    if d["dropped"]:
        losses = ", ".join(f"{n} of {key}" for key, n in d["dropped"].items())
        lines.append(f"rows lost while recording: {losses}")
    if d["trash"]:
        lines.append(f"in the trash: {d['trash']} episodes (ulna data restore {d['path']} --list)")
    if d["interrupted"]:
        lines.append(
            f"being recorded or cut off, and not part of the data: {', '.join(d['interrupted'])} "
            f"(ulna data recover {d['path']})"
        )
    if d["provenance"]:
        lines.append("provenance:")
        lines += [f"  {key}: {_in_words(value)}" for key, value in d["provenance"].items() if value]
    for note, episodes in d["notes"].items():
        lines.append(f"{note}: episodes {', '.join(map(str, episodes))}")
    return "\n".join(lines)


def _of_units(key: str, feature: dict[str, Any], path: str) -> list[str]:
    """The units of a vector, or that what moves an arm states none."""
    from ....datasets.features import moves_an_arm

    if any(feature["units"]) and len(feature["shape"]) == 1:
        return [f"    in {', '.join(u or 'an unknown unit' for u in dict.fromkeys(feature['units']))}"]
    if not moves_an_arm(key):
        return []
    names = "" if feature["names"] else " [--names …]"
    state = f"ulna data units {path} --units radians|degrees|percent{names}"
    return [f"    its unit is not stated, and no robot takes a policy of it before: {state}"]


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} → {v}" for k, v in value.items())
    if isinstance(value, list) and len(value) > 1 and any(": " in str(v) for v in value):
        return "".join(f"\n    {v}" for v in value)  # sentences
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
