"""A small vision-language-action policy from end to end on `sort`, offline and on one core: recorded through
two cameras, trained, evaluated, served, evaluated through the server, and taken over on the SO-101's twin.

    OMP_NUM_THREADS=1 python benchmarks/vla_sort.py [--demonstrations 200] [--steps 4000] [--episodes 20]

The words are the task's own: three ways to say it, three colours, and which cube is meant stands in them
alone. What is shown is that every part of the way holds; the number of successes is what these steps give,
beside the scripted expert's on the same scenes. Whether the words are heard at all is counted apart: in how
many scenes the first decision differs with the colour that is asked for.

The takeover: `ulna twin so101 --scene sort --leader`, whose scripted hand does the task at the leader arm.
The policy has the arm first; the key t gives it to the hand, and t again back."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import results

from ulna.datasets.features import ACTION, IMAGES, STATE
from ulna.datasets.flags import INTERVENTION
from ulna.datasets.reading.align import align
from ulna.datasets.store import EpisodeStore
from ulna.policies.serving.local import LocalPolicy
from ulna.robot.beside import beside
from ulna.robot.config import load_robot
from ulna.robot.demos.phases import Phases, free_port
from ulna.robot.deploy import deploy
from ulna.robot.keys import Keys
from ulna.robot.people import agent_for
from ulna.robot.record import open_store, recorder_for
from ulna.robot.takeover import Person

CAMERAS, SIDE = ("front", "wrist"), 64
SEED = 5000  # of the first scene of evaluation
ROBOT = ["--robot", "sim:so101", "--task", "sort"]
FORM = "put the {} cube into the tray"
COLOURS = ("red", "green", "blue")
POLICY_S, HAND_S = 4.0, 12.0  # how long each has the arm


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demonstrations", type=int, default=200)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--out", type=Path, help="keep data and policy in this folder, and go on with them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results.save("vla_sort", end_to_end(args, args.out or Path(folder)))


def end_to_end(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    p, data, policy = Phases(), out / "data", out / "policy"
    if not data.is_dir():
        words = ["record", *ROBOT, "--agent", "expert", "--episodes", str(args.demonstrations)]
        words += ["--cameras", ",".join(CAMERAS), "--image-size", f"{SIDE}x{SIDE}", "--out", str(data)]
        p.run("record", *words)
    if not (policy / "hash.json").is_file():
        seen = ",".join([STATE, *(IMAGES + name for name in CAMERAS)])
        words = ["train", "vla_small", "--data", str(data), "--observe", seen, "--out", str(policy)]
        p.run("train", *words, "--steps", str(args.steps))
    scenes = [*ROBOT, "--episodes", str(args.episodes), "--seed", str(SEED)]
    alone = p.run("evaluate", "evaluate", str(policy), *scenes, "--batch", str(args.episodes))
    expert = p.run("the same by the expert", "evaluate", "--agent", "expert", *scenes)
    with p.server("serve", str(policy), "--port", str(free_port())) as url:
        few = [*ROBOT, "--episodes", "2", "--seed", str(SEED)]
        served = p.run("evaluate through the server", "evaluate", str(policy), *few, "--server", url)
        taken = taken_over(url)
    record = json.loads((policy / "train.json").read_text())
    return {
        "parameters": record["parameters"],
        "demonstrations": len(record["episodes"]),
        "steps": record["steps"],
        "training_seconds": round(record["seconds"], 1),
        "successes": alone["successes"],
        "episodes": args.episodes,
        "expert": expert["successes"],
        "through_the_server": {
            k: served[k] for k in ("successes", "episodes", "latency_ms", "nfe_per_decision") if k in served
        },
        "decisions_that_words_change": words_matter(policy, data),
        "takeover": taken,
        "phases_s": {name: round(seconds, 1) for name, seconds in p.seconds},
    }


def words_matter(policy: Path, data: Path, most: int = 30) -> dict[str, Any]:
    """At the first tick of recorded episodes: by how much the decisions for two colours differ at least, rad,
    drawn from the same noise."""
    local, store = LocalPolicy(policy), EpisodeStore.open(data)
    differences = []
    for episode in store.episodes[:most]:
        now = episode.times_ns(ACTION)[0][:1]
        seen = {
            k: episode.read(k)[align(now, *episode.times_ns(k), 1_000_000_000)][0]
            for k in local.metadata.features
            if k != ACTION
        }
        chunks = [
            local.infer({**seen, "task": FORM.format(c), "_rt": {"seed": 0}})["actions"] for c in COLOURS
        ]
        apart = [np.abs(a - b).max() for i, a in enumerate(chunks) for b in chunks[:i]]
        differences.append(float(min(apart)))
    return {
        "scenes": len(differences),
        "by_more_than_0.05_rad": int(sum(d > 0.05 for d in differences)),
        "median_rad": round(float(np.median(differences)), 4),
    }


def taken_over(url: str) -> dict[str, Any]:
    """One episode on the device twin: the policy, the hand at the leader, the policy again."""
    typed, file = os.openpty()
    twin = ["twin", "so101", "--scene", "sort", "--leader", "--cameras", ",".join(CAMERAS)]
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            Keys(file) as keys,
            beside(*twin, "--image-size", f"{SIDE}x{SIDE}") as station,
        ):
            rig = load_robot(station["toml"], trackers=False)

            def person() -> None:
                for key, seconds in ((b"t", POLICY_S), (b"t", HAND_S), (b"f", POLICY_S)):
                    time.sleep(seconds)
                    os.write(typed, key)

            with (
                agent_for("leader", station["toml"], rig) as agent,
                rig,
                recorder_for(rig, open_store(rig, Path(folder) / "d")) as recorder,
            ):
                assert isinstance(agent, Person)
                os.write(typed, b"\n")
                threading.Thread(target=person, daemon=True).start()
                answer = deploy(rig, url, 1, SEED, None, 60.0, recorder, keys=keys, person=agent)
            (episode,) = EpisodeStore.open(Path(folder) / "d").episodes
            by_hand = episode.flags(ACTION) & INTERVENTION != 0
            return {
                "instruction": episode.task,
                "takeovers": answer["takeovers"],
                "ticks": len(by_hand),
                "ticks_by_the_hand": int(by_hand.sum()),
                "the_policy_had_it_first_and_last": bool(not by_hand[0] and not by_hand[-1]),
                "latency_ms": answer["latency_ms"],
            }
    finally:
        os.close(typed)
        os.close(file)


if __name__ == "__main__":
    main()
