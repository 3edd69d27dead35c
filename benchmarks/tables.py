"""Put the measured numbers into docs/measured.md, what studies found into docs/studies.md, and the five that
matter most into the README, each between its page's two markers, from benchmarks/results/ alone.

python benchmarks/tables.py                       rewrite the tables
python benchmarks/tables.py --demo runs/demo      take in what a demo wrote, then rewrite (--real, --twin)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import device_tables
import execution_tables
import head_to_head_tables
import results
import safety_tables
import study_tables
import vla_tables
from study_tables import percent

README = Path(__file__).parents[1] / "README.md"
MEASURED = README.parent / "docs" / "measured.md"
STUDIES = README.parent / "docs" / "studies.md"
BEGIN, END = "<!-- numbers: written by benchmarks/tables.py -->", "<!-- /numbers -->"
NAMES = (
    *("demo", "demo_images", "demo_twin", "demo_real", "experts", "recording", "kills", "reading"),
    *(
        "lerobot_formats",
        "foreign_samples",
        "sim_steps",
        "batched_evaluation",
        "batched_evaluation_given",
        "train_throughput",
        "gpu",
        "serving_latency",
        "server_load",
        "servo_rates",
        "cameras",
        "faults",
        "soak",
        "chunk_boundary",
        "head_to_head",
        "safety_fuzz",
        "action_filters",
        "falls",
        "control_lateness",
        "takeover",
        "ndp_strokes",
        "generated_policies",
        "progress",
        "demo_policy",
        "memory_growth",
        "vla",
        "vla_sort",
        "action_tokens",
        "lerobot_plugins",
        "lerobot_act",
    ),
)
SECTIONS = {
    "The demos": ("demo", "demo_policy", "demo_images", "demo_twin", "demo_real"),
    "Beside LeRobot's policies": ("head_to_head",),
    "The scripted experts": ("experts",),
    "Recording": ("recording", "kills"),
    "Reading": ("reading", "lerobot_formats", "foreign_samples"),
    "Speed": ("sim_steps", "batched_evaluation", "batched_evaluation_given", "train_throughput", "gpu"),
    "Serving": ("serving_latency", "server_load"),
    "How chunks are executed": ("chunk_boundary", "control_lateness"),
    "Safety": ("safety_fuzz", "action_filters", "falls"),
    "A person who takes over": ("takeover",),
    "Paths of a dynamical system": ("ndp_strokes",),
    "Policies that are drawn": ("generated_policies",),
    "Memories": ("memory_growth",),
    "Progress": ("progress",),
    "Vision, language, action": ("vla", "vla_sort", "action_tokens"),
    "Inside LeRobot, and LeRobot inside": ("lerobot_plugins", "lerobot_act"),
    "Devices": ("servo_rates", "cameras"),
    "Every fault at every driver": ("faults",),
    "Random faults": ("soak",),
}


def load(name: str) -> dict[str, Any] | None:
    return results.load(name) if (results.RESULTS / f"{name}.json").exists() else None


def demo(d: dict[str, Any]) -> list[str]:
    ms = d["latency_ms"]
    latency = f"latency p50 {ms['p50']:.0f} ms, p99 {ms['p99']:.0f} ms"
    return [
        "**`make demo`**: 100 expert demonstrations of `lift` on the SO-101, `flow` from state, 50 unseen",
        f"seeds through the server: {succeeded(d)};",
        f"{d['nfe_per_decision']:g} network evaluations a decision, {latency}.",
        *took(d),
    ]


def demo_images(d: dict[str, Any]) -> list[str]:
    return [
        "**`make demo-images`**: the same from two cameras of 64×64 and the joints, of 300 demonstrations:",
        f"{succeeded(d)}.",
        *took(d),
    ]


def succeeded(d: Mapping[str, Any]) -> str:
    interval = f"95 % interval {percent(d['wilson_95'])}"
    return f"**{d['successes']} of {d['episodes']} succeeded** ({interval})"


def took(d: Mapping[str, Any]) -> list[str]:
    phases = ", ".join(f"{n} {s:.0f} s" for n, s in d["phases_s"].items())
    minutes = sum(d["phases_s"].values()) / 60
    return [f"{minutes:.1f} minutes ({phases}), peak {d['peak_memory_gib']} GiB.", ""]


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
        "**`make demo-real`** on 12 teleoperated episodes of a Unitree G1 (26 joints, one camera at 96×96;",
        "trained on ten, open loop on two):",
        "",
        "| predictor of the next commands | error / spread of a joint | 95 % interval |",
        "|---|---|---|",
        *rows,
        "",
        f"Paired differences, block bootstrap: {differences}.",
        f"{sum(d['phases_s'].values()) / 60:.1f} minutes.",
        "The demo's options (a second of commands, measured from the last one) were chosen while looking at",
        "these same two episodes, so another split may show a smaller margin.",
        "",
    ]


def experts(d: dict[str, Any]) -> list[str]:
    lines = ["| expert | robot | solved | 95 % interval | median episode |", "|---|---|---|---|---|"]
    for r in d["rows"]:
        if r["agent"] == "expert":
            noise = f", disturbed by {1000 * r['noise_m']:g} mm" if r["noise_m"] else ""
            solved = f"{r['successes']} of {seed_count(r)}"
            seconds = f"{r['median_seconds_simulated']:.1f} s"
            lines.append(
                f"| {r['task']}{noise} | {r['robot']} | {solved} | {percent(r['wilson_95'])} | {seconds} |"
            )
    controls = [r for r in d["rows"] if r["agent"] == "hold"]
    if controls:
        successes, seeds = sum(r["successes"] for r in controls), sum(map(seed_count, controls))
        lines += ["", f"Doing nothing solves {successes} of {seeds}."]
    return [*lines, ""]


def seed_count(row: dict[str, Any]) -> int:
    """Of a row whose `seeds` is `0 to N-1`."""
    return int(row["seeds"].split()[-1]) + 1


SPEED = ["| measured | Ulna | beside, in the same run |", "|---|---|---|"]


def sim_steps(d: dict[str, Any]) -> list[str]:
    lines = [*SPEED]
    for robot in ("so101", "panda"):
        ours, physics = d[robot]["env_steps_per_s"], d[robot]["physics_alone_per_s"]
        measure = f"`lift` from state, {robot}, environment steps/s"
        lines.append(f"| {measure} | {ours} | {physics} PyBullet's physics alone |")
    return [*lines, ""]


def batched_evaluation(d: dict[str, Any]) -> list[str]:
    ours, plain = (
        f"{d[k]['seconds']:.0f} s ({d[k]['successes']} succeeded)" for k in ("at_once", "one_at_a_time")
    )
    network = d.get("network", "UNet1D")
    measure = f"{d['episodes']} episodes of {d['task']}, `{d['recipe']}`, {network}, {d['batch']} at once"
    return [*SPEED, f"| {measure} | {ours} | {plain} one at a time |", ""]


def train_throughput(d: dict[str, Any]) -> list[str]:
    measure = f"`diffusion_unet` training, steps/s at batch {d['batch']} (peak memory)"
    ours, theirs = (f"{d[s]['steps_per_s']} ({d[s]['peak_memory_gib']} GiB)" for s in ("ulna", "lerobot"))
    return [*SPEED, f"| {measure} | {ours} | {theirs} LeRobot's DiffusionPolicy |", ""]


def gpu(d: dict[str, Any]) -> list[str]:
    lines, rows = [*SPEED], d["decisions"]
    for name, row in rows.items():
        if "ulna" in row:
            kind = "images" if "images" in name else "state"
            theirs = rows[f"LeRobot DiffusionPolicy, {kind}"]["p50_ms"]
            beside = f", {theirs} ms LeRobot's DiffusionPolicy" if name == f"diffusion_unet, {kind}" else ""
            measure = f"one decision of {name}, 16 steps, {d['card']}"
            lines.append(
                f"| {measure}: p50 | {row['ulna']['p50_ms']} ms "
                f"| {row['eager']['p50_ms']} ms kernel by kernel{beside} |"
            )
    for name, row in d["training"].items():
        ours, eager, theirs = (row[k]["step_ms"] for k in ("ulna", "eager", "lerobot"))
        measure = f"one training step of `diffusion_unet`, {name}, same card"
        beside = f"{eager} ms kernel by kernel, {theirs} ms LeRobot's DiffusionPolicy"
        lines.append(f"| {measure} | {ours} ms | {beside} |")
    how = (
        "LeRobot's policy is as it comes: its option `compile_model`, off by default, would spare it what",
        "kernels cost to launch, as our graphs do; and it trains in float32 with TF32, ours in bfloat16,",
        "which `--policy.use_amp` gives it. With these it was not measured.",
    )
    return [*lines, "", *how, ""]


def serving_latency(d: dict[str, Any]) -> list[str]:
    lines = [
        "**Serving** a policy that costs nothing: round trips, client and server in processes of their own.",
        "",
        "| request | client to server | p50 | p99 |",
        "|---|---|---|---|",
    ]
    for request in ("state", "state and two 224x224 images"):
        for pair, row in d[request].items():
            lines.append(f"| {request} | {pair} | {row['p50_ms']} ms | {row['p99_ms']} ms |")
    missing = [f"Not measured: {what}." for what in d["absent"]]
    return [*lines, "", *missing]


def server_load(d: dict[str, Any]) -> list[str]:
    lines = [
        f"**Under load**, {d['policy']}: the load comes from other processes of the same machine.",
        "",
        "| load | served | requests/s | p50 | p99 |",
        "|---|---|---|---|---|",
    ]

    def line(load: str, how: str, row: dict[str, Any]) -> str:
        times = f"{row['p50_ms']} ms | {row['p99_ms']} ms"
        return f"| {load} | {how} | {row['requests_per_s']} | {times} |"

    for how, row in d["throughput, 8 clients"].items():
        lines.append(line("8 clients in a loop", how, row))
    for how, clients in d["one client beside floods"].items():
        for client, rows in clients.items():
            for floods, row in rows.items():
                if floods != "p99_ratio_with_50":
                    lines.append(line(f"one client that {client}, {floods}", how, row))
    for load, row in d["one client beside hostile messages"].items():
        lines.append(line(f"one client, {load}", "batched", row))
    swaps = d["ten swaps under 8 clients"]
    lines.append(line(f"8 clients, ten swaps ({swaps['errors']} requests lost)", "batched", swaps))
    memory = d["server_resident_mb"]
    worst = max(memory, key=memory.__getitem__)
    return [
        *lines,
        "",
        f"Resident memory of the server: {memory['at rest']} MB at rest, {memory[worst]} at most ({worst}),",
        f"{memory['afterwards']} MB afterwards.",
        "",
    ]


def recording(d: dict[str, Any]) -> list[str]:
    lines = [
        f"**Recording** two 640×480 cameras at 30 Hz and 7 joints at 100 Hz for {d['seconds']:g} s; lateness",
        "is when a control tick's work is done, after its due time. LeRobot records rows at 30 Hz.",
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
        lateness, memory = f"{late['p50']:.2f}, {late['p99']:.2f} ms", f"{r['memory_mb']:.0f} MB"
        lines.append(f"| {arm} | {lateness} | {lost} | {finish} | {memory} | {size} |")
    return [*lines, ""]


def kills(d: dict[str, Any]) -> list[str]:
    lines = [
        f"**`kill -9`** at {d['trials']} random instants, then every row of every episode read again:",
        "",
        (
            "| killed while | kills | rows acknowledged | lost or wrong | finished episodes changed "
            "| stores that did not open |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for kind, r in d["kinds"].items():
        rows = f"{r['acknowledged_rows'] or '–'} | {r['lost_rows'] + r['wrong_rows']}"
        lines.append(f"| {kind} | {r['kills']} | {rows} | {r['changed_episodes']} | {r['failed_to_open']} |")
    return [*lines, ""]


def reading(d: dict[str, Any]) -> list[str]:
    lines = [
        "**Reading** random windows (two observations of two cameras, 16 actions; batches of 64), windows a",
        "second:",
        "",
        (
            "| images | store | store, 2 workers | cached in memory | cached on disk | LeRobot "
            "| LeRobot, 2 workers | LeRobot by pyav | arrays in memory |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = (
        "ulna, from the store",
        "ulna, from the store, 2 workers",
        "ulna, cached in ram",
        "ulna, cached in disk",
        "lerobot",
        "lerobot, 2 workers",
        "lerobot, pyav",
        "arrays in memory",
    )
    for size, r in d["sizes"].items():
        cells = " | ".join(f"{r['windows_per_s'][n]:.0f}" for n in names)
        lines.append(f"| {size}×{size} | {cells} |")
    first = next(iter(d["memory"].values()))
    how = {"auto": "the default cache", "none": "decoding", "disk": "disk cache"}
    peaks = ", ".join(f"{m['peak_resident_mb']:.0f} MB ({how[c]})" for c, m in d["memory"].items())
    ratios = "; ".join(
        f"{s}×{s}: {r['store_to_lerobot']:.1f} × LeRobot, cached in memory {r['ram_to_arrays']:.2f} and on "
        f"disk {r['disk_to_arrays']:.2f} × arrays in memory, 2 workers {r['two_workers_to_one']:.2f} × 1"
        for s, r in d["sizes"].items()
    )
    return [
        *lines,
        "",
        f"{ratios}. Peak resident memory on a dataset of {first['decoded_gb']:.1f} GB: {peaks}.",
        "",
    ]


def lerobot_formats(d: dict[str, Any]) -> list[str]:
    psnr = d["psnr_db"]
    return [
        f"**LeRobot in and out**: {d['episodes']} real episodes, {d['frames']} frames:",
        f"{d['pixel_identical_to_pyav']} pixel-identical to PyAV's decoding ({d['import_s']:.0f} s);",
        f"out as v3.0 ({d['export_s']:.0f} s) and in again: same rows, states, actions and times, video PSNR",
        f"at least {psnr['min']:.1f} dB (median {psnr['median']:.1f}).",
        "",
    ]


def foreign_samples(d: dict[str, Any]) -> list[str]:
    rows = []
    for s in d["samples"].values():
        tools = ", ".join(f"{n} {v}" for n, v in s.get("tools", {}).items())
        off = [f"{k}: {v}" for k, v in s.get("equal", {}).items() if not v.startswith("equal")]
        narrowed = [f", {k}{v.removeprefix('equal,')}" for k, v in s.get("equal", {}).items() if "as" in v]
        outcome = "; ".join(off) or "all equal" + "".join(narrowed)
        outcome = outcome if s.get("imported") else f"not imported: {s.get('why')}"
        rows.append(f"| {s.get('wrote', 'not written')} | {tools} | {s.get('read_by', '')} | {outcome} |")
    lacking = "; ".join(f"{name}: {why}" for name, why in d["not_to_be_had"].items())
    return [
        f"**Samples that other projects' own tools write**: {d['imported']} import, {d['equal_in_all']} with",
        "every number, picture, task and outcome as the tool itself reads it:",
        "",
        "| written | by | compared with what is read by | imported |",
        "|---|---|---|---|",
        *rows,
        "",
        f"On no package registry, or not for this Python: {lacking}.",
        "",
    ]


TABLES = {
    "demo": demo,
    "demo_images": demo_images,
    "demo_twin": device_tables.demo_twin,
    "demo_real": real,
    "experts": experts,
    "recording": recording,
    "kills": kills,
    "reading": reading,
    "lerobot_formats": lerobot_formats,
    "foreign_samples": foreign_samples,
    "sim_steps": sim_steps,
    "batched_evaluation": batched_evaluation,
    "batched_evaluation_given": batched_evaluation,
    "train_throughput": train_throughput,
    "gpu": gpu,
    "serving_latency": serving_latency,
    "server_load": server_load,
    "servo_rates": device_tables.servo_rates,
    "cameras": device_tables.cameras,
    "faults": device_tables.faults,
    "soak": device_tables.soak,
    "chunk_boundary": execution_tables.chunk_boundary,
    "head_to_head": head_to_head_tables.head_to_head,
    "safety_fuzz": safety_tables.safety_fuzz,
    "action_filters": safety_tables.action_filters,
    "falls": safety_tables.falls,
    "control_lateness": safety_tables.control_lateness,
    "takeover": safety_tables.takeover,
    "ndp_strokes": study_tables.ndp_strokes,
    "generated_policies": study_tables.generated_policies,
    "progress": study_tables.progress,
    "demo_policy": study_tables.demo_policy,
    "memory_growth": study_tables.memory_growth,
    "vla": vla_tables.vla,
    "vla_sort": vla_tables.vla_sort,
    "action_tokens": vla_tables.action_tokens,
    "lerobot_plugins": vla_tables.lerobot_plugins,
    "lerobot_act": vla_tables.lerobot_act,
}


def measured_page(numbers: dict[str, dict[str, Any]]) -> list[str]:
    """All tables that there are numbers of, in sections."""
    lines: list[str] = []
    for title, names in SECTIONS.items():
        tables = [line for name in names if name in numbers for line in TABLES[name](numbers[name])]
        if tables:
            lines += [f"## {title}", "", *tables]
    return [*lines, f"Machine: {machines(numbers)}. Files and commands: `benchmarks/results/`, `make bench`."]


def readme_table(numbers: dict[str, dict[str, Any]]) -> list[str]:
    """Those that matter most, in one row each."""
    lines = ["| what was measured | Ulna | beside it |", "|---|---|---|"]
    for name, task in (
        ("demo", "`make demo`: `lift` learned from 100 demonstrations, tried on scenes it never saw"),
        ("demo_images", "`make demo-images`: the same from two cameras, from 300 demonstrations"),
        ("demo_twin", "`make demo-twin`: the same through the real drivers, from 60 teleoperated ones"),
    ):
        if d := numbers.get(name):
            interval = f"95 % interval {percent(d['wilson_95'])}"
            lines.append(f"| {task} | **{d['successes']} of {d['episodes']} succeeded** | {interval} |")
    if d := numbers.get("head_to_head"):
        lines += head_to_head_tables.rows(d)
    if d := numbers.get("recording"):
        ours, default, streaming = (
            f"{r['lateness_ms']['p99']:.2f} ms, {r['finish_s']:.2f} s, {r['size_mb']:.0f} MB"
            for r in (d["arms"][name] for name in ("ulna", "lerobot, default", "lerobot, streaming"))
        )
        task = (
            f"recording two cameras and 7 joints for {d['seconds']:g} s: how late a control tick ends (p99), "
            "how long finishing the episode takes, size on disk (ours is lossless)"
        )
        lines.append(f"| {task} | {ours} | LeRobot: {default}; streaming: {streaming} |")
    if d := numbers.get("kills"):
        kinds = d["kinds"].values()
        rows = sum(k["lost_rows"] + k["wrong_rows"] for k in kinds)
        acknowledged = sum(k["acknowledged_rows"] for k in kinds)
        task = f"`kill -9` at {d['trials']} random instants of recording and editing: rows lost or wrong"
        changed, closed = (sum(k[n] for k in kinds) for n in ("changed_episodes", "failed_to_open"))
        control = f"finished episodes changed: {changed}; stores that did not open again: {closed}"
        lines.append(f"| {task} | **{rows} of {acknowledged}** | {control} |")
    if d := numbers.get("reading"):
        for size, r in d["sizes"].items():
            speeds = r["windows_per_s"]
            ours = f"{speeds['ulna, from the store']:.0f}, cached {speeds['ulna, cached in ram']:.0f}"
            task = f"reading training windows with two {size}×{size} cameras, windows a second"
            lines.append(f"| {task} | {ours} | LeRobot: {speeds['lerobot']:.0f} |")
    return [*lines, "", f"Machine: {machines(numbers)}."]


def machines(numbers: dict[str, dict[str, Any]]) -> str:
    return "; ".join(sorted({r["machine"] for r in numbers.values()}))


def put(page: Path, lines: list[str]) -> None:
    """Write `lines` between the page's two markers."""
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--demo", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--twin", type=Path)
    args = parser.parse_args()
    for name in ("demo", "images", "real", "twin"):
        if folder := getattr(args, name):
            results.save(
                name if name == "demo" else f"demo_{name}", json.loads((folder / "summary.json").read_text())
            )
    numbers = {name: result for name in NAMES if (result := load(name))}
    put(MEASURED, measured_page(numbers))
    put(README, readme_table(numbers))
    put(STUDIES, study_tables.studies_page(study_tables.load_studies()))
