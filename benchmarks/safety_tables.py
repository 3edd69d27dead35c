"""The tables of docs/measured.md on what cannot happen to an arm, from benchmarks/results/ alone."""

from __future__ import annotations

from typing import Any

from study_tables import percent


def safety_fuzz(d: dict[str, Any]) -> list[str]:
    alone, physics, twin = d["alone"], d["physics"], d["twin"]
    tick, filtered_s = d["us_per_tick"], twin["filtered"]["seconds"]

    def row(name: str, of_the_limit: dict[str, float], touching: str) -> str:
        jerk = f"{of_the_limit['jerk']:.3g}" if "jerk" in of_the_limit else ""
        most = f"{of_the_limit['speed']:.3g} | {of_the_limit['acceleration']:.3g} | {jerk}"
        return f"| {name} | {most} | {touching} |"

    def steps(r: dict[str, Any]) -> str:
        return f"{sum(r['steps_touching'].values())} of {r['steps']} steps of physics"

    def commands(r: dict[str, Any]) -> str:
        return (
            f"{r['commands_in_contact']} of {r['actions']:,} commands; nearest {1000 * r['nearest_m']:.1f} mm"
        )

    def poses(r: dict[str, Any]) -> str:
        return f"{sum(r['poses_touching'].values())} of {r['poses']} poses"

    pair: list[str] = []
    if both := d.get("pair"):
        known, unaware = both["filtered"], both["unaware"]
        us, unaware_us = known["cpu_us_per_tick"], unaware["cpu_us_per_tick"]
        pair = [
            f"**Two arms that face each other**, {known['chunks']:,} hostile chunks to each, kept",
            f"{1000 * known['arm_distance_m']:g} mm apart: in contact in {commands(known)}.",
            f"By a filter that does not know where they stand: {commands(unaware)}.",
            f"A tick for both costs the processor {us['p50']:g} µs (p99 {us['p99']:g}), without looking at",
            f"each other {unaware_us['p50']:g} (p99 {unaware_us['p99']:g}).",
            "",
        ]
    return [
        f"**Hostile chunks against the safety filter** ({alone['chunks']:,} through the filter alone,",
        f"{physics['filtered']['chunks']:,} to the simulated arm, {filtered_s:g} s to servos on",
        "a pty): the most that was commanded, or done, in units of the limit, and what touched the",
        f"table or the arm itself. A tick costs {tick['filter']['p50']:g} µs (p99 {tick['filter']['p99']:g})",
        f"over all kinds, without the body {tick['without the body']['p50']:g}; one of ruckig for",
        f"six joints, which looks at nothing, {tick['ruckig']['p50']:g}:",
        "",
        "| | speed | acceleration | jerk | touched |",
        "|---|---|---|---|---|",
        row(
            "what the filter commanded",
            alone["most_of_the_limit"],
            f"{sum(alone['touching'].values())} of {alone['actions']:,} commands",
        ),
        *(row(f"the simulated arm, {how}", r["of_the_limit"], steps(r)) for how, r in physics.items()),
        *(row(f"the servos' twin, {how}", r["of_the_limit"], poses(r)) for how, r in twin.items()),
        "",
        *pair,
    ]


