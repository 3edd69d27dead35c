"""Tables of vision-language-action policies, for `tables.py`."""

from __future__ import annotations

from typing import Any


def vla(d: dict[str, Any]) -> list[str]:
    lines = [
        "**The same random weights in LeRobot's code and in ours**: tiny sizes, one thread, 10 steps a",
        "decision, asked in turn.",
        "",
        "| model | parameters | decisions differ by | one decision, median | LeRobot's | times as fast |",
        "|---|---|---|---|---|---|",
    ]
    for name, m in d["models"].items():
        ours, theirs = (m["decision ms, median"][k] for k in ("ulna", "lerobot"))
        lines.append(
            f"| `{name}` | {m['parameters'] / 1e6:.2f} million | {m['largest difference of a decision']:.1e} "
            f"| {ours:.1f} ms | {theirs:.1f} ms | {m['times as fast']:g} |"
        )
    return [*lines, ""]


def vla_sort(d: dict[str, Any]) -> list[str]:
    served, taken, words = d["through_the_server"], d["takeover"], d["decisions_that_words_change"]
    changed = f"{words['by_more_than_0.05_rad']} of {words['scenes']}"
    trained = f"{d['demonstrations']}, {d['steps']} steps in {d['training_seconds']:.0f} s"
    by_hand = (
        f"{taken['takeovers']} times, {taken['ticks_by_the_hand']} of {taken['ticks']} ticks by the hand"
    )
    return [
        "**`vla_small` from end to end on `sort`**, from two cameras and words:",
        "",
        "| | |",
        "|---|---|",
        f"| demonstrations, training | {trained} |",
        f"| succeeded | {d['successes']} of {d['episodes']} (the expert {d['expert']}) |",
        f"| through the server | {served['successes']} of {served['episodes']} |",
        f"| scenes where another colour's word changes the first decision by over 0.05 rad | {changed} |",
        f"| taken over on the SO-101's twin | {by_hand} |",
        "",
    ]


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
