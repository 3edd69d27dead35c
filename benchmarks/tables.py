"""Put the measured numbers into the README, between its two markers, from benchmarks/results/ alone.

python benchmarks/tables.py                                    rewrite the tables
python benchmarks/tables.py --demo runs/demo --real runs/demo-real     take in what the demos wrote, then rewrite
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import device_tables
import results

README = Path(__file__).parents[1] / "README.md"
DEVICES = README.parent / "docs" / "devices.md"
BEGIN, END = "<!-- numbers: written by benchmarks/tables.py -->", "<!-- /numbers -->"


def load(name: str) -> dict[str, Any] | None:
    path = results.RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def percent(interval: list[float]) -> str:
    return f"{100 * interval[0]:.0f} to {100 * interval[1]:.0f} %"


def demo(d: dict[str, Any]) -> list[str]:
    phases = ", ".join(f"{n} {s:.0f} s" for n, s in d["phases_s"].items())
    ms = d["latency_ms"]
    rate = f"**{d['successes']} of {d['episodes']} succeeded** (95 % interval {percent(d['wilson_95'])})"
    cost = f"{d['nfe_per_decision']:g} network evaluations a decision, latency p50 {ms['p50']:.0f} ms, p99 {ms['p99']:.0f} ms"
    return [
        "**`make demo`**: 100 expert demonstrations of `lift` on the SO-101, `flow` from state, 50 unseen seeds through",
        f"the server: {rate}; {cost}.",
        f"{sum(d['phases_s'].values()) / 60:.1f} minutes ({phases}), peak {d['peak_memory_gib']} GiB.",
        "",
    ]


def real(d: dict[str, Any]) -> list[str]:
    rows = []
    for name, words in (
        ("policy", "flow, images and state"),
        ("hold", "hold the last command"),
        ("extrapolate", "linear extrapolation"),
    ):
        e = d["relative_error"][name]
        rows.append(
            f"| {words} | {e['mean']:.3f} | {e['bootstrap_95'][0]:.3f} to {e['bootstrap_95'][1]:.3f} |"
        )
    differences = "; ".join(
        f"policy − {n}: {c['difference']:+.3f} ({c['bootstrap_95'][0]:+.3f} to {c['bootstrap_95'][1]:+.3f})"
        for n, c in d["comparisons"].items()
    )
    return [
        "**`make demo-real`** on 12 teleoperated episodes of a Unitree G1 (26 joints, one camera at 96×96; trained on ten, open loop on two):",
        "",
        "| predictor of the next commands | error / spread of a joint | 95 % interval |",
        "|---|---|---|",
        *rows,
        "",
        f"Paired differences, block bootstrap: {differences}. {sum(d['phases_s'].values()) / 60:.1f} minutes.",
        "The demo's options (a second of commands, measured from the last one) were chosen while looking at these same two",
        "episodes, so another split may show a smaller margin.",
        "",
    ]


def experts(d: dict[str, Any]) -> list[str]:
    lines = ["| expert | robot | solved | 95 % interval | median episode |", "|---|---|---|---|---|"]
    for r in d["rows"]:
        if r["agent"] == "expert":
            n = int(r["seeds"].split()[-1]) + 1
            noise = f", disturbed by {1000 * r['noise_m']:g} mm" if r["noise_m"] else ""
            lines.append(
                f"| {r['task']}{noise} | {r['robot']} | {r['successes']} of {n} | {percent(r['wilson_95'])} | {r['median_seconds_simulated']:.1f} s |"
            )
    held = [r for r in d["rows"] if r["agent"] == "hold"]
    if held:
        lines += [
            "",
            f"Doing nothing solves {sum(r['successes'] for r in held)} of {sum(int(r['seeds'].split()[-1]) + 1 for r in held)}.",
        ]
    return [*lines, ""]


def speed(
    steps: dict[str, Any] | None, train: dict[str, Any] | None, serving: dict[str, Any] | None
) -> list[str]:
    lines = ["| measured | Ulna | beside, in the same run |", "|---|---|---|"]
    if steps:
        for robot in ("so101", "panda"):
            r = steps[robot]
            lines.append(
                f"| `lift` from state, {robot}, environment steps/s | {r['env_steps_per_s']} | {r['physics_alone_per_s']} PyBullet's physics alone |"
            )
    if train:
        u, lr = train["ulna"], train["lerobot"]
        lines.append(
            f"| `diffusion_unet` training, steps/s at batch {train['batch']} (peak memory) | {u['steps_per_s']} ({u['peak_memory_gib']} GiB) "
            f"| {lr['steps_per_s']} ({lr['peak_memory_gib']} GiB) LeRobot's DiffusionPolicy |"
        )
    if serving:
        for name in ("state", "state and two 224x224 images"):
            u, w = serving[name]["ulna"], serving[name]["plain_websockets"]
            lines.append(
                f"| round trip, null policy, {name}: p50, p99 | {u['p50_ms']}, {u['p99_ms']} ms | {w['p50_ms']}, {w['p99_ms']} ms plain websockets |"
            )
    return [*lines, ""] if len(lines) > 2 else []


def recording(d: dict[str, Any]) -> list[str]:
    lines = [
        f"**Recording** two 640×480 cameras at 30 Hz and 7 joints at 100 Hz for {d['seconds']:g} s; lateness is when a control tick's work is done,",
        "after its due time. LeRobot records rows at 30 Hz.",
        "",
        "| recorder | lateness p50, p99 | lost | finishing the episode | memory, all processes | on disk |",
        "|---|---|---|---|---|---|",
    ]
    for arm, r in d["arms"].items():
        if "lateness_ms" not in r:
            lines.append(f"| {arm} | gave up after {r.get('gave_up_after_s', 0):g} s | | | | |")
            continue
        late = r["lateness_ms"]
        lost = "–" if arm == "nothing" else str(r["dropped"]) if "dropped" in r else "not told"
        finish = f"{r['finish_s']:.2f} s" if "finish_s" in r else "–"
        size = f"{r['size_mb']:.0f} MB" if r["size_mb"] > 1 else "–"
        lines.append(
            f"| {arm} | {late['p50']:.2f}, {late['p99']:.2f} ms | {lost} | {finish} | {r['memory_mb']:.0f} MB | {size} |"
        )
    return [*lines, ""]


def kills(d: dict[str, Any]) -> list[str]:
    lines = [
        f"**`kill -9`** at {d['trials']} random instants, then every row of every episode read again:",
        "",
        "| killed while | kills | rows acknowledged | lost or wrong | finished episodes changed | stores that did not open |",
        "|---|---|---|---|---|---|",
    ]
    for kind, r in d["kinds"].items():
        bad = r["lost_rows"] + r["wrong_rows"]
        lines.append(
            f"| {kind} | {r['kills']} | {r['acknowledged_rows'] or '–'} | {bad} | {r['changed_episodes']} | {r['failed_to_open']} |"
        )
    return [*lines, ""]


def reading(d: dict[str, Any]) -> list[str]:
    lines = [
        "**Reading** random windows (two observations of two cameras, 16 actions; batches of 64), windows a second:",
        "",
        "| images | store | store, 2 workers | cached in memory | cached on disk | LeRobot | LeRobot, 2 workers | arrays in memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = (
        "ulna, from the store",
        "ulna, from the store, 2 workers",
        "ulna, cached in ram",
        "ulna, cached in disk",
        "lerobot",
        "lerobot, 2 workers",
        "arrays in memory",
    )
    for size, r in d["sizes"].items():
        cells = " | ".join(f"{r['windows_per_s'][n]:.0f}" for n in names)
        lines.append(f"| {size}×{size} | {cells} |")
    first = next(iter(d["memory"].values()))
    how = {"auto": "the default cache", "none": "decoding", "disk": "disk cache"}
    peaks = ", ".join(f"{m['peak_resident_mb']:.0f} MB ({how[c]})" for c, m in d["memory"].items())
    ratios = "; ".join(
        f"{s}×{s}: {r['store_to_lerobot']:.1f} × LeRobot, cached in memory {r['ram_to_arrays']:.2f} and on disk {r['disk_to_arrays']:.2f} × arrays in memory, 2 workers {r['two_workers_to_one']:.2f} × 1"
        for s, r in d["sizes"].items()
    )
    return [
        *lines,
        "",
        f"{ratios}. Peak resident memory on a dataset of {first['decoded_gb']:.1f} GB: {peaks}.",
        "",
    ]


def formats(d: dict[str, Any]) -> list[str]:
    return [
        (
            f"**LeRobot in and out**: {d['episodes']} real episodes, {d['frames']} frames: {d['pixel_identical_to_pyav']} pixel-identical to PyAV's "
            f"decoding ({d['import_s']:.0f} s);"
        ),
        (
            f"out as v3.0 ({d['export_s']:.0f} s) and in again: same rows, states, actions and times, video PSNR at least {d['psnr_db']['min']:.1f} dB "
            f"(median {d['psnr_db']['median']:.1f})."
        ),
        "",
    ]


def put(page: Path, lines: list[str]) -> None:
    """`lines` between the page's two markers."""
    head, rest = page.read_text().split(BEGIN)
    page.write_text(head + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--demo", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--twin", type=Path)
    args = parser.parse_args()
    for name, folder in (("demo", args.demo), ("demo_real", args.real), ("demo_twin", args.twin)):
        if folder:
            results.save(name, json.loads((folder / "summary.json").read_text()))
    found = {
        n: load(n)
        for n in (
            *("demo", "demo_real", "experts", "recording", "kills", "reading", "lerobot_formats"),
            *("sim_steps", "train_throughput", "serving_latency"),
            *("demo_twin", "servo_rates", "cameras", "faults", "soak"),
        )
    }
    lines = ["## Measured", ""]
    if found["demo"]:
        lines += demo(found["demo"])
    if found["demo_twin"]:
        lines += device_tables.demo_twin(found["demo_twin"])
    if found["demo_real"]:
        lines += real(found["demo_real"])
    if found["experts"]:
        lines += experts(found["experts"])
    for name, table in (
        ("recording", recording),
        ("kills", kills),
        ("reading", reading),
        ("lerobot_formats", formats),
    ):
        if (numbers := found[name]) is not None:
            lines += table(numbers)
    lines += speed(found["sim_steps"], found["train_throughput"], found["serving_latency"])
    machines = sorted({r["machine"] for r in found.values() if r})
    lines.append(f"Machine: {'; '.join(machines)}. Files and commands: `benchmarks/results/`, `make bench`.")
    put(README, lines)
    devices = []
    for name in ("servo_rates", "cameras", "faults", "soak"):
        if (numbers := found[name]) is not None:
            devices += getattr(device_tables, name)(numbers)
    put(DEVICES, [*devices, lines[-1]])
