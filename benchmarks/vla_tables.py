"""Tables of vision-language-action policies, for `tables.py`."""

from __future__ import annotations

from typing import Any


def vla(d: dict[str, Any]) -> list[str]:
    lines = [
        "**The same random weights in LeRobot's code and in ours**: tiny sizes, one thread, 10 steps a",
        "decision, asked in turn; *network alone*: LeRobot's with tokens and pictures that are ready.",
        "",
        (
            "| model | parameters | decisions differ by | one decision, median "
            "| LeRobot's, its network alone | times as fast |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for name, m in d["models"].items():
        ours, theirs, ready = (m["decision ms, median"][k] for k in ("ulna", "lerobot", "lerobot, ready"))
        lines.append(
            f"| `{name}` | {m['parameters'] / 1e6:.2f} million | {m['largest difference of a decision']:.1e} "
            f"| {ours:.1f} ms | {theirs:.1f}, {ready:.1f} ms "
            f"| {m['times as fast']:g}, {m['times as fast as its network alone']:g} |"
        )
    return [*lines, ""]


def vla_sort(d: dict[str, Any]) -> list[str]:
    served, taken, words = d["through_the_server"], d["takeover"], d["decisions_that_words_change"]
    rows = {
        "demonstrations, training": f"{d['demonstrations']}, {d['steps']} steps in "
        f"{d['training_seconds']:.0f} s",
        "succeeded": f"{d['successes']} of {d['episodes']} (the expert {d['expert']})",
        "through the server": f"{served['successes']} of {served['episodes']}",
        "scenes where another colour's word changes the first decision by over 0.05 rad": ""
        f"{words['by_more_than_0.05_rad']} of {words['scenes']}",
        "taken over on the SO-101's twin": f"{taken['takeovers']} times, {taken['ticks_by_the_hand']} of "
        f"{taken['ticks']} ticks by the hand",
    }
    title = "**`vla_small` from end to end on `sort`**, from two cameras and words:"
    return [title, "", *_two_columns(rows), ""]


def action_tokens(d: dict[str, Any]) -> list[str]:
    lines = [
        "**Chunks as FAST tokens**, fitted on four fifths of 50 demonstrations, measured on the others; in",
        "normalised units, in which one token for each number, of 256 bins, errs by at most 0.004:",
        "",
        "| data | numbers | tokens, mean (most) | fewer bits than bins | error, mean | largest | bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in d["table"]:
        lines.append(
            f"| `{r['data']}`, {r['horizon']} actions | {r['numbers_a_chunk']} "
            f"| {r['tokens_a_chunk']:.1f} ({r['tokens_at_most']}) "
            f"| {r['times_fewer_bits_than_256_bins']:.1f} times | {r['error_mean']:.3f} "
            f"| {r['error_largest']:.2f} | {r['error_bound']:.2f} |"
        )
    return [*lines, ""]


def lerobot_plugins(d: dict[str, Any]) -> list[str]:
    c = d["commands"]
    record, train, rollout, both = c["record"], c["train"], c["rollout"], c["eval"]
    first, last = train["losses"][0], train["losses"][-1]
    ours = f"`ulna evaluate` {both['ulna_evaluate']}; {both['alike']} scenes alike"
    rows = {
        "`lerobot-record` of the SO-101's twin, our teleoperator": f"{record['episodes']} episodes, "
        f"{record['frames']} frames, {record['lifted']} lifted",
        "`lerobot-train` of our recipe on them": f"{train['steps']} steps, loss {first:g} to {last:g}",
        f"`lerobot-rollout` of that on the twin for {rollout['asked_s']} s": "ended as it should"
        if rollout["ended"]
        else "did not end",
        "`lerobot-eval` of a checkpoint of ours on `lift`": f"{both['lerobot_eval']} of {both['episodes']}, "
        + ours,
    }
    packages = ", ".join(p.replace("==", " ") for p in d["packages"])
    title = f"**LeRobot's own commands with our plug-ins**, in an environment of LeRobot's own ({packages}):"
    return [title, "", *_two_columns(rows), ""]


def lerobot_act(d: dict[str, Any]) -> list[str]:
    trained, twin = d["training"], d["on_the_twin"]
    rows = {
        "`ulna record` from a leader arm on the twin": f"{d['demonstrations']} demonstrations of `lift`",
        "`lerobot-train --policy.type=act` on our export": f"{trained['steps']} steps in "
        f"{trained['seconds']:.0f} s, loss {trained['losses'][0]:g} to {trained['losses'][-1]:g}",
        "`ulna serve lerobot:FOLDER`, `ulna deploy` to the twin": f"{twin['successes']} of "
        f"{twin['episodes']} scenes, {twin['decisions']} decisions",
    }
    title = "**LeRobot's ACT on our arm**, from servo bytes and camera trackers to the same:"
    return [title, "", *_two_columns(rows), ""]


def _two_columns(rows: dict[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {what} | {found} |" for what, found in rows.items())]