def action_filters(d: dict[str, Any]) -> list[str]:
    arm, wall, us = d["arm"], d["wall"], d["us_per_tick"]
    n, seeds = arm["episodes"], wall["seeds"]
    rows = [
        f"| {name} | {s['touched']} | {s['arrived']} | {s['commands_nearest_mm']:.1f} mm | {h['touched']} "
        f"| {h['commands_nearest_mm']:.1f} mm |"
        for name, s in arm["straight"].items()
        for h in (arm["hostile"][name],)
    ]
    ticks = ", ".join(f"{name} {c['p50']:.0f}" for name, c in us.items())
    leads = us["barrier, 3 obstacles"]["p50_where_it_leads"]
    differ = f"{d['far_away']['commands_that_differ']} of {d['far_away']['ticks']}"
    tanks = [
        f"| {name} | {r['peak_n']:.0f} N | {r['delivered_j']:.2f} J | {r.get('tank_lowest_j', '')} | "
        f"{r['success']} of {seeds} | {plain['success'] if plain else ''} |"
        for name, r in wall["bursts"].items()
        for plain in (wall["presses"].get(name),)
    ]
    return [
        f"**Stages of the safety filter**: the SO-101 among three obstacles that block its straight way, {n}",
        "episodes in physics each, and the nearest that a command was to one. `none` are limits that do not",
        "know of the obstacles, `limits` do, `barrier` goes around them. A tick takes, p50 in µs:",
        f"{ticks}; {leads:.0f} where the barrier leads. With nothing near, {differ} commands differ",
        "from those without it.",
        "",
        "| | touched | arrived | nearest | touched, hostile | nearest, hostile |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"**The energy tank** against a stiff wall, {seeds} policies that press it, with bursts in tune with",
        "the mass: the most over all of them. Success is to press as asked in the end.",
        "",
        "| tank at first | peak force | energy given | least in the tank | success | success, no bursts |",
        "|---|---|---|---|---|---|",
        *tanks,
        "",
    ]


def falls(d: dict[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {s['p50']:.2f} | {s['max']:.2f} | {s['trials']} |"
        for name, s in d["tip_moved_mm"].items()
    ]
    return [
        "**The end of a run**: by how much the tip of the SO-101's twin moves once its torque is gone, from",
        f"random poses; putting it down takes {d['put_down_s']['p50']:.1f} s. `dropped` is a driver that is",
        "closed where it stands, as runs ended before:",
        "",
        "| put down at | p50, mm | most, mm | trials |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def control_lateness(d: dict[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {r['p50_ms']:.3f} | {r['p99_ms']:.3f} | {r['max_ms']:.2f} |"
        for name, r in d["lateness"].items()
    ]
    return [
        f"**Control ticks at {d['rate_hz']:g} Hz** with {d['loaded_cores']} core loaded, lateness in ms",
        "beside a loop that only spins; the longest tick while the policy thinks for two seconds is",
        f"{d['longest_tick_while_the_policy_thinks_2_s_ms']:.1f} ms:",
        "",
        "| | p50 | p99 | most |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def takeover(d: dict[str, Any]) -> list[str]:
    n = d["training_seeds"] * d["episodes"]
    rows = [
        f"| {name} | {100 * sum(a['successes']) / n:.0f} % | {percent(a['interval_95'])} |"
        for name, a in d["arms"].items()
    ]
    differences = [
        f"{name}: {100 * c['difference']:+.0f} ({100 * c['bootstrap_95'][0]:+.0f} to "
        f"{100 * c['bootstrap_95'][1]:+.0f})"
        for name, c in d.items()
        if isinstance(c, dict) and "bootstrap_95" in c
    ]
    lines = [
        f"**Corrections by a person's stand-in**: a weak policy of {d['demonstrations']} demonstrations goes",
        f"on learning from {d['attempts']} corrected attempts, from as many more demonstrations, or from",
        f"none; {d['training_seeds']} trainings × {d['episodes']} episodes:",
        "",
        "| | success | 95 % interval |",
        "|---|---|---|",
        *rows,
        "",
        f"Paired differences in points (95 %): {'; '.join(differences)}.",
        "",
    ]
    if twin := d.get("twin"):
        lines += [
            "On the twin, through the leader's driver, while the policy moves the arm: the largest jump",
            f"of the command in {twin['changes']} changes of hands, beyond the motion that it had, is",
            f"{twin['largest_jump_at_a_change_rad']:.4f} rad; elsewhere",
            f"{twin['largest_jump_elsewhere_rad']:.4f}.",
            "",
        ]
    return lines
