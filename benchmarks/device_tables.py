"""The device tables and paragraphs of docs/measured.md, from benchmarks/results/ alone."""

from __future__ import annotations

import re
from typing import Any


def demo_twin(d: dict[str, Any]) -> list[str]:
    phases = ", ".join(f"{n} {s:.0f} s" for n, s in d["phases_s"].items())
    low, high = d["wilson_95"]
    return [
        "**`make demo-twin`**: the whole loop through the real drivers on device twins: a scripted hand at",
        "an SO-101 leader, 60 episodes of `lift` with two cameras, `flow` from the joints and the cube's",
        "place in both pictures, deployed to the follower's twin for up to 15 s and judged by its ground",
        "truth:",
        (
            f"**{d['successes']} of {d['episodes']} unseen seeds succeeded** "
            f"(95 % interval {100 * low:.0f} to {100 * high:.0f} %), "
            f"{d['late_ticks']} of {d['ticks']} control ticks late. "
            f"{sum(d['phases_s'].values()) / 60:.1f} minutes ({phases}). "
            "Its options were chosen on other seeds."
        ),
        "",
    ]


def servo_rates(d: dict[str, Any]) -> list[str]:
    lines = [
        "**Servo buses**: six servos, sync read of the positions and sync write of the goals per cycle,",
        "twin in another process, bytes paced at 1 Mbaud:",
        "",
        "| protocol | client | cycles a second | cycle p50, p99 | CPU of a core |",
        "|---|---|---|---|---|",
    ]
    for protocol in ("feetech", "dynamixel"):
        for client, r in d[protocol].items():
            cycle = f"{r['p50_ms']:.2f}, {r['p99_ms']:.2f} ms"
            cpu = f"{100 * r['cpu_of_a_core']:.0f} %"
            lines.append(f"| {protocol} | {client} | {r['rate_hz']:.0f} | {cycle} | {cpu} |")
    ours = {k: v for k, v in d["import_s"].items() if k != "numpy"}
    slowest = max(ours, key=lambda k: ours[k])
    wire = d["at_most_hz_on_the_wire"]
    lines += [
        "",
        (
            f"The wire itself allows {wire['feetech']} (Feetech), {wire['dynamixel']} and "
            f"{wire['dynamixel fast']} (Dynamixel, fast sync read). Importing a driver takes at most "
            f"{ours[slowest]:.2f} s (`{slowest}`; numpy alone {d['import_s']['numpy']:.2f} s), without "
            "torch or lerobot."
        ),
        "",
    ]
    return lines


def cameras(d: dict[str, Any]) -> list[str]:
    lines = [
        "**Cameras**: age of a frame, MJPEG over HTTP at 30 Hz, 640×480, the time painted into the pixels:",
        "",
        "| reader | on arrival p50, p99 | at `latest()`, asked at random p50 | after a pause of 2 s |",
        "|---|---|---|---|",
    ]
    for reader, r in d["age"].items():
        pause = next(v for k, v in r.items() if k.startswith("age_after"))
        if "age_on_arrival_ms" in r:
            a, b = r["age_on_arrival_ms"], r["age_at_latest_polled_at_random_ms"]
            arrival = f"{a['p50']:.1f}, {a['p99']:.1f} ms"
            lines.append(f"| {reader} | {arrival} | {b['p50']:.1f} ms | {max(pause):.0f} ms |")
        else:
            lines.append(f"| {reader} | – | – | {max(pause):.0f} ms |")
    ring = d["ring_640x480"]
    lines += [
        "",
        (
            "Asked at a random time, the newest frame is on average half a period old (16.7 ms at 30 Hz) "
            "before anything is added, so that the target of 5 ms at `latest()` holds only where it is "
            "asked as a frame arrives: that is the first column."
        ),
        "",
        (
            f"Reading a 640×480 frame from the shared ring takes {ring['read_us']['p50']:.0f} µs (p50; a "
            f"plain copy {ring['plain_copy_us']['p50']:.0f} µs), writing one {ring['write_us']['p50']:.0f} "
            "µs."
        ),
        "",
    ]
    return lines


def faults(d: dict[str, Any]) -> list[str]:
    lines = [
        "Made by `benchmarks/faults.py`: the real driver at its twin, all joints of an arm on sines at 100",
        "commands a second, which go on whatever the driver says. Told: what it says first. Refused: from",
        "when on it takes no command, and how far any joint then goes until it does again; where nothing",
        "stands there the arm goes on following.",
        "",
        "| driver | fault | told | noticed after | commands refused | working again after |",
        "|---|---|---|---|---|---|",
    ]
    for driver, rows in d["drivers"].items():
        for fault, r in rows.items():
            message = _short(r["told"]) if r["noticed"] else "nothing: it works on"
            notice = f"{1e3 * r['notice_s']:.0f} ms" if r["noticed"] else "–"
            refused = "–"
            if r["refused_after_s"] is not None:
                refused = f"after {1e3 * r['refused_after_s']:.0f} ms, moved {r['moved_rad']:.3f} rad"
            again = "–"
            if not r["recovered"]:
                again = "**not**"
            elif r["noticed"]:
                again = f"{1e3 * r['recover_s']:.0f} ms{', by `enable`' if r['by_enable'] else ''}"
            lines.append(f"| {driver} | {fault} | {message} | {notice} | {refused} | {again} |")
    return [*lines, "", f"Left out: {'; '.join(d['left_out'])}.", ""]


def soak(d: dict[str, Any]) -> list[str]:
    judge = d["judge"]
    lines = [
        "**Random faults**, all of the table above, up to two at once, changed every half to three",
        "seconds, at 100 Hz, by `benchmarks/soak.py`: its user commands whatever is read, and enables an",
        "arm that has refused for a third of a second. The judge sees the twin's truth: stale is a valid",
        "reading older than",
        (
            f"{judge['fresh_s']:g} s; wrong is one further than {judge['true_rad']:g} rad from where the "
            f"joint was about its capture time (as near as the question was under way, "
            f"{judge['within_ms']:g} ms at most), at up to {judge['rad_per_s']:g} rad/s. Leaders and "
            "cameras, which nobody commands, are not in it."
        ),
        "",
        (
            "| driver | minutes | faults | ticks | all joints valid | commands refused | exceptions "
            "| stale taken as fresh | wrong taken as valid | torque that nobody enabled |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for driver, s in d["arms"].items():
        shares = " | ".join(f"{100 * s[n] / s['ticks']:.0f} %" for n in ("valid", "refused"))
        lines.append(
            f"| {driver} | {s['seconds'] / 60:g} | {sum(s['injected'].values())} | {s['ticks']} | {shares} "
            f"| {s['exceptions']} | {s['stale_as_fresh']} | {s['wrong_as_valid']} | {s['torque_uninvited']} |"
        )
    return [*lines, ""]


def _short(text: str) -> str:
    text = text.replace("|", "/")
    text = re.sub(r"http://127\.0\.0\.1:\d+", "http://CAMERA", text)
    return text if len(text) <= 160 else text[:157] + "…"
