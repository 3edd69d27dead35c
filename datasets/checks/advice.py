"""What to do about each kind of finding. docs/checks.md says more."""

from __future__ import annotations

ADVICE = {
    "damaged": "restore the files from a copy, or `ulna data delete` the episode",
    "missing": "record again, or delete the episode: training on that stream refuses it",
    "features": "the episode belongs to another robot or version: keep it in a dataset of its own",
    "nan": "find the device that sends it; delete or trim the episode",
    "interrupted": "`ulna data trim` or delete it, unless its end is of no importance",
    "noted": "compare it with the source; delete the episode if that is damaged",
    "dropped": "look at the camera's cable and the computer's load; record fewer or smaller images, JPEG, or "
    "on a faster disk",
    "gap": "trim, or train with --align interpolate and a larger --tolerance; look at the device's cable and "
    "load",
    "clock": "stamp with one clock; an episode with a jump cannot be aligned: delete it",
    "rate": "lighten the loop, or set the store's rate to what is reached",
    "jitter": "lighten the loop, or give it a core of its own",
    "stale": "read the device faster or run the loop more slowly",
    "held": "know that these readings are late by up to that period",
    "invalid": "look at the device's faults; training leaves out actions that are marked so",
    "limits": "check calibration and the limits in the robot's configuration",
    "units": "state what the numbers are with `ulna data units`, or convert them with --out; import anew "
    "with --units where they were taken for another unit",
    "offset": "compare leader and follower in the same pose, calibrate both again, and delete "
    "or train without what was recorded so",
    "jump": "check wiring and calibration of that joint; delete the episode if the jump is large",
    "short": "delete it",
    "static": "delete it",
    "idle": "`ulna data trim` its ends",
    "clipped": "teleoperate more slowly or raise the limits; `action` holds what was sent",
    "held-back": "nothing, where it held an object; else look what stood in the way",
    "black": "look at the camera; delete the episode",
    "overexposed": "fix exposure and light",
    "flat": "look at the camera; delete the episode",
    "empty": "look at the depth camera's range and lasers",
    "frozen": "look at the camera's cable and driver; trim or delete the episode",
    "duplicates": "ask the camera for the rate that it reaches; exposure may be what slows it",
    "misaligned": "set the camera's latency in the robot's configuration, and use the same when deploying",
    "outlier": "look at it with `ulna data view`, and decide",
}
