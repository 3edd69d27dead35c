"""LeRobot's own async client, as it comes, with a robot that is a row of numbers and a camera of noise.

    python lerobot_client.py HOST:PORT ACTIONS [--fps N] [--name CHECKPOINT] [--camera NAME] [--task WORDS]

Runs until its robot was sent so many actions, or for a minute, and prints what happened as JSON. It writes
its logs into the folder where it runs."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import threading
import time
from dataclasses import dataclass

import numpy as np

# LeRobot imports pyrealsense2, whose wheel is linked to libusb-1.0 and does not contain it
with contextlib.suppress(ImportError, OSError):
    import libusb_package

    ctypes.CDLL(str(libusb_package.get_library_path()), ctypes.RTLD_GLOBAL)

from lerobot.async_inference.configs import RobotClientConfig
from lerobot.async_inference.robot_client import RobotClient
from lerobot.robots import Robot, RobotConfig

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


@RobotConfig.register_subclass("row_of_numbers")
@dataclass
class RowConfig(RobotConfig):
    camera: str = ""


class Row(Robot):
    """Joint i stands at 10·(i + 1); what it is sent is kept."""

    config_class, name = RowConfig, "row_of_numbers"

    def __init__(self, config: RowConfig) -> None:
        super().__init__(config)
        self.config, self.sent, self.at_s = config, [], []
        self.image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)

    @property
    def observation_features(self) -> dict:
        camera = {self.config.camera: (480, 640, 3)} if self.config.camera else {}
        return {f"{j}.pos": float for j in JOINTS} | camera

    @property
    def action_features(self) -> dict:
        return {f"{j}.pos": float for j in JOINTS}

    @property
    def is_connected(self) -> bool:
        return True

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None: ...
    def calibrate(self) -> None: ...
    def configure(self) -> None: ...
    def disconnect(self) -> None: ...

    def get_observation(self) -> dict:
        camera = {self.config.camera: self.image} if self.config.camera else {}
        return {f"{j}.pos": 10.0 * (i + 1) for i, j in enumerate(JOINTS)} | camera

    def send_action(self, action: dict) -> dict:
        self.sent.append(action)
        self.at_s.append(time.monotonic())
        return action


class Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("actions", type=int)
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--name", default="whoever/whatever")
    parser.add_argument("--camera", default="")
    parser.add_argument("--task", default="lift the cube")
    args = parser.parse_args()
    errors = Errors()
    logging.getLogger("robot_client").addHandler(errors)
    config = RobotClientConfig(
        policy_type="act",
        pretrained_name_or_path=args.name,
        robot=RowConfig(camera=args.camera),
        actions_per_chunk=12,
        server_address=args.address,
        fps=args.fps,
    )
    client = RobotClient(config)
    began = time.monotonic()
    started = client.start()
    if started:
        receiver = threading.Thread(target=client.receive_actions, daemon=True)
        loop = threading.Thread(target=client.control_loop, args=(args.task,), daemon=True)
        receiver.start()
        loop.start()
        while len(client.robot.sent) < args.actions and time.monotonic() - began < 60:
            time.sleep(0.02)
        client.shutdown_event.set()
        loop.join(10)
        receiver.join(10)  # it asks for up to two seconds more
        client.stop()
    at_s = np.array(client.robot.at_s)
    print(
        json.dumps(
            {
                "started": started,
                "actions": len(client.robot.sent),
                "first": client.robot.sent[:3],
                "hz": round((len(at_s) - 1) / (at_s[-1] - at_s[0]), 1) if len(at_s) > 1 else None,
                "starved": sum(n == 0 for n in client.action_queue_size),
                "errors": errors.lines[:5],
            }
        )
    )


if __name__ == "__main__":
    main()
